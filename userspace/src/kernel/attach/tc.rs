//! A filter of a daemon on one side of its interfaces: put where it is missing, replaced where it
//! runs another program, and watched.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use tracing::{info, warn};

use crate::error::CliError;
use crate::kernel::bpf::Program;
use crate::kernel::host::Host;
use crate::kernel::netlink::{Direction, FilterSpec};

/// Where a daemon's filter is.
pub(crate) struct Attachment {
    spec: FilterSpec,
    direction: Direction,
    /// Interfaces on which this daemon has seen its filter in place.
    attached_on: BTreeSet<String>,
    /// What was said of an interface that is in trouble, to say it once.
    warned: BTreeMap<String, String>,
}

impl Attachment {
    /// Nothing is known of the interfaces yet.
    pub(crate) fn new(spec: FilterSpec, direction: Direction) -> Self {
        Self { spec, direction, attached_on: BTreeSet::new(), warned: BTreeMap::new() }
    }

    /// Attaches to each interface that does not run `program` yet, then detaches from those that
    /// are not listed.
    ///
    /// # Errors
    ///
    /// [`CliError::Operation`] with the first interface on which it does not work.
    pub(crate) async fn ensure(
        &mut self,
        host: &mut Host,
        interfaces: &[String],
        program: Option<&Program>,
    ) -> Result<(), CliError> {
        if let Some(program) = program {
            for interface in interfaces {
                self.put(host, interface, program).await.map_err(CliError::Operation)?;
            }
        }
        self.warned.clear();
        self.detach_except(host, if program.is_some() { interfaces } else { &[] }).await
    }

    /// The interfaces that have the filter already.
    ///
    /// # Errors
    ///
    /// [`CliError::Operation`].
    pub(crate) async fn interfaces(&self, host: &Host) -> Result<Vec<String>, CliError> {
        host.interfaces_with(self.direction, &self.spec).await.map_err(CliError::operation)
    }

    /// Replaces the program where the filter is already, and attaches nowhere else.
    ///
    /// # Errors
    ///
    /// [`CliError::Operation`] with the first interface on which it does not work.
    pub(crate) async fn replace(
        &mut self,
        host: &mut Host,
        program: &Program,
    ) -> Result<(), CliError> {
        for interface in self.interfaces(host).await? {
            self.put(host, &interface, program).await.map_err(CliError::Operation)?;
        }
        Ok(())
    }

    /// Detaches from interfaces that are not listed.
    ///
    /// # Errors
    ///
    /// [`CliError::Operation`].
    pub(crate) async fn detach_except(
        &mut self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<(), CliError> {
        for interface in host
            .detach_except(self.direction, &self.spec, keep)
            .await
            .map_err(CliError::operation)?
        {
            self.attached_on.remove(&interface);
            info!("{interface}: program at TC {} detached", self.direction);
        }
        Ok(())
    }

    /// Attaches again where the filter is gone; trouble is logged, once, and looked at again the
    /// next time.
    pub(crate) async fn watch(
        &mut self,
        host: &mut Host,
        interfaces: &[String],
        program: &Program,
    ) {
        for interface in interfaces {
            match self.put(host, interface, program).await {
                Ok(()) => {
                    if self.warned.remove(interface).is_some() {
                        info!("{interface}: attached again");
                    }
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if self.warned.get(interface) != Some(&text) {
                        warn!("{text}; it is tried again");
                        self.warned.insert(interface.clone(), text);
                    }
                }
            }
        }
    }

    async fn put(
        &mut self,
        host: &mut Host,
        interface: &str,
        program: &Program,
    ) -> anyhow::Result<()> {
        let (spec, direction) = (&self.spec, self.direction);
        let attach = async {
            let id = program.id()?;
            let running = host.attached(interface, direction, spec).await?;
            if running == Some(id) {
                return Ok(None);
            }
            let attached = host.attach(interface, direction, spec, program.descriptor()).await?;
            anyhow::Ok(Some((running, attached)))
        };
        let changed = attach.await.with_context(|| format!("cannot attach to {interface}"))?;
        let first = self.attached_on.insert(interface.to_owned());
        match changed {
            None => {}
            Some((None, _)) if !first => {
                warn!("{interface}: the filter {} was gone, attached it again", self.spec.name);
            }
            Some((_, attached)) => {
                info!(
                    "{interface}: program {attached:?} at TC {direction}, priority {}",
                    self.spec.priority
                );
            }
        }
        Ok(())
    }
}

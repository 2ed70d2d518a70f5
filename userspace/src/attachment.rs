//! A filter of a daemon on one side of its interfaces: put where it is missing, replaced where it
//! runs another program, and watched.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use tracing::{info, warn};

use crate::bpf::Program;
use crate::failure::Failure;
use crate::host::Host;
use crate::netlink::{Direction, FilterSpec};

/// Where a daemon's filter is.
pub(crate) struct Attachment {
    spec: FilterSpec,
    direction: Direction,
    /// Interfaces on which this daemon has seen its filter in place.
    there: BTreeSet<String>,
    /// What was said of an interface that is in trouble, to say it once.
    said: BTreeMap<String, String>,
}

impl Attachment {
    /// Nothing is known of the interfaces yet.
    pub(crate) fn new(spec: FilterSpec, direction: Direction) -> Self {
        Self { spec, direction, there: BTreeSet::new(), said: BTreeMap::new() }
    }

    /// Attaches to each interface that does not run `program` yet, then detaches from those that
    /// are not listed.
    ///
    /// # Errors
    ///
    /// [`Failure::Operation`] with the first interface on which it does not work.
    pub(crate) async fn ensure(
        &mut self,
        host: &mut Host,
        interfaces: &[String],
        program: Option<&Program>,
    ) -> Result<(), Failure> {
        if let Some(program) = program {
            for interface in interfaces {
                self.put(host, interface, program).await.map_err(Failure::Operation)?;
            }
        }
        self.said.clear();
        self.detach_except(host, if program.is_some() { interfaces } else { &[] }).await
    }

    /// The interfaces that have the filter already.
    ///
    /// # Errors
    ///
    /// [`Failure::Operation`].
    pub(crate) async fn interfaces(&self, host: &Host) -> Result<Vec<String>, Failure> {
        host.interfaces_with(self.direction, &self.spec).await.map_err(Failure::operation)
    }

    /// Replaces the program where the filter is already, and attaches nowhere else.
    ///
    /// # Errors
    ///
    /// [`Failure::Operation`] with the first interface on which it does not work.
    pub(crate) async fn replace(
        &mut self,
        host: &mut Host,
        program: &Program,
    ) -> Result<(), Failure> {
        for interface in self.interfaces(host).await? {
            self.put(host, &interface, program).await.map_err(Failure::Operation)?;
        }
        Ok(())
    }

    /// Detaches from interfaces that are not listed.
    ///
    /// # Errors
    ///
    /// [`Failure::Operation`].
    pub(crate) async fn detach_except(
        &mut self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<(), Failure> {
        for interface in host
            .detach_except(self.direction, &self.spec, keep)
            .await
            .map_err(Failure::operation)?
        {
            self.there.remove(&interface);
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
                    if self.said.remove(interface).is_some() {
                        info!("{interface}: attached again");
                    }
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if self.said.get(interface) != Some(&text) {
                        warn!("{text}; it is tried again");
                        self.said.insert(interface.clone(), text);
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
        let first = self.there.insert(interface.to_owned());
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

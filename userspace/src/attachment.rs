//! The filter of one daemon on its interfaces: put where it is missing, replaced where it runs another program, and watched.

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
    /// Interfaces on which this daemon has seen its filter in place.
    there: BTreeSet<String>,
    /// What was said of an interface that is in trouble, to say it once.
    said: BTreeMap<String, String>,
}

impl Attachment {
    /// Nothing is known of the interfaces yet.
    pub(crate) fn new(spec: FilterSpec) -> Self {
        Self { spec, there: BTreeSet::new(), said: BTreeMap::new() }
    }

    /// Attaches to each interface that does not run `program` yet, then detaches from those that are not listed.
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
        let keep = if program.is_some() { interfaces } else { &[] };
        for interface in host.detach_except(Direction::Ingress, &self.spec, keep).await.map_err(Failure::operation)? {
            self.there.remove(&interface);
            info!("{interface}: program detached");
        }
        self.said.clear();
        Ok(())
    }

    /// Attaches again where the filter is gone; trouble is logged, once, and looked at again the next time.
    pub(crate) async fn watch(&mut self, host: &mut Host, interfaces: &[String], program: &Program) {
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

    async fn put(&mut self, host: &mut Host, interface: &str, program: &Program) -> anyhow::Result<()> {
        let spec = &self.spec;
        let attach = async {
            let id = program.id()?;
            let running = host.attached(interface, Direction::Ingress, spec).await?;
            if running == Some(id) {
                return Ok(None);
            }
            let attached = host.attach(interface, Direction::Ingress, spec, program.descriptor()).await?;
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
                info!("{interface}: program {attached:?} at TC ingress, priority {}", self.spec.priority);
            }
        }
        Ok(())
    }
}

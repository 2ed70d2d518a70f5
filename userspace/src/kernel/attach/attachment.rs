//! A program that is kept attached to a set of targets.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use tracing::{info, warn};

use super::AttachPoint;
use crate::clock::REFRESH;
use crate::error::CliError;
use crate::kernel::bpf::Program;
use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::{self, Attached};
use crate::text::chain;

/// An attach point, and the targets of this daemon.
pub(crate) struct Attachment {
    point: AttachPoint,
    /// Targets where this daemon has found or attached a program, and the program's ID.
    attached_on: BTreeMap<String, u32>,
    /// The error that was logged for a target, to log it once.
    warned: BTreeMap<String, String>,
    /// Whether the program stays attached elsewhere until it is attached to all targets.
    keeps_others: bool,
}

impl Attachment {
    pub(crate) fn new(point: AttachPoint) -> Self {
        Self { point, attached_on: BTreeMap::new(), warned: BTreeMap::new(), keeps_others: false }
    }

    /// Checks that [`Self::move_to`] is possible; a place that is taken is bad input.
    pub(crate) async fn check_move(&self, host: &Host, to: &Self) -> Result<(), CliError> {
        if self.point != to.point {
            for target in self.targets(host).await? {
                let checked = to.point.check(host, &target).await;
                checked
                    .with_context(|| format!("cannot move the program on {target}"))
                    .map_err(CliError::BadInput)?;
            }
        }
        Ok(())
    }

    /// Takes another attach point. The program stays attached at the earlier one until the next
    /// [`Self::ensure`].
    pub(crate) fn move_to(&mut self, to: Self) {
        if self.point != to.point {
            *self = to;
        }
    }

    /// Attaches to each target that does not run `program`, then detaches from all other targets.
    /// Without a program it only detaches. Fails at the first target that fails; one that does not
    /// exist is logged once, and [`Self::watch`] tries it again.
    pub(crate) async fn ensure(
        &mut self,
        host: &mut Host,
        targets: &[String],
        program: Option<&Program>,
    ) -> Result<(), CliError> {
        let Some(program) = program else {
            self.warned.clear();
            return self.detach_except(host, &[]).await;
        };
        for target in targets {
            match self.put(host, target, program).await {
                Ok(_) => drop(self.warned.remove(target)),
                Err(error) if is_missing(&error) => self.warn_once(target, &error),
                Err(error) => return Err(CliError::Operation(error)),
            }
        }
        self.detach_others(host, targets, program).await
    }

    /// Detaches from all targets but these. While the program is not attached to all of these, for
    /// example because an interface was renamed, it stays attached to the others.
    pub(crate) async fn detach_others(
        &mut self,
        host: &mut Host,
        targets: &[String],
        program: &Program,
    ) -> Result<(), CliError> {
        self.warned.retain(|target, _| targets.contains(target));
        self.keeps_others = !self.warned.is_empty();
        if !self.keeps_others {
            return self.detach_except(host, targets).await;
        }
        let attached = self.targets(host).await?;
        for other in attached.iter().filter(|target| !targets.contains(target)) {
            self.put(host, other, program).await.map_err(CliError::Operation)?;
        }
        if attached.iter().any(|target| self.warned.contains_key(target)) {
            // Attached at the point of an earlier configuration only.
            return Ok(());
        }
        let keep: Vec<_> = attached.into_iter().chain(targets.iter().cloned()).collect();
        self.detach_except(host, &keep).await
    }

    /// The errors of targets where the program cannot be attached.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &str> {
        self.warned.values().map(String::as_str)
    }

    /// The targets where a program is attached, by this daemon or an earlier one, also at the
    /// attach point of an earlier configuration.
    pub(crate) async fn targets(&self, host: &Host) -> Result<BTreeSet<String>, CliError> {
        let mut targets = BTreeSet::new();
        for point in self.point.places(host) {
            targets.extend(point.targets(host).await.map_err(CliError::operation)?);
        }
        Ok(targets)
    }

    /// Replaces the program where one is attached. Fails at the first target that fails.
    pub(crate) async fn replace(
        &mut self,
        host: &mut Host,
        program: &Program,
    ) -> Result<(), CliError> {
        for point in self.point.places(host) {
            for target in point.targets(host).await.map_err(CliError::operation)? {
                put(&point, host, &target, program).await.map_err(CliError::Operation)?;
            }
        }
        Ok(())
    }

    /// Detaches from all targets but `keep`.
    pub(crate) async fn detach_except(
        &mut self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<(), CliError> {
        for target in self.point.detach_except(host, keep).await.map_err(CliError::operation)? {
            self.attached_on.remove(&target);
            info!(%target, at = %self.point, "program detached");
        }
        Ok(())
    }

    /// Attaches again where the program is missing. An error is logged once, and the next call
    /// tries again.
    pub(crate) async fn watch(&mut self, host: &mut Host, targets: &[String], program: &Program) {
        for target in targets {
            let before = self.attached_on.get(target).copied();
            match self.put(host, target, program).await {
                Ok(changed) => {
                    // The same program was attached before.
                    if changed.is_some() && self.attached_on.get(target).copied() == before {
                        host.count_repairs([format_args!("{} on {target}", self.point)]);
                    }
                    if self.warned.remove(target).is_some() {
                        info!(%target, at = %self.point, "program attached after an error");
                    }
                }
                Err(error) => self.warn_once(target, &error),
            }
        }
        if self.keeps_others
            && self.warned.is_empty()
            && let Err(error) = self.detach_others(host, targets, program).await
        {
            warn!(%error, "cannot detach the program; trying again with the next reload");
        }
    }

    /// Logs the error of a target, once for as long as it lasts.
    fn warn_once(&mut self, target: &str, error: &anyhow::Error) {
        // The error of a missing target lists those that exist, which may change.
        let text = match is_missing(error) {
            true => format!("cannot attach to {target}: it does not exist"),
            false => chain(error.as_ref()),
        };
        if self.warned.get(target) != Some(&text) {
            warn!("{text}; trying again every {} s", REFRESH.as_secs());
            self.warned.insert(target.to_owned(), text);
        }
    }

    /// Attaches a program to a target that does not run it; `None` if it does.
    async fn put(
        &mut self,
        host: &mut Host,
        target: &str,
        program: &Program,
    ) -> anyhow::Result<Option<Attached>> {
        let (id, changed) = put(&self.point, host, target, program).await?;
        self.attached_on.insert(target.to_owned(), id);
        Ok(changed)
    }
}

/// Whether the target does not exist.
fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(HostError::Netlink(netlink::Error::NoInterface { .. })))
}

/// Attaches a program to a target that does not run it. Returns the program's ID, and `None` if the
/// target runs it already.
async fn put(
    point: &AttachPoint,
    host: &mut Host,
    target: &str,
    program: &Program,
) -> anyhow::Result<(u32, Option<Attached>)> {
    let attach = async {
        let id = program.id()?;
        if point.program_id(host, target).await? == Some(id) {
            return Ok((id, None));
        }
        anyhow::Ok((id, Some(point.attach(host, target, program.descriptor()).await?)))
    };
    let (id, changed) = attach.await.with_context(|| format!("cannot attach to {target}"))?;
    match changed {
        None => {}
        Some(Attached::Created) => info!(%target, at = %point, "program attached"),
        Some(Attached::Replaced) => info!(%target, at = %point, "program replaced"),
    }
    Ok((id, changed))
}

//! Attaching programs, whatever the hook.
//!
//! [`AttachPoint`] is the seam: each kind of hook attaches, replaces, lists and detaches a program
//! on its targets (interfaces or cgroups), with an entry in the journal that is written before the
//! change and by which it is undone. [`Attachment`] keeps a program attached to a set of targets.

mod attachment;
mod tc;

use std::fmt;
use std::os::fd::BorrowedFd;

pub(crate) use attachment::Attachment;
pub use tc::TcFilter;

use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::Attached;

/// A kind of hook, with the identity of our attachment there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachPoint {
    /// A filter at TC ingress or egress of interfaces.
    Tc(TcFilter),
}

impl AttachPoint {
    /// The ID of the program that is attached to a target by us; `None` if there is none.
    pub async fn program_id(&self, host: &Host, target: &str) -> Result<Option<u32>, HostError> {
        match self {
            Self::Tc(filter) => filter.program_id(host, target).await,
        }
    }

    /// Attaches a program to a target, or replaces our previous one atomically.
    pub async fn attach(
        &self,
        host: &mut Host,
        target: &str,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        match self {
            Self::Tc(filter) => filter.attach(host, target, program).await,
        }
    }

    /// The targets where a program is attached by us.
    pub async fn targets(&self, host: &Host) -> Result<Vec<String>, HostError> {
        match self {
            Self::Tc(filter) => filter.targets(host).await,
        }
    }

    /// Detaches from all targets but `keep`, and returns them. Targets that no longer exist are
    /// removed from the journal.
    pub async fn detach_except(
        &self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        match self {
            Self::Tc(filter) => filter.detach_except(host, keep).await,
        }
    }
}

impl fmt::Display for AttachPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tc(filter) => filter.fmt(f),
        }
    }
}

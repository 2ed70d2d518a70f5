//! Attaching programs, whatever the hook.
//!
//! [`AttachPoint`] is the seam: each kind of hook attaches, replaces, lists and detaches a program
//! on its targets (interfaces or cgroups), with an entry in the journal that is written before the
//! change and by which it is undone. `Attachment` keeps a program attached to a set of targets.

mod attachment;
mod cgroup;
mod error;
mod ingress;
mod tc;
mod xdp;

use std::fmt;
use std::os::fd::BorrowedFd;

pub(crate) use attachment::Attachment;
pub use cgroup::CgroupLink;
pub use ingress::{IngressHook, IngressPath, Predecessor, ingress_path};
pub use tc::TcFilter;
pub use xdp::{XdpLink, XdpMode};

use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::Attached;

/// A kind of hook, with the identity of our attachment there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachPoint {
    /// A filter at TC ingress or egress of interfaces.
    Tc(TcFilter),
    /// A link on the XDP hook of interfaces.
    Xdp(XdpLink),
    /// A link on a hook of cgroups.
    Cgroup(CgroupLink),
}

impl AttachPoint {
    /// The ID of the program that is attached to a target by us; `None` if there is none.
    pub async fn program_id(&self, host: &Host, target: &str) -> Result<Option<u32>, HostError> {
        match self {
            Self::Tc(filter) => filter.program_id(host, target).await,
            Self::Xdp(link) => link.program_id(host, target).await,
            Self::Cgroup(link) => link.program_id(target),
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
            Self::Xdp(link) => link.attach(host, target, program).await,
            Self::Cgroup(link) => link.attach(host, target, program),
        }
    }

    /// Checks that a program can be attached to a target, if that exists.
    pub async fn check(&self, host: &Host, target: &str) -> Result<(), HostError> {
        match self {
            Self::Tc(filter) => filter.check(host, target).await,
            // Pins have names of their own.
            Self::Xdp(_) | Self::Cgroup(_) => Ok(()),
        }
    }

    /// The attach points of our programs: this one, and those of earlier configurations.
    pub fn places(&self, host: &Host) -> Vec<Self> {
        match self {
            Self::Tc(filter) => filter.places(host).into_iter().map(Self::Tc).collect(),
            Self::Xdp(_) | Self::Cgroup(_) => vec![self.clone()],
        }
    }

    /// The targets where a program is attached by us.
    pub async fn targets(&self, host: &Host) -> Result<Vec<String>, HostError> {
        match self {
            Self::Tc(filter) => filter.targets(host).await,
            Self::Xdp(link) => link.targets(host).await,
            Self::Cgroup(link) => link.targets(host),
        }
    }

    /// Detaches from all targets but `keep`, and everywhere at the attach points of earlier
    /// configurations. Returns the targets that are not in `keep`. Targets that no longer exist are
    /// removed from the journal.
    pub async fn detach_except(
        &self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        match self {
            Self::Tc(filter) => filter.detach_except(host, keep).await,
            Self::Xdp(link) => link.detach_except(host, keep).await,
            Self::Cgroup(link) => link.detach_except(host, keep),
        }
    }
}

impl fmt::Display for AttachPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tc(filter) => filter.fmt(f),
            Self::Xdp(link) => link.fmt(f),
            Self::Cgroup(link) => link.fmt(f),
        }
    }
}

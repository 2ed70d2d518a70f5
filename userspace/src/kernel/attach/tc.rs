//! Filters at TC.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::{Attached, Direction, FilterSpec};

/// A filter on one side of interfaces. Targets are interface names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcFilter {
    /// The filter's name and priority, by which it is found again.
    pub spec: FilterSpec,
    /// The side of the interface.
    pub direction: Direction,
}

impl TcFilter {
    pub(super) async fn program_id(
        &self,
        host: &Host,
        interface: &str,
    ) -> Result<Option<u32>, HostError> {
        host.attached(interface, self.direction, &self.spec).await
    }

    pub(super) async fn attach(
        &self,
        host: &mut Host,
        interface: &str,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        host.attach(interface, self.direction, &self.spec, program).await
    }

    pub(super) async fn targets(&self, host: &Host) -> Result<Vec<String>, HostError> {
        host.interfaces_with(self.direction, &self.spec).await
    }

    pub(super) async fn detach_except(
        &self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        host.detach_except(self.direction, &self.spec, keep).await
    }
}

impl fmt::Display for TcFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "filter {} at TC {}, priority {}",
            self.spec.name, self.direction, self.spec.priority
        )
    }
}

//! Filters at TC.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::{self, Attached, Direction, FilterSpec};

/// A filter on one side of interfaces. Targets are interface names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcFilter {
    /// The filter's name and priority, by which it is found again.
    pub spec: FilterSpec,
    /// The side of the interface.
    pub direction: Direction,
    /// The setting of the priority in the configuration, for messages.
    pub setting: &'static str,
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
        let attached = host.attach(interface, self.direction, &self.spec, program).await;
        attached.map_err(|error| self.with_setting(error))
    }

    /// Checks that the filter can be attached to an interface, if that exists.
    pub(super) async fn check(&self, host: &Host, interface: &str) -> Result<(), HostError> {
        let checked = host.check_place(interface, self.direction, &self.spec).await;
        checked.map_err(|error| self.with_setting(error))
    }

    /// Adds the setting to the error about a priority that is taken.
    fn with_setting(&self, error: HostError) -> HostError {
        match error {
            HostError::Netlink(held @ netlink::Error::Held { .. }) => {
                HostError::Held { held, setting: self.setting }
            }
            error => error,
        }
    }

    /// The filter at each priority where it is attached or was: that of an earlier configuration,
    /// too.
    pub(super) fn places(&self, host: &Host) -> Vec<Self> {
        let priorities = host.priorities(self.direction, &self.spec.name);
        let at = |priority| FilterSpec { priority, ..self.spec.clone() };
        priorities.into_iter().map(|priority| Self { spec: at(priority), ..self.clone() }).collect()
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

//! The resources that a daemon acquires before it changes anything.

use tracing::warn;

use super::teardown::{self, Scope};
use crate::error::CliError;
use crate::kernel::bpf::Pins;
use crate::lock::Lock;
use crate::role::Role;

/// The lock and the pins of a role of an instance.
pub(crate) struct InstanceGuard {
    /// The instance.
    pub(crate) instance: String,
    role: Role,
    /// The lock of the role.
    pub(crate) lock: Lock,
    /// The pins of its maps.
    pub(crate) pins: Pins,
    /// Whether the role had no pins and no journal before.
    is_first_start: bool,
}

impl InstanceGuard {
    /// Whether the role has no pins and no journal: it has never handled packets since the host
    /// started.
    pub(crate) fn is_first_start(instance: &str, role: Role) -> Result<bool, CliError> {
        let pins = Pins::find(instance, role).map_err(CliError::operation)?;
        Ok(!pins.as_ref().is_some_and(Pins::exist) && !Lock::state_exists(instance, role))
    }

    /// Takes the lock. Fails if the pins are of another layout version.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, CliError> {
        let pins = Pins::mount(instance, role).map_err(CliError::operation)?;
        pins.check_layout().map_err(CliError::operation)?;
        let lock = Lock::take(instance, role)?;
        if pins.are_private() {
            warn!(
                "the BPF file system is mounted only in this mount namespace: other processes do not \
                 see the pins, and the next daemon starts with empty maps; start it by `nsenter \
                 --net=/run/netns/NAME` instead of `ip netns exec NAME`"
            );
        }
        let is_first_start = !pins.exist() && !Lock::state_exists(instance, role);
        Ok(Self { instance: instance.to_owned(), role, lock, pins, is_first_start })
    }

    /// Checks that the files of the role are still in the state directory.
    pub(crate) fn check_files(&self) -> Result<(), CliError> {
        self.lock.check_files(&self.instance, self.role)
    }

    /// Ends a failed start, as [`Self::undo_first_start`].
    pub(crate) async fn give_up(self, error: CliError) -> CliError {
        self.undo_first_start().await;
        error
    }

    /// Undoes everything if it was the first start. Otherwise everything stays, because the
    /// programs of the earlier daemon may be handling packets.
    pub(crate) async fn undo_first_start(self) {
        if self.is_first_start
            && let Err(undo) =
                teardown::role(&self.instance, self.role, self.lock, Scope::Journal).await
        {
            warn!(error = %undo, "cannot undo the failed start");
        }
    }
}

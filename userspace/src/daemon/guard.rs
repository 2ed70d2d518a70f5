//! What a daemon takes before it changes anything.

use tracing::warn;

use super::lock::Lock;
use super::teardown;
use crate::error::CliError;
use crate::kernel::bpf::Pins;
use crate::role::Role;

/// What a daemon holds before it touches anything: the lock, and whether anything of its role was
/// here before.
pub(crate) struct InstanceGuard {
    /// The instance.
    pub(crate) instance: String,
    role: Role,
    /// The lock of the role.
    pub(crate) lock: Lock,
    /// Where its maps are, or will be.
    pub(crate) pins: Pins,
    fresh: bool,
}

impl InstanceGuard {
    /// Takes the lock, unless the pins are of a layout that this binary does not know.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, CliError> {
        let pins = Pins::mount(instance, role).map_err(CliError::operation)?;
        pins.check_layout().map_err(CliError::operation)?;
        let lock = Lock::take(instance, role)?;
        let fresh = !pins.exist() && !Lock::state_exists(instance, role);
        Ok(Self { instance: instance.to_owned(), role, lock, pins, fresh })
    }

    /// Ends a start that failed. What this start made is undone, so that nothing is half done; what
    /// was there before, and may well forward packets, stays.
    pub(crate) async fn give_up(self, failure: CliError) -> CliError {
        if self.fresh
            && let Err(undo) = teardown::role(&self.instance, self.role, Some(self.lock)).await
        {
            warn!("{undo}");
        }
        failure
    }
}

//! The runtime, and the service manager's notifications.

use crate::error::CliError;

/// Runs a future on a single-threaded runtime.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::operation)?;
    runtime.block_on(future)
}

/// Notifies the service manager of the daemon's state (`sd_notify`).
pub(crate) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Fails without a service manager.
    let _ = sd_notify::notify(states);
}

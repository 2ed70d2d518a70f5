//! The log, the runtime, and the service manager's notifications.

use tracing_subscriber::EnvFilter;

use crate::error::CliError;

/// Starts the log: standard error, one line per event, level by `SLUICE_LOG` (default `info`).
pub(crate) fn log() {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails if a log was started already, as in tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        // A failed write would be reported on standard error, which panics where that fails too.
        .log_internal_errors(false)
        .try_init();
}

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

//! The log, the runtime, and the service manager's notifications.

use std::fmt;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::error::CliError;
use crate::text::escape;

/// Starts the log: standard error, one line per event, level by `SLUICE_LOG` (default `info`).
pub(crate) fn log() {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails if a log was started already, as in tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .fmt_fields(debug_fn(write_field).delimited(" "))
        // A failed write would be reported on standard error, which panics where that fails too.
        .log_internal_errors(false)
        .try_init();
}

/// Writes a field of an event on one line, with control characters escaped: values contain file
/// names and errors of other programs.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => writer.write_str(&escape(&value)),
        name => write!(writer, "{name}={}", escape(&value)),
    }
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

//! Standard output and standard error.

use serde::Serialize;

use crate::daemon::log;
use crate::error::CliError;
use crate::text;

/// Writes a line to standard error, with control characters escaped. If that is impossible, the
/// line is lost.
pub fn report(line: &str) {
    log::print_error(&format!("{}\n", text::escape_lines(line)));
}

/// Writes lines of text to standard output, with other control characters escaped.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    write(&text::escape_lines(text))
}

/// Writes JSON to standard output.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let json = serde_json::to_string_pretty(value).map_err(CliError::operation)?;
    write(&format!("{json}\n"))
}

/// Writes to standard output. A reader that closed its end (`| head`) is not an error.
fn write(text: &str) -> Result<(), CliError> {
    use std::io::{ErrorKind, Write as _};

    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::operation(
            anyhow::Error::from(error).context("cannot write to standard output"),
        )),
        _ => Ok(()),
    }
}

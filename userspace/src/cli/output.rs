//! Standard output and standard error.

use crate::error::CliError;

/// Writes a line to standard error. If that is impossible, the line is lost, where `eprintln!`
/// would panic.
pub fn report(line: &str) {
    use std::io::Write as _;

    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes `text` to standard output. A reader that closed its end (`| head`) is not an error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    use std::io::{ErrorKind, Write as _};

    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::operation(
            anyhow::Error::from(error).context("cannot write to standard output"),
        )),
        _ => Ok(()),
    }
}

//! Standard output.

use crate::error::CliError;

/// Writes `text` to standard output. A reader that stops reading (`| head`) is no error.
///
/// # Errors
/// [`CliError::Operation`] when standard output takes no more, as on a full disk.
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

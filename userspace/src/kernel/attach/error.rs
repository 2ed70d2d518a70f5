//! Errors of link operations.

use std::io;
use std::path::Path;

use crate::kernel::host::HostError;

/// The error of an operation on the link at `path`.
pub(super) fn link_failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Link { doing, path: path.to_owned(), source }
}

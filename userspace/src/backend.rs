//! `sluice backend`.

use anyhow::anyhow;

use crate::cli::Backend;
use crate::failure::Failure;

/// Runs `sluice backend`.
///
/// # Errors
/// Always [`Failure::Operation`]: this build has no `sluice backend`.
pub fn run(_args: &Backend) -> Result<(), Failure> {
    Err(Failure::operation(anyhow!(
        "`sluice backend` is not built yet"
    )))
}

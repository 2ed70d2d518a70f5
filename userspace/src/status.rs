//! `sluice status`.

use anyhow::anyhow;

use crate::cli::Show;
use crate::failure::Failure;

/// Runs `sluice status`.
///
/// # Errors
/// Always [`Failure::Operation`]: this build has no `sluice status`.
pub fn run(_args: &Show) -> Result<(), Failure> {
    Err(Failure::operation(anyhow!(
        "`sluice status` is not built yet"
    )))
}

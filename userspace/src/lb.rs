//! `sluice lb`.

use anyhow::anyhow;

use crate::cli::Lb;
use crate::failure::Failure;

/// Runs `sluice lb`.
///
/// # Errors
/// Always [`Failure::Operation`]: this build has no `sluice lb`.
pub fn run(_args: &Lb) -> Result<(), Failure> {
    Err(Failure::operation(anyhow!("`sluice lb` is not built yet")))
}

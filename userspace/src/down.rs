//! `sluice down`.

use anyhow::anyhow;

use crate::cli::Down;
use crate::failure::Failure;

/// Runs `sluice down`.
///
/// # Errors
/// Always [`Failure::Operation`]: this build has no `sluice down`.
pub fn run(_args: &Down) -> Result<(), Failure> {
    Err(Failure::operation(anyhow!(
        "`sluice down` is not built yet"
    )))
}

//! `sluice counters`.

use anyhow::anyhow;

use crate::cli::Show;
use crate::failure::Failure;

/// Runs `sluice counters`.
///
/// # Errors
/// Always [`Failure::Operation`]: this build has no `sluice counters`.
pub fn run(_args: &Show) -> Result<(), Failure> {
    Err(Failure::operation(anyhow!(
        "`sluice counters` is not built yet"
    )))
}

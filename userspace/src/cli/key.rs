//! `sluice key`.

use crate::args::KeyNewArgs;
use crate::cli::output::print;
use crate::error::CliError;
use crate::key::HashKey;

/// Runs `sluice key new`.
pub(super) fn create(args: &KeyNewArgs) -> Result<(), CliError> {
    let key = HashKey::generate()?;
    match &args.out {
        Some(file) => {
            key.save(file)?;
            print(&format!("wrote {} (fingerprint {})\n", file.display(), key.fingerprint()))
        }
        None => print(&format!("{}\n", key.to_hex())),
    }
}

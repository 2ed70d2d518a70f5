//! `sluice key`.

use crate::args::KeyNewArgs;
use crate::cli::output::print;
use crate::error::CliError;
use crate::key::HashKey;
use crate::text::escape;

/// Runs `sluice key new`.
pub(super) fn create(args: &KeyNewArgs) -> Result<(), CliError> {
    let key = HashKey::generate()?;
    match &args.out {
        Some(file) => {
            key.save(file)?;
            let path = file.display().to_string();
            print(&format!("wrote {} (fingerprint {})\n", escape(&path), key.fingerprint()))
        }
        None => print(&format!("{}\n", key.to_hex())),
    }
}

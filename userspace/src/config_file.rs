//! Reads a configuration file.

use std::io::{self, ErrorKind};
use std::path::Path;

use siphasher::sip::SipHasher24;
use sluice_control::config::limits::MAX_FILE_BYTES;
use sluice_control::config::{Config, ConfigError};

use crate::files::input;

/// A configuration file, read once.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// The configuration.
    pub config: Config,
    /// Digest of the text, by which `sluice status` shows which configuration is in force.
    pub digest: u64,
}

/// Reads and validates a configuration file.
pub fn load(path: &Path) -> Result<ConfigFile, ConfigError> {
    let text = read(path)?;
    input::warn_if_shared(path);
    Ok(ConfigFile { config: Config::parse(&text, path)?, digest: digest_of(&text) })
}

/// Digest of a configuration file's text.
pub fn digest(path: &Path) -> Result<u64, ConfigError> {
    Ok(digest_of(&read(path)?))
}

fn digest_of(text: &str) -> u64 {
    SipHasher24::new().hash(text.as_bytes())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let file = input::read(path, MAX_FILE_BYTES).map_err(|error: io::Error| {
        let problem = match error.kind() {
            ErrorKind::FileTooLarge => format!(
                "larger than {} MiB, so it is not a configuration; name a JSON file",
                MAX_FILE_BYTES >> 20
            ),
            ErrorKind::InvalidInput => format!("{error}; name a JSON file"),
            _ => format!("cannot read it: {error}"),
        };
        ConfigError::whole(path, problem)
    })?;
    String::from_utf8(file.bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        ConfigError::whole(path, format!("not UTF-8 at byte {offset}; save it as UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../docs/examples/edge.json");

    #[test]
    fn the_example_in_the_documentation_loads() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/edge.json");
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.config, Config::parse(EXAMPLE, &path).unwrap());
        assert_eq!(loaded.digest, digest(&path).unwrap());
    }

    #[test]
    fn an_unreadable_or_binary_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.json");
        let error = load(&missing).unwrap_err();
        assert_eq!(error.file(), missing);
        assert!(error.message().contains("cannot read it"), "{error}");
        let binary = directory.path().join("binary.json");
        std::fs::write(&binary, b"{\xff}").unwrap();
        assert!(load(&binary).unwrap_err().message().contains("not UTF-8 at byte 1"));
        for path in [directory.path(), Path::new("/dev/zero")] {
            let error = load(path).unwrap_err();
            assert_eq!(error.message(), "not a regular file; name a JSON file");
        }
    }

    #[test]
    fn a_configuration_has_at_most_64_mib() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("edge.json");
        let size = |bytes: usize| {
            let mut text = EXAMPLE.to_owned();
            text.extend(std::iter::repeat_n('\n', bytes - text.len()));
            std::fs::write(&file, text).unwrap();
            load(&file)
        };
        assert!(size(64 << 20).is_ok());
        let error = size((64 << 20) + 1).unwrap_err();
        assert!(
            error.message().contains("larger than 64 MiB")
                && error.message().contains("name a JSON file"),
            "{error}"
        );
    }
}

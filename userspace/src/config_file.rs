//! Reads a configuration file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sluice_control::config::limits::MAX_FILE_BYTES;
use sluice_control::config::{Config, ConfigError};

/// Reads and validates a configuration file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    Config::parse(&read(path)?, path)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable =
        |error: io::Error| ConfigError::whole(path, format!("cannot read it: {error}"));
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let problem = format!(
            "larger than {} MiB, so it is not a configuration; name a JSON file",
            MAX_FILE_BYTES >> 20
        );
        return Err(ConfigError::whole(path, problem));
    }
    String::from_utf8(bytes).map_err(|error| {
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
        assert_eq!(load(&path), Config::parse(EXAMPLE, &path));
    }

    #[test]
    fn an_unreadable_or_binary_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.json");
        let error = load(&missing).unwrap_err();
        assert_eq!(error.file(), missing);
        assert!(error.message().contains("cannot read it"), "{error}");
        assert!(load(directory.path()).unwrap_err().message().contains("cannot read it"));
        let binary = directory.path().join("binary.json");
        std::fs::write(&binary, b"{\xff}").unwrap();
        assert!(load(&binary).unwrap_err().message().contains("not UTF-8 at byte 1"));
        let endless = load(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.message().contains("larger than 64 MiB"), "{endless}");
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

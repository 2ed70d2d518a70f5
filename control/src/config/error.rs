//! Errors of a configuration.

use std::fmt;
use std::path::{Path, PathBuf};

/// The first error of a configuration: the file, the location in it, and a message with the remedy.
///
/// Displayed as `edge.json: services[2].backends[0].weight: ...`, or as `edge.json:7:3: ...` (line
/// and column, from 1) for a text that is not JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    location: ErrorLocation,
    message: String,
}

/// A location in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ErrorLocation {
    /// The whole file.
    File,
    /// Line and column, from 1.
    Text(usize, usize),
    /// A path such as `services[2].name`.
    Value(String),
}

impl ConfigError {
    /// An error of the whole file.
    #[must_use]
    pub fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self::new(file, ErrorLocation::File, message.into())
    }

    /// An error of the value at `location`.
    pub(super) fn at(file: &Path, location: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(file, ErrorLocation::Value(location.into()), message.into())
    }

    /// An error of serde_json at the value `path` (`.` for the whole document).
    pub(super) fn json(file: &Path, path: &str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // Its Display ends with line and column, which duplicate the location.
        let position = format!(" at line {} column {}", error.line(), error.column());
        let message = text.strip_suffix(&position).unwrap_or(&text);
        if error.is_data() {
            let location = match path {
                "." => ErrorLocation::File,
                path => ErrorLocation::Value(path.to_owned()),
            };
            Self::new(file, location, message.to_owned())
        } else {
            let location = ErrorLocation::Text(error.line(), error.column());
            Self::new(file, location, format!("not JSON: {message}"))
        }
    }

    fn new(file: &Path, location: ErrorLocation, message: String) -> Self {
        let location = match location {
            ErrorLocation::Value(path) => ErrorLocation::Value(shorten(path)),
            location => location,
        };
        Self { file: file.to_owned(), location, message: shorten(message) }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The path of the value, such as `services[2].backends[0].weight`; `None` for the whole file
    /// and for a text that is not JSON.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        match &self.location {
            ErrorLocation::Value(location) => Some(location),
            ErrorLocation::File | ErrorLocation::Text(..) => None,
        }
    }

    /// The message without file and location.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 1_000;

/// Leaves out the middle of a message that quotes a long value. The end of a message is its remedy.
pub fn shorten(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let (head, tail) = (MAX_MESSAGE / 4, message.len() - MAX_MESSAGE / 2);
    let (head, tail) = (message.floor_char_boundary(head), message.ceil_char_boundary(tail));
    format!("{} ... ({} bytes left out) ... {}", &message[..head], tail - head, &message[tail..])
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        let message = &self.message;
        match &self.location {
            ErrorLocation::File => write!(f, "{file}: {message}"),
            ErrorLocation::Text(line, column) => write!(f, "{file}:{line}:{column}: {message}"),
            ErrorLocation::Value(location) => write!(f, "{file}: {location}: {message}"),
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_message_is_left_out() {
        let message = |length| format!("\"{}\" is not a name; use letters", "é".repeat(length));
        assert_eq!(shorten(message(400)), message(400));
        let short = shorten(message(1 << 20));
        assert!(short.len() < 900 && short.starts_with("\"éé"), "{short}");
        assert!(short.ends_with("éé\" is not a name; use letters"), "{short}");
        assert!(short.contains("... (2096432 bytes left out) ..."), "{short}");
    }
}

//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// The first thing that is wrong with a configuration: the file, the place in it, and what would be
/// right.
///
/// Displayed as `edge.json: services[2].backends[0].weight: ...`, or `edge.json:7:3: ...` (line and
/// column, from 1) where the text is not JSON and so has no places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    place: Place,
    problem: String,
}

/// Where in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The file as a whole.
    File,
    /// Line and column, from 1.
    Text(usize, usize),
    /// A path such as `services[2].name`.
    Value(String),
}

impl ConfigError {
    /// The file as a whole is wrong, or could not be read.
    #[must_use]
    pub fn whole(file: &Path, problem: impl Into<String>) -> Self {
        Self::new(file, Place::File, problem.into())
    }

    /// The value at `place` is wrong.
    pub(super) fn at(file: &Path, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(file, Place::Value(place.into()), problem.into())
    }

    /// serde_json's error, at the value `path` (`.` for the whole document).
    pub(super) fn json(file: &Path, path: &str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // Its Display ends with the position, which is said elsewhere: before the text, or by the
        // place.
        let position = format!(" at line {} column {}", error.line(), error.column());
        let problem = text.strip_suffix(&position).unwrap_or(&text);
        if error.is_data() {
            let place = match path {
                "." => Place::File,
                path => Place::Value(path.to_owned()),
            };
            Self::new(file, place, problem.to_owned())
        } else {
            let place = Place::Text(error.line(), error.column());
            Self::new(file, place, format!("not JSON: {problem}"))
        }
    }

    fn new(file: &Path, place: Place, problem: String) -> Self {
        Self { file: file.to_owned(), place, problem }
    }

    /// The file that was read.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The place of the wrong value, such as `services[2].backends[0].weight`; `None` if the file
    /// as a whole is wrong or is not JSON.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        match &self.place {
            Place::Value(place) => Some(place),
            Place::File | Place::Text(..) => None,
        }
    }

    /// What is wrong, and what would be right: the message without file and place.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, problem) = (self.file.display(), &self.problem);
        match &self.place {
            Place::File => write!(f, "{file}: {problem}"),
            Place::Text(line, column) => write!(f, "{file}:{line}:{column}: {problem}"),
            Place::Value(place) => write!(f, "{file}: {place}: {problem}"),
        }
    }
}

impl std::error::Error for ConfigError {}

//! The configuration: the text of a [`Document`] becomes a checked [`Config`].
//!
//! All checks run before anything on the host is changed.

use std::path::Path;

use serde::Deserialize;

mod address;
pub mod document;
mod error;
pub mod limits;
mod model;
mod names;
mod options;
mod prefix;
mod problem;
mod renamed;
mod syntax;
#[cfg(test)]
mod tests;
mod validate;
mod vip;

pub use document::Document;
pub use error::{ConfigError, shorten};
pub use model::{
    AclFiles, AddressPolicy, BackendConfig, Config, Encapsulation, Priority, QuicConfig,
    RateLimits, RouteConfig, ServiceBackend, ServiceConfig, Underlay,
};
pub use names::{DEFAULT_INSTANCE, instance_name, interface_name};
pub use options::{FragmentPolicy, HashInput, PingPolicy, TooBigPolicy, Tracking, UnlistedPolicy};
pub use prefix::{AddressOrPrefix, PrefixError};
pub use syntax::{Bounded, JsonObject, ObjectSyntax, ScalarOrObject, Text, TextSyntax};
pub use vip::{Protocol, Vip, VipError};

impl Config {
    /// Checks `text`, the contents of `file`. Relative paths start at the directory of `file`.
    ///
    /// # Errors
    ///
    /// The first problem: JSON syntax, then `version`, then fields, types and ranges in the order
    /// of the text, then conditions on several values in the order of the fields of [`Config`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::new(Document::parse(text, file)?, file)
    }

    /// Checks `document`, the contents of `file`. Relative paths start at the directory of `file`.
    ///
    /// # Errors
    ///
    /// The first condition on several values that does not hold.
    pub fn new(document: Document, file: &Path) -> Result<Self, ConfigError> {
        let directory = file.parent().unwrap_or(Path::new(""));
        validate::validate(document, directory)
            .map_err(|problem| ConfigError::at(file, problem.location, problem.message))
    }
}

impl Document {
    /// Reads `text`, the contents of `file`.
    ///
    /// # Errors
    ///
    /// The first problem: JSON syntax, then `version`, then fields, types and ranges in the order
    /// of the text.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        if text.starts_with('\u{feff}') {
            let problem = "it starts with a byte order mark (BOM), which JSON does not allow; save it \
                           as UTF-8 without BOM";
            return Err(ConfigError::whole(file, problem));
        }
        let header: document::Header = deserialize(text, file)?;
        header.check_version().map_err(|message| ConfigError::at(file, "version", message))?;
        deserialize(text, file)
    }
}

fn deserialize<'de, T: Deserialize<'de> + ObjectSyntax>(
    text: &'de str,
    file: &Path,
) -> Result<T, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let JsonObject(value) = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ConfigError::json(file, &error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| ConfigError::json(file, ".", &error))?;
    Ok(value)
}

//! The errors of commands, by exit code.

use std::fmt;

use sluice_control::config::ConfigError;

use crate::key::KeyError;
use crate::text;

/// The error of a command. It determines the exit code.
#[derive(Debug)]
pub enum CliError {
    /// The configuration, the key file or an argument is wrong. Nothing on the host was changed.
    /// Exit code 2.
    BadInput(anyhow::Error),
    /// An operation failed on this host. Exit code 1.
    Operation(anyhow::Error),
}

impl CliError {
    /// A [`CliError::BadInput`] from any error.
    pub fn bad_input(error: impl Into<anyhow::Error>) -> Self {
        Self::BadInput(error.into())
    }

    /// A [`CliError::Operation`] from any error.
    pub fn operation(error: impl Into<anyhow::Error>) -> Self {
        Self::Operation(error.into())
    }

    /// The exit code: 2 for bad input, 1 for a failed operation.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => 2,
            Self::Operation(_) => 1,
        }
    }
}

impl fmt::Display for CliError {
    /// Writes the error and its causes on one line, with control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::BadInput(error) | Self::Operation(error)) = self;
        f.write_str(&text::escape(&text::chain(error.as_ref())))
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::bad_input(error)
    }
}

impl From<KeyError> for CliError {
    fn from(error: KeyError) -> Self {
        if error.is_bad_input() { Self::bad_input(error) } else { Self::operation(error) }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn the_cause_chain_is_one_line() {
        let error =
            Err::<(), _>(anyhow!("no\nsuch \u{1b}[31mthing")).context("cannot attach").unwrap_err();
        let error = CliError::Operation(error);
        assert_eq!(error.to_string(), "cannot attach: no\\nsuch \\u{1b}[31mthing");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn bad_input_is_exit_code_2() {
        assert_eq!(CliError::bad_input(anyhow!("typo")).exit_code(), 2);
    }
}

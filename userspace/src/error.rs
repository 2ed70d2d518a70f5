//! How a command fails: because of what it was given, or in what it tried to do.

use std::fmt;

use sluice_control::config::ConfigError;

use crate::key::KeyError;

/// Why a command failed; decides the process's exit code.
#[derive(Debug)]
pub enum CliError {
    /// What was given is wrong: the configuration, the key file, an argument. Nothing on the host
    /// was changed. Exit code 2.
    BadInput(anyhow::Error),
    /// What was asked for did not work on this host. Exit code 1.
    Operation(anyhow::Error),
}

impl CliError {
    /// A [`CliError::BadInput`] from any error, or from a sentence.
    pub fn bad_input(error: impl Into<anyhow::Error>) -> Self {
        Self::BadInput(error.into())
    }

    /// A [`CliError::Operation`] from any error, or from a sentence.
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
    /// The error and its causes on one line. Control characters, which file names and JSON keys may
    /// hold, are escaped: they would break the line or steer the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::BadInput(error) | Self::Operation(error)) = self;
        for character in format!("{error:#}").chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
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
        let failure = CliError::Operation(error);
        assert_eq!(failure.to_string(), "cannot attach: no\\nsuch \\u{1b}[31mthing");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn bad_input_is_exit_code_2() {
        assert_eq!(CliError::bad_input(anyhow!("typo")).exit_code(), 2);
    }
}

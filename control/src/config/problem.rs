//! Problems with values of a document.

use std::collections::HashMap;
use std::hash::Hash;

/// A problem with the value at a location in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// A path such as `services[2].name`.
    pub(super) location: String,
    /// The error and its remedy.
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(location: impl Into<String>, message: impl Into<String>) -> Self {
        Self { location: location.into(), message: message.into() }
    }
}

/// Adds the location to a message.
pub(super) fn at(location: impl Into<String>) -> impl FnOnce(String) -> Problem {
    |message| Problem::new(location, message)
}

/// Values that must be unique, each with the location of its first occurrence.
pub(super) struct Unique<T>(HashMap<T, String>);

impl<T: Eq + Hash> Unique<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Adds `value`, which `describe` names in the message when the value occurred before.
    pub(super) fn insert(
        &mut self,
        value: T,
        location: String,
        describe: impl Fn(&T) -> String,
    ) -> Result<(), Problem> {
        match self.0.get(&value) {
            Some(first) => {
                let message = format!(
                    "{} is already at {first}; remove or change one of the two",
                    describe(&value)
                );
                Err(Problem::new(location, message))
            }
            None => {
                self.0.insert(value, location);
                Ok(())
            }
        }
    }
}

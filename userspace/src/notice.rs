//! Notices about the state of an instance, as `sluice status` lists them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The severity of a notice, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is lost; a better configuration is possible.
    Note,
    /// Packets may be lost, or will be after another event.
    Warning,
    /// Packets are lost, or the configuration is not in force.
    Problem,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// A notice: a sentence with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Notice {
    /// Its severity.
    pub severity: Severity,
    /// The text.
    pub text: String,
}

impl Notice {
    /// The largest number of notices that a role lists, so that a response fits in a line.
    const MAX_LISTED: usize = 32;

    /// A notice of severity [`Severity::Note`].
    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, text: text.into() }
    }

    /// A notice of severity [`Severity::Warning`].
    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into() }
    }

    /// A notice of severity [`Severity::Problem`].
    pub(crate) fn problem(text: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, text: text.into() }
    }

    /// Whether it is a problem.
    pub(crate) fn is_problem(&self) -> bool {
        self.severity == Severity::Problem
    }

    /// Lists notices, the most severe first, and of many the number of the others.
    pub(crate) fn list(notices: impl Iterator<Item = Self>) -> Vec<Self> {
        let mut notices: Vec<_> = notices.collect();
        notices.sort_by_key(|notice| std::cmp::Reverse(notice.severity));
        if let Some(first) = notices.get(Self::MAX_LISTED) {
            let more = notices.len() - Self::MAX_LISTED;
            let others = Self {
                severity: first.severity,
                text: format!("{more} more notices; see the log"),
            };
            notices.truncate(Self::MAX_LISTED);
            notices.push(others);
        }
        notices
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_severe_notices_are_listed_first() {
        let notices = [Notice::note("a"), Notice::problem("b"), Notice::warning("c")];
        let texts: Vec<_> =
            Notice::list(notices.into_iter()).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["problem: b", "warning: c", "note: a"]);
    }

    #[test]
    fn of_many_notices_the_first_are_listed() {
        let list = |count: usize| {
            Notice::list((0..count).map(|number| Notice::warning(number.to_string())))
        };
        assert_eq!(list(Notice::MAX_LISTED).len(), Notice::MAX_LISTED);
        let many = list(1_000);
        assert_eq!(many.len(), Notice::MAX_LISTED + 1);
        assert_eq!(many.last(), Some(&Notice::warning("968 more notices; see the log")));
    }
}

//! The roles that a host can have.

use std::fmt;

/// A role of a host: one daemon, one set of maps and one journal for each instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The balancer.
    Lb,
    /// The backend.
    Backend,
}

impl Role {
    /// The role's name in paths and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lb => "lb",
            Self::Backend => "backend",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

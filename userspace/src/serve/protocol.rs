//! Requests to a daemon and its responses.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::notice::Notice;

/// The maximum length of a line, in bytes.
pub(crate) const MAX_LINE: u64 = 64 * 1024;

/// A request to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Read the configuration again. The response comes when the reload has ended, and all files of
    /// source ACLs were read.
    Reload,
    /// Describe the state of the daemon. The response comes at once.
    State,
}

impl Request {
    /// Whether the response waits for the core.
    pub(crate) const fn waits(self) -> bool {
        matches!(self, Self::Reload)
    }
}

/// The response of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    /// To [`Request::Reload`].
    Reload(ReloadOutcome),
    /// To [`Request::State`].
    State(DaemonState),
    /// The request was not understood, or the daemon is stopping.
    Error(String),
}

impl Response {
    /// The error for a response that does not belong to the request.
    pub(crate) fn unexpected(&self) -> String {
        match self {
            Self::Error(error) => error.clone(),
            Self::Reload(_) | Self::State(_) => "the response is to another request".to_owned(),
        }
    }
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReloadOutcome {
    /// The configuration is in force.
    Applied,
    /// It was refused, with the reason. Nothing was changed.
    Refused(String),
    /// It was applied in part, with the reason. The daemon tries the rest again.
    Incomplete(String),
    /// It was applied, except for source ACLs that cannot be loaded, with the reasons. The earlier
    /// ones stay in force until the next reload.
    Stale(String),
}

impl ReloadOutcome {
    /// The reason why the configuration is not in force.
    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Applied => None,
            Self::Refused(error) | Self::Incomplete(error) | Self::Stale(error) => Some(error),
        }
    }
}

impl fmt::Display for ReloadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => write!(f, "applied"),
            Self::Refused(error) => write!(f, "refused, nothing was changed: {error}"),
            Self::Incomplete(error) => write!(f, "applied in part, will be tried again: {error}"),
            Self::Stale(error) => write!(f, "applied, except for source ACLs: {error}"),
        }
    }
}

/// The activity of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It has not applied its configuration yet.
    Starting,
    /// It has applied its configuration.
    Running,
    /// It applies a change.
    Applying,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Applying => "applying a change",
        })
    }
}

/// The state of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonState {
    /// The process ID.
    pub(crate) process: u32,
    /// Its start, in seconds since 1970 (UTC).
    pub(crate) started_at: u64,
    /// The absolute path of the configuration file; bytes that are not UTF-8 are replaced.
    pub(crate) config: String,
    /// Its activity.
    pub(crate) phase: Phase,
    /// The last reload, by signal or by request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_reload: Option<LastReload>,
    /// The error of a change that failed and is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failing: Option<String>,
    /// The part that depends on the role.
    pub(crate) role: RoleReport,
}

/// The configuration that a role has applied, and notices about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoleReport {
    /// Digest of the text of the configuration in force, hexadecimal.
    pub(crate) config_digest: String,
    /// The interfaces of the configuration in force.
    pub(crate) interfaces: Vec<String>,
    /// The changes that are impossible at the moment and tried again, and other notices.
    #[serde(default)]
    pub(crate) notices: Vec<Notice>,
    /// The number of repairs: host state that another program had removed or changed.
    #[serde(default)]
    pub(crate) repairs: u64,
}

/// A reload that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastReload {
    /// Its end, in seconds since 1970 (UTC).
    pub(crate) at: u64,
    /// Its result.
    pub(crate) outcome: ReloadOutcome,
    /// Digest of the text of the configuration that it read, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config_digest: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_responses_are_json_lines() {
        assert_eq!(serde_json::to_string(&Request::Reload).unwrap(), r#""reload""#);
        let refused = Response::Reload(ReloadOutcome::Refused("line 3".to_owned()));
        let json = serde_json::to_string(&refused).unwrap();
        assert_eq!(json, r#"{"reload":{"refused":"line 3"}}"#);
        assert_eq!(serde_json::from_str::<Response>(&json).unwrap(), refused);
    }
}

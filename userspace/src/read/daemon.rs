//! The daemon of a role, as `sluice status` sees it.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::config_file;
use crate::lock::Lock;
use crate::notice::Notice;
use crate::role::Role;
use crate::serve::client;
use crate::serve::protocol::{DaemonState, LastReload, Phase, ReloadOutcome, Request, Response};
use crate::text::{self, chain};

/// How long a daemon may take to describe its state.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running daemon.
#[derive(Debug, Serialize)]
pub struct DaemonStatus {
    /// The process ID.
    pub process: u32,
    /// Its own account of its state; absent if it does not respond.
    #[serde(flatten)]
    pub state: Option<DaemonDetails>,
    /// Why it does not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The state of a daemon that responds.
#[derive(Debug, Serialize)]
pub struct DaemonDetails {
    /// Its start, in seconds since 1970 (UTC).
    pub started_at: u64,
    /// Its phase: `starting`, `running` or `applying`.
    pub(crate) phase: Phase,
    /// Its configuration file.
    pub config: String,
    /// The file, compared to the configuration in force; absent before one is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_file: Option<FileState>,
    /// The last reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_reload: Option<LastReload>,
    /// The error of a change that failed and is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
    /// The changes that are impossible at the moment, and other notices.
    pub notices: Vec<Notice>,
    /// The number of repairs since its start: host state that another program had changed.
    pub repairs: u64,
    /// The interfaces of the configuration in force.
    #[serde(skip)]
    pub interfaces: Vec<String>,
}

/// The configuration file, compared to the configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// It is in force.
    InForce,
    /// It has changed since.
    Changed,
    /// It has changed since, and the last reload has refused it.
    Refused,
    /// It cannot be read, with the reason.
    Unreadable(String),
}

/// The daemon of a role; `None` if none runs.
pub(crate) fn daemon(instance: &str, role: Role) -> Option<DaemonStatus> {
    let process = Lock::holder(instance, role)?;
    let (state, error) = match client::call(instance, role, Request::State, PATIENCE) {
        Ok(Some(Response::State(state))) => (Some(details(state)), None),
        Ok(Some(response)) => (None, Some(response.unexpected())),
        Ok(None) => (None, Some("it does not listen on its control socket".to_owned())),
        Err(error) => (None, Some(chain(error.as_ref()))),
    };
    Some(DaemonStatus { process, state, error })
}

fn details(state: DaemonState) -> DaemonDetails {
    let last = state.last_reload.as_ref();
    let refused = last.filter(|last| matches!(last.outcome, ReloadOutcome::Refused(_)));
    let refused = refused.and_then(|last| last.config_digest.as_ref());
    let config_file = match config_file::digest(Path::new(&state.config)) {
        // The configuration is not in force yet.
        _ if state.role.config_digest.is_empty() => None,
        Ok(digest) if text::digest(digest) == state.role.config_digest => Some(FileState::InForce),
        Ok(digest) if refused == Some(&text::digest(digest)) => Some(FileState::Refused),
        Ok(_) => Some(FileState::Changed),
        Err(error) => Some(FileState::Unreadable(error.to_string())),
    };
    DaemonDetails {
        started_at: state.started_at,
        phase: state.phase,
        config: state.config,
        config_file,
        last_reload: state.last_reload,
        failing: state.failing,
        notices: state.role.notices,
        repairs: state.role.repairs,
        interfaces: state.role.interfaces,
    }
}

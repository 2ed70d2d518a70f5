//! The state of the daemon, as `sluice status` and the service manager see it.

use std::path::{Path, PathBuf};

use sd_notify::NotifyState;
use tokio::sync::watch;

use super::service_manager;
use crate::clock::unix_seconds;
use crate::serve::protocol::{DaemonState, LastReload, Phase, ReloadOutcome, RoleReport};
use crate::text;

/// Publishes the state. The control socket reads it while the core is busy.
pub(super) struct StatePublisher(watch::Sender<DaemonState>);

/// The state that was published last.
pub(super) type StateReader = watch::Receiver<DaemonState>;

impl StatePublisher {
    /// The state of a daemon that starts.
    pub(super) fn new(config: &Path) -> Self {
        let state = DaemonState {
            process: std::process::id(),
            started_at: unix_seconds(),
            // Fails if the working directory was removed.
            config: std::path::absolute(config)
                .unwrap_or_else(|_| PathBuf::from(config))
                .to_string_lossy()
                .into_owned(),
            phase: Phase::Starting,
            last_reload: None,
            failing: None,
            role: RoleReport::default(),
        };
        Self(watch::Sender::new(state))
    }

    /// A reader for the control socket.
    pub(super) fn reader(&self) -> StateReader {
        self.0.subscribe()
    }

    /// The interfaces of the configuration in force.
    pub(super) fn interfaces(&self) -> Vec<String> {
        self.0.borrow().role.interfaces.clone()
    }

    /// The error of a change that failed and is tried again.
    pub(super) fn failing(&self) -> Option<String> {
        self.0.borrow().failing.clone()
    }

    /// The configuration is applied. Notifies the service manager.
    pub(super) fn ready(&self, report: RoleReport) {
        self.set(|state| {
            state.phase = Phase::Running;
            state.role = report;
        });
        service_manager::notify(&[NotifyState::Ready, NotifyState::Status("running")]);
    }

    /// An input is being applied.
    pub(super) fn applying(&self, is_reload: bool) {
        self.set(|state| state.phase = Phase::Applying);
        if is_reload {
            // Services of type notify-reload require the time of the start.
            let time = NotifyState::monotonic_usec_now().ok();
            let states: Vec<_> = std::iter::once(NotifyState::Reloading).chain(time).collect();
            service_manager::notify(&states);
        }
    }

    /// An input was applied, or failed with `error`, which is tried again if it is `pending`.
    pub(super) fn applied(&self, error: Option<&str>, pending: bool, report: RoleReport) {
        self.set(|state| {
            state.phase = Phase::Running;
            state.role = report;
            match (pending, error) {
                (false, _) => {
                    state.failing = None;
                    if let Some(last) = &mut state.last_reload
                        && matches!(last.outcome, ReloadOutcome::Incomplete(_))
                    {
                        last.outcome = ReloadOutcome::Applied;
                    }
                }
                (true, Some(error)) => state.failing = Some(error.to_owned()),
                // The earlier error stands.
                (true, None) => {}
            }
        });
    }

    /// A reload has ended. `digest` is that of the configuration's text, if it could be read.
    pub(super) fn reloaded(&self, outcome: ReloadOutcome, digest: Option<u64>) {
        let config_digest = digest.map(text::digest);
        self.set(|state| {
            state.last_reload =
                Some(LastReload { at: unix_seconds(), outcome: outcome.clone(), config_digest });
        });
        Self::notify_reloaded(&outcome);
    }

    /// Files that the last reload read after it was applied are not in force.
    pub(super) fn loaded(&self, outcome: ReloadOutcome) {
        Self::notify_reloaded(&outcome);
        self.set(|state| {
            if let Some(last) = &mut state.last_reload {
                last.outcome = outcome;
            }
        });
    }

    fn notify_reloaded(outcome: &ReloadOutcome) {
        let status = match outcome {
            ReloadOutcome::Applied => "running".to_owned(),
            outcome => format!("running; the last reload was {outcome}"),
        };
        service_manager::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    fn set(&self, change: impl FnOnce(&mut DaemonState)) {
        self.0.send_modify(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_stays_until_nothing_is_pending() {
        let publisher = StatePublisher::new(Path::new("edge.json"));
        let reader = publisher.reader();
        let failing = || reader.borrow().failing.clone();
        publisher.applied(Some("no route"), true, RoleReport::default());
        assert_eq!(failing().as_deref(), Some("no route"));
        publisher.applied(None, true, RoleReport::default());
        assert_eq!(failing().as_deref(), Some("no route"));
        publisher.applied(None, false, RoleReport::default());
        assert_eq!(failing(), None);
        assert!(reader.borrow().config.starts_with('/'));
    }
}

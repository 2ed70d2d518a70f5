//! The inputs of the daemon core, and the channel that carries them.

use std::collections::VecDeque;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use super::acl::LoadedAcl;
use super::runtime;
use crate::error::CliError;
use crate::kernel::routing::path_mtu::PathError;
use crate::serve::protocol::ReloadOutcome;

/// One event for the daemon core.
pub(crate) enum Input {
    /// SIGTERM or SIGINT: stop.
    Stop,
    /// SIGHUP or a request: read the configuration again.
    Reload(ReloadReply),
    /// Source ACLs were read.
    AclLoaded(Vec<LoadedAcl>),
    /// ICMP errors about encapsulated packets arrived.
    PathErrors(Vec<PathError>),
    /// The earliest path MTU expires.
    PathMtuExpired,
    /// Links, addresses, routes, rules or filters changed.
    RoutesChanged,
    /// The timer for changes that have no notification, such as those of sysctls.
    Inspect,
    /// The periodic timer.
    Refresh,
    /// The service manager expects a sign of life.
    Watchdog,
    /// A source cannot continue: end with this error.
    Failed(CliError),
}

/// Where the result of a reload goes: nowhere for a signal.
#[derive(Default)]
pub(crate) struct ReloadReply(Option<oneshot::Sender<ReloadOutcome>>);

impl ReloadReply {
    /// The reply to a request.
    pub(crate) fn to(sender: oneshot::Sender<ReloadOutcome>) -> Self {
        Self(Some(sender))
    }

    /// Sends the result.
    pub(crate) fn send(self, outcome: ReloadOutcome) {
        if let Some(sender) = self.0 {
            // The client may be gone.
            let _ = sender.send(outcome);
        }
    }
}

impl Input {
    /// The input as log lines name it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Reload(_) => "reload",
            Self::AclLoaded(_) => "loading of source ACLs",
            Self::PathErrors(_) => "update of path MTUs",
            Self::PathMtuExpired => "expiry of path MTUs",
            Self::RoutesChanged => "update of routes",
            Self::Inspect => "inspection of the host",
            Self::Refresh => "refresh",
            Self::Watchdog => "watchdog",
            Self::Failed(_) => "failure",
        }
    }
}

/// The sending end of the channel; each source holds a clone.
pub(crate) type InputSender = mpsc::Sender<Input>;

/// The channel of inputs. It has room for one, so that a fast source waits for the core instead of
/// filling memory, and events of one source merge while the core is busy.
pub(crate) fn channel() -> (InputSender, Inputs) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Inputs { receiver, deferred: VecDeque::new() })
}

/// The receiving end of the channel.
pub(crate) struct Inputs {
    receiver: mpsc::Receiver<Input>,
    /// Inputs that arrived during [`Self::wait_for`].
    deferred: VecDeque<Input>,
}

impl Inputs {
    /// The next input for the core; answers the service manager's watchdog.
    pub(crate) async fn next(&mut self) -> Option<Input> {
        loop {
            let next = match self.deferred.pop_front() {
                Some(input) => Some(input),
                None => self.receiver.recv().await,
            };
            match next {
                Some(Input::Watchdog) => sign_of_life(),
                next => return next,
            }
        }
    }

    /// Waits for work that may take long, and defers inputs meanwhile; `None` if the daemon has to
    /// end first, which is then the next input.
    pub(crate) async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(input) = self.receiver.recv() => match input {
                    input @ (Input::Stop | Input::Failed(_)) => {
                        self.deferred.push_front(input);
                        return None;
                    }
                    Input::Watchdog => sign_of_life(),
                    input => self.deferred.push_back(input),
                },
            }
        }
    }
}

/// Answers the service manager's watchdog.
fn sign_of_life() {
    runtime::notify(&[NotifyState::Watchdog]);
}

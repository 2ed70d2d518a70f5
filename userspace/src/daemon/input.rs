//! The inputs of the daemon core, and the channel that carries them.

use tokio::sync::{mpsc, oneshot};

use super::acl::LoadedAcl;
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
pub(crate) fn channel() -> (InputSender, mpsc::Receiver<Input>) {
    mpsc::channel(1)
}

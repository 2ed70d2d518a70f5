//! The inputs of the daemon core, and the channel that carries them.

use tokio::sync::mpsc;

use super::acl::LoadedAcl;
use crate::kernel::routing::path_mtu::PathError;

/// One event for the daemon core.
pub(crate) enum Input {
    /// SIGTERM or SIGINT: stop.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
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
}

impl Input {
    /// The input as log lines name it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::AclLoaded(_) => "loading of source ACLs",
            Self::PathErrors(_) => "update of path MTUs",
            Self::PathMtuExpired => "expiry of path MTUs",
            Self::RoutesChanged => "update of routes",
            Self::Inspect => "inspection of the host",
            Self::Refresh => "refresh",
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

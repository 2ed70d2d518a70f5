//! The signals of a daemon.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::CliError;

/// The signals that a daemon listens to.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// SIGTERM or SIGINT: end.
    End,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).context("cannot listen to signals").map_err(CliError::Operation);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Command {
        tokio::select! {
            _ = self.terminate.recv() => Command::End,
            _ = self.interrupt.recv() => Command::End,
            _ = self.hangup.recv() => Command::Reload,
        }
    }
}

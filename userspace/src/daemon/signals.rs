//! The signals of a daemon.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::input::{Input, ReloadReply};
use crate::error::CliError;

/// The handlers of SIGTERM, SIGINT and SIGHUP.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).context("cannot install a signal handler").map_err(CliError::Operation)
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Input {
        tokio::select! {
            _ = self.terminate.recv() => Input::Stop,
            _ = self.interrupt.recv() => Input::Stop,
            _ = self.hangup.recv() => Input::Reload(ReloadReply::default()),
        }
    }
}

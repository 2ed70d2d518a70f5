//! The signals of a daemon.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::input::Input;
use super::reloads::Reloads;
use crate::error::CliError;

/// The handlers of SIGTERM, SIGINT and SIGHUP.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reloads: Reloads,
}

impl Signals {
    /// Installs the handlers. SIGHUP requests a reload.
    pub(crate) fn listen(reloads: Reloads) -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).context("cannot install a signal handler").map_err(CliError::Operation)
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            reloads,
        })
    }

    /// Waits for the next signal that needs an input. Cancel safe.
    pub(crate) async fn next(&mut self) -> Input {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Input::Stop,
                _ = self.interrupt.recv() => return Input::Stop,
                _ = self.hangup.recv() => {
                    if let Some(reload) = self.reloads.signal() {
                        return Input::Reload(reload);
                    }
                }
            }
        }
    }
}

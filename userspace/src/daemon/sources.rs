//! The sources of inputs: one task each, which waits for its event and sends it to the core.

use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::input::{Input, InputSender};
use super::requests::Requests;
use super::signals::Signals;
use crate::clock;
use crate::error::CliError;
use crate::kernel::netlink::{Changes, HostChanges, Netlink};
use crate::kernel::routing::path_mtu::Listener;
use crate::serve::server::ControlSocket;

/// How long notifications are gathered before the core looks routes up.
const SETTLE: Duration = Duration::from_millis(200);

/// The period of [`Input::Inspect`].
const INSPECT: Duration = Duration::from_secs(3);

/// A task that ends when this value is dropped.
pub(crate) struct SourceTask(JoinHandle<()>);

impl SourceTask {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for SourceTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends [`Input::Stop`] and [`Input::Reload`].
pub(super) fn signals(mut signals: Signals, inputs: InputSender) -> SourceTask {
    SourceTask::spawn(async move { while inputs.send(signals.next().await).await.is_ok() {} })
}

/// Sends [`Input::Refresh`], the first one at once.
pub(super) fn refresh(inputs: InputSender) -> SourceTask {
    timer(clock::REFRESH, || Input::Refresh, inputs)
}

/// Sends [`Input::Inspect`].
pub(super) fn inspect(inputs: InputSender) -> SourceTask {
    timer(INSPECT, || Input::Inspect, inputs)
}

/// Sends an input periodically, the first one at once. Ticks that the core was too busy for are
/// skipped.
fn timer(period: Duration, input: fn() -> Input, inputs: InputSender) -> SourceTask {
    SourceTask::spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if inputs.send(input()).await.is_err() {
                return;
            }
        }
    })
}

/// Serves the control socket.
pub(super) fn requests(socket: ControlSocket, requests: Requests) -> SourceTask {
    SourceTask::spawn(socket.serve(requests))
}

/// Sends [`Input::HostChanged`]. After an error of the subscription everything may have changed,
/// and another one is opened; if that fails, sends [`Input::Failed`].
pub(super) fn host_changes(
    mut changes: Changes,
    netlink: Netlink,
    inputs: InputSender,
) -> SourceTask {
    SourceTask::spawn(async move {
        loop {
            if let Err(error) = send_changes(&mut changes, &inputs).await {
                warn!(%error, "cannot receive notifications of the host; subscribing again");
                // An error that lasts must not keep the daemon busy.
                sleep(SETTLE).await;
                let input = match netlink.changes() {
                    Ok(subscribed) => {
                        changes = subscribed;
                        Input::HostChanged(HostChanges::everything())
                    }
                    Err(error) => Input::Failed(CliError::operation(error)),
                };
                // The core is gone when the daemon ends.
                let _ = inputs.send(input).await;
            }
        }
    })
}

/// Waits for changes, gathers those that follow for a while, and those that arrive until the core
/// takes them.
async fn send_changes(changes: &mut Changes, inputs: &InputSender) -> io::Result<()> {
    let mut gathered = changes.changed().await?;
    sleep(SETTLE).await;
    gathered.merge(changes.gather()?);
    loop {
        tokio::select! {
            room = inputs.reserve() => {
                if let Ok(room) = room {
                    room.send(Input::HostChanged(gathered));
                }
                return Ok(());
            }
            change = changes.changed() => gathered.merge(change?),
        }
    }
}

/// Sends [`Input::PathErrors`].
pub(super) fn path_errors(mut listener: Listener, inputs: InputSender) -> SourceTask {
    SourceTask::spawn(async move {
        while inputs.send(Input::PathErrors(listener.next().await)).await.is_ok() {}
    })
}

/// Sends [`Input::PathMtuExpired`] once, at a time in nanoseconds since boot.
pub(super) fn path_mtu_expiry(at: u64, inputs: InputSender) -> SourceTask {
    SourceTask::spawn(async move {
        sleep(Duration::from_nanos(at.saturating_sub(clock::now()))).await;
        // The core is gone when the daemon ends.
        let _ = inputs.send(Input::PathMtuExpired).await;
    })
}

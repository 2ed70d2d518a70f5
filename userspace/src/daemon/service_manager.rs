//! The service manager's notifications and watchdog.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::CliError;
use crate::files::input::no_thread;
use crate::progress;

/// The maximum number of notifications that wait for the thread.
const MAX_WAITING: usize = 64;

/// How long the end of the process waits for the last notification.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// A message to the service manager, and a sender that is dropped once it was sent.
type Notification = (String, Option<SyncSender<()>>);

/// Notifies the service manager of the daemon's state (`sd_notify`), all states in one message.
///
/// A thread sends it, because the socket of a service manager that hangs takes no more messages.
/// Those that the thread cannot take are lost.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    send(states, None);
}

/// Like [`notify`], and waits until the message was sent, but not for long. Called at the end of
/// the process.
pub(crate) fn notify_last(state: NotifyState<'_>) {
    let (sender, sent) = sync_channel(0);
    send(&[state], Some(sender));
    // Ends when the sender is dropped.
    let _ = sent.recv_timeout(LAST_WAIT);
}

fn send(states: &[NotifyState<'_>], sent: Option<SyncSender<()>>) {
    static SENDER: OnceLock<Option<SyncSender<Notification>>> = OnceLock::new();

    let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
    if let Some(sender) = SENDER.get_or_init(start_notifying) {
        let _ = sender.try_send((lines.join("\n"), sent));
    }
}

/// Starts the thread; `None` without a service manager.
fn start_notifying() -> Option<SyncSender<Notification>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (sender, messages) = sync_channel::<Notification>(MAX_WAITING);
    let send = move || {
        for (message, _sent) in messages {
            let _ = sd_notify::notify(&[NotifyState::Custom(&message)]);
        }
    };
    thread::Builder::new().name("notify".to_owned()).spawn(send).ok()?;
    Some(sender)
}

/// Starts a thread that sends signs of life to the service manager's watchdog, if it has one: twice
/// per period while the daemon makes progress. It is not the core's thread, because the kernel may
/// block that one for as long as another process holds the RTNL lock.
pub(super) fn start_watchdog() -> Result<(), CliError> {
    let Some(period) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let run = move || {
        loop {
            thread::sleep(period / 2);
            if progress::is_recent() {
                notify(&[NotifyState::Watchdog]);
            }
        }
    };
    let spawned = thread::Builder::new().name("watchdog".to_owned()).spawn(run);
    spawned.map(drop).map_err(no_thread).map_err(CliError::operation)
}

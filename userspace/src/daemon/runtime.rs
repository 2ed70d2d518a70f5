//! The runtime, and the service manager's notifications.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;

use crate::error::CliError;

/// The maximum number of notifications that wait for the thread.
const MAX_WAITING: usize = 64;

/// Runs a future on a single-threaded runtime.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::operation)?;
    runtime.block_on(future)
}

/// Notifies the service manager of the daemon's state (`sd_notify`), all states in one message.
///
/// A thread sends it, because the socket of a service manager that hangs takes no more messages.
/// Those that the thread cannot take are lost.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    static SENDER: OnceLock<Option<SyncSender<String>>> = OnceLock::new();

    // A line each; the last one is completed when the message is sent.
    let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
    if let Some(sender) = SENDER.get_or_init(start_notifying) {
        let _ = sender.try_send(lines.join("\n"));
    }
}

/// Waits until the notifications were sent, but not for long. Called at the end of the process.
pub(crate) fn notify_last(state: NotifyState<'_>) {
    let message = state.to_string();
    let (sender, sent) = sync_channel(1);
    let send = move || {
        let _ = sd_notify::notify(&[NotifyState::Custom(&message)]);
        let _ = sender.send(());
    };
    if thread::Builder::new().name("notify".to_owned()).spawn(send).is_ok() {
        let _ = sent.recv_timeout(std::time::Duration::from_secs(1));
    }
}

/// Starts the thread; `None` without a service manager.
fn start_notifying() -> Option<SyncSender<String>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (sender, messages) = sync_channel::<String>(MAX_WAITING);
    let send = move || {
        for message in messages {
            let _ = sd_notify::notify(&[NotifyState::Custom(&message)]);
        }
    };
    thread::Builder::new().name("notify".to_owned()).spawn(send).ok()?;
    Some(sender)
}

//! The inputs of the daemon core, and the channel that carries them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::acl::LoadedAcl;
use super::reloads::Reload;
use crate::error::CliError;
use crate::kernel::netlink::HostChanges;
use crate::kernel::routing::path_mtu::PathError;
use crate::progress;

/// How long changes go on when the daemon has to end. A change that is abandoned is as one of a
/// daemon that was killed: the next daemon completes it.
const LAST_CHANGES: Duration = Duration::from_secs(10);

/// One event for the daemon core.
pub(crate) enum Input {
    /// SIGTERM or SIGINT: stop.
    Stop,
    /// SIGHUP or a request: read the configuration again.
    Reload(Arc<Reload>),
    /// Source ACLs were read.
    AclLoaded(Vec<LoadedAcl>),
    /// ICMP errors about encapsulated packets arrived.
    PathErrors(Vec<PathError>),
    /// The earliest path MTU expires.
    PathMtuExpired,
    /// Links, addresses, routes, rules or filters changed.
    HostChanged(HostChanges),
    /// The timer for changes that have no notification, such as those of sysctls.
    Inspect,
    /// The periodic timer.
    Refresh,
    /// A source cannot continue: end with this error.
    Failed(CliError),
}

impl Input {
    /// Whether the input goes before others, and interrupts lookups.
    const fn is_command(&self) -> bool {
        matches!(self, Self::Stop | Self::Reload(_) | Self::Failed(_))
    }

    /// The input as log lines name it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Reload(_) => "reload",
            Self::AclLoaded(_) => "loading of source ACLs",
            Self::PathErrors(_) => "update of path MTUs",
            Self::PathMtuExpired => "expiry of path MTUs",
            Self::HostChanged(_) => "update of routes",
            Self::Inspect => "inspection of the host",
            Self::Refresh => "refresh",
            Self::Failed(_) => "failure",
        }
    }
}

/// The sending end of the channel; each source holds a clone. Commands have a channel of their own:
/// they do not wait for other inputs.
#[derive(Clone)]
pub(crate) struct InputSender {
    commands: mpsc::Sender<Input>,
    events: mpsc::Sender<Input>,
}

impl InputSender {
    /// Sends an input, and waits for room. Fails when the core is gone.
    pub(crate) async fn send(&self, input: Input) -> Result<(), mpsc::error::SendError<Input>> {
        if input.is_command() { &self.commands } else { &self.events }.send(input).await
    }

    /// As [`Self::send`], for threads; for inputs that are no commands.
    pub(crate) fn blocking_send(&self, input: Input) -> Result<(), mpsc::error::SendError<Input>> {
        self.events.blocking_send(input)
    }

    /// Waits until the core has taken what was sent.
    #[cfg(test)]
    pub(crate) async fn wait_until_taken(&self) {
        while self.events.capacity() == 0 || self.commands.capacity() == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits for room for an input that is no command.
    pub(crate) async fn reserve(
        &self,
    ) -> Result<mpsc::Permit<'_, Input>, mpsc::error::SendError<()>> {
        self.events.reserve().await
    }
}

/// The channel of inputs. It has room for one command and one other input, so that a fast source
/// waits for the core instead of filling memory, and events of one source merge while the core is
/// busy.
pub(crate) fn channel() -> (InputSender, Inputs) {
    let (commands, command_receiver) = mpsc::channel(1);
    let (events, event_receiver) = mpsc::channel(1);
    let inputs =
        Inputs { commands: command_receiver, events: event_receiver, deferred: VecDeque::new() };
    (InputSender { commands, events }, inputs)
}

/// The receiving end of the channel.
pub(crate) struct Inputs {
    commands: mpsc::Receiver<Input>,
    events: mpsc::Receiver<Input>,
    /// Inputs that are to be handled later, commands before others.
    deferred: VecDeque<Input>,
}

impl Inputs {
    /// The next input for the core, commands first.
    pub(crate) async fn next(&mut self) -> Option<Input> {
        progress::report();
        if let Some(input) = self.deferred.pop_front_if(|input| input.is_command()) {
            return Some(input);
        }
        let next = match self.deferred.is_empty() {
            true => self.receive().await,
            false => self.commands.try_recv().ok().or_else(|| self.deferred.pop_front()),
        };
        progress::report();
        next
    }

    /// The next input that arrives, commands first.
    async fn receive(&mut self) -> Option<Input> {
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => Some(command),
            Some(event) = self.events.recv() => Some(event),
            else => None,
        }
    }

    /// Defers an input until the others that are deferred are handled.
    pub(crate) fn defer(&mut self, input: Input) {
        self.deferred.push_back(input);
    }

    /// Waits for work that a command interrupts: `None` then, and the command is the next input.
    pub(crate) async fn unless_command<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.deferred.iter().any(Input::is_command) {
            return None;
        }
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => {
                self.deferred.push_front(command);
                None
            }
            done = work => Some(done),
        }
    }

    /// The end that [`Self::wait_for`] or [`Self::finish`] has found.
    pub(crate) async fn end(&mut self) -> Result<(), CliError> {
        match self.next().await {
            Some(Input::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for work that may take long, and defers commands meanwhile; `None` if the daemon has
    /// to end first, which is then the next input. Other inputs wait in their sources: a fast
    /// source must not fill memory while a file system hangs.
    pub(crate) async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if matches!(self.deferred.front(), Some(Input::Stop | Input::Failed(_))) {
            return None;
        }
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                Some(command) = self.commands.recv() => match command {
                    command @ (Input::Stop | Input::Failed(_)) => {
                        self.deferred.push_front(command);
                        return None;
                    }
                    command => self.deferred.push_back(command),
                },
            }
        }
    }

    /// As [`Self::wait_for`], for changes: if the daemon has to end, they still have some time.
    pub(crate) async fn finish<T>(&mut self, changes: impl Future<Output = T>) -> Option<T> {
        let mut changes = std::pin::pin!(changes);
        match self.wait_for(changes.as_mut()).await {
            None => timeout(LAST_CHANGES, changes).await.ok(),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reloads::Reloads;
    use super::*;

    #[test]
    fn only_commands_are_deferred_during_long_work() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (sender, mut inputs) = channel();
            let reload = Reloads::default().signal().unwrap();
            for input in [Input::Refresh, Input::Reload(reload)] {
                sender.send(input).await.map_err(|_| "the core is gone").unwrap();
            }
            let work = async {
                for _ in 0..32 {
                    tokio::task::yield_now().await;
                }
                (sender.commands.capacity(), sender.events.capacity())
            };
            assert_eq!(inputs.wait_for(work).await, Some((1, 0)));
            assert!(matches!(inputs.next().await, Some(Input::Reload(_))));
            assert!(matches!(inputs.next().await, Some(Input::Refresh)));
        });
    }
}

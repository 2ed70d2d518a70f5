//! The inputs of the daemon core, and the channel that carries them.

use std::collections::VecDeque;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::acl::LoadedAcl;
use crate::error::CliError;
use crate::kernel::netlink::HostChanges;
use crate::kernel::routing::path_mtu::PathError;
use crate::progress;
use crate::serve::protocol::ReloadOutcome;

/// How long changes go on when the daemon has to end. A change that is abandoned is as one of a
/// daemon that was killed: the next daemon completes it.
const LAST_CHANGES: Duration = Duration::from_secs(10);

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
    HostChanged(HostChanges),
    /// The timer for changes that have no notification, such as those of sysctls.
    Inspect,
    /// The periodic timer.
    Refresh,
    /// A source cannot continue: end with this error.
    Failed(CliError),
}

/// Where the result of a reload goes: nowhere for a signal, which is the default.
#[derive(Default)]
pub(crate) struct ReloadReply {
    clients: Vec<oneshot::Sender<ReloadOutcome>>,
    /// Whether no signal has requested the reload.
    is_only_for_clients: bool,
}

impl ReloadReply {
    /// The reply to a request.
    pub(crate) fn to(client: oneshot::Sender<ReloadOutcome>) -> Self {
        Self { clients: vec![client], is_only_for_clients: true }
    }

    /// Whether the clients that requested the reload are gone.
    fn is_abandoned(&self) -> bool {
        self.is_only_for_clients && self.clients.iter().all(oneshot::Sender::is_closed)
    }

    /// Makes one reload of two.
    fn merge(&mut self, other: Self) {
        self.clients.retain(|client| !client.is_closed());
        self.clients.extend(other.clients);
        self.is_only_for_clients &= other.is_only_for_clients;
    }

    /// Sends the result.
    pub(crate) fn send(self, outcome: ReloadOutcome) {
        for client in self.clients {
            // The client may be gone.
            let _ = client.send(outcome.clone());
        }
    }
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
        loop {
            progress::report();
            if let Some(input) = self.deferred.pop_front_if(|input| input.is_command()) {
                return Some(input);
            }
            let next = match self.deferred.is_empty() {
                true => self.receive().await,
                false => self.commands.try_recv().ok().or_else(|| self.deferred.pop_front()),
            };
            progress::report();
            match next {
                Some(Input::Reload(reply)) if reply.is_abandoned() => {}
                next => return next,
            }
        }
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

    /// Defers a reload. One reload serves all requests that were made before its start.
    fn defer_reload(&mut self, reply: ReloadReply) {
        let deferred = self.deferred.iter_mut().find_map(|input| match input {
            Input::Reload(deferred) => Some(deferred),
            _ => None,
        });
        match deferred {
            Some(deferred) => deferred.merge(reply),
            None => self.deferred.push_back(Input::Reload(reply)),
        }
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
                    Input::Reload(reply) => self.defer_reload(reply),
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
    use super::*;

    #[test]
    fn only_commands_are_deferred_during_long_work() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (sender, mut inputs) = channel();
            for input in [Input::Refresh, Input::Reload(ReloadReply::default())] {
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

    #[test]
    fn one_reload_serves_all_requests_during_long_work() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (sender, mut inputs) = channel();
            let (clients, outcomes): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
            let requests = async {
                for client in clients {
                    let sent = sender.send(Input::Reload(ReloadReply::to(client))).await;
                    sent.map_err(|_| "the core is gone").unwrap();
                }
                sender.wait_until_taken().await;
            };
            inputs.wait_for(requests).await.unwrap();
            let Some(Input::Reload(reply)) = inputs.next().await else { panic!("no reload") };
            assert!(inputs.deferred.is_empty());
            reply.send(ReloadOutcome::Applied);
            for outcome in outcomes {
                assert_eq!(outcome.await.unwrap(), ReloadOutcome::Applied);
            }
        });
    }
}

//! Requests to read the configuration again. Those that arrive before a reload has started share
//! it, so that any number of them costs two reloads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

use crate::serve::protocol::ReloadOutcome;

/// The place where requests find the reload that has not started yet. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Reloads(Arc<Mutex<Weak<Reload>>>);

impl Reloads {
    /// Requests a reload by a signal. Returns a new one for the core, unless one is under way.
    pub(crate) fn signal(&self) -> Option<Arc<Reload>> {
        self.request(|waiting| waiting.is_signalled = true)
    }

    /// Requests a reload and its result. Returns a new one for the core, unless one is under way.
    pub(crate) fn reply_to(&self, client: oneshot::Sender<ReloadOutcome>) -> Option<Arc<Reload>> {
        self.request(|waiting| waiting.clients.0.push(client))
    }

    fn request(&self, add: impl FnOnce(&mut Waiting)) -> Option<Arc<Reload>> {
        let mut next = lock(&self.0);
        if let Some(reload) = next.upgrade()
            && let Some(waiting) = &mut *lock(&reload.0)
        {
            add(waiting);
            return None;
        }
        let mut waiting = Waiting::default();
        add(&mut waiting);
        let reload = Arc::new(Reload(Mutex::new(Some(waiting))));
        *next = Arc::downgrade(&reload);
        Some(reload)
    }
}

/// A reload. Only the core's input keeps it, so that clients learn when it is dropped.
pub(crate) struct Reload(Mutex<Option<Waiting>>);

/// The requests that wait for a reload.
#[derive(Default)]
struct Waiting {
    is_signalled: bool,
    clients: Clients,
}

impl Reload {
    /// Starts it: later requests wait for another one. `None` if all clients that requested it are
    /// gone.
    pub(crate) fn start(&self) -> Option<Clients> {
        let waiting = lock(&self.0).take()?;
        let is_wanted = waiting.is_signalled || waiting.clients.0.iter().any(|c| !c.is_closed());
        is_wanted.then_some(waiting.clients)
    }
}

/// The clients that wait for the result of a reload; none for a signal.
#[derive(Default)]
pub(crate) struct Clients(Vec<oneshot::Sender<ReloadOutcome>>);

impl Clients {
    /// Adds others.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.retain(|client| !client.is_closed());
        self.0.extend(others.0);
    }

    /// Sends the result.
    pub(crate) fn send(self, outcome: &ReloadOutcome) {
        for client in self.0 {
            // The client may be gone.
            let _ = client.send(outcome.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_before_the_start_share_a_reload() {
        let reloads = Reloads::default();
        let (first, mut of_first) = oneshot::channel();
        let (second, mut of_second) = oneshot::channel();
        let reload = reloads.reply_to(first).unwrap();
        assert!(reloads.reply_to(second).is_none() && reloads.signal().is_none());
        let clients = reload.start().unwrap();
        // After the start, the files may have been read.
        let (third, mut of_third) = oneshot::channel();
        let next = reloads.reply_to(third).unwrap();
        clients.send(&ReloadOutcome::Applied);
        assert_eq!(of_first.try_recv(), Ok(ReloadOutcome::Applied));
        assert_eq!(of_second.try_recv(), Ok(ReloadOutcome::Applied));
        assert!(of_third.try_recv().is_err());
        // The core ends: the clients are not left waiting.
        drop(next);
        assert_eq!(of_third.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(reloads.signal().is_some());
    }

    #[test]
    fn a_reload_is_dropped_once_all_its_clients_are_gone() {
        let reloads = Reloads::default();
        let (client, outcome) = oneshot::channel();
        let reload = reloads.reply_to(client).unwrap();
        drop(outcome);
        assert!(reload.start().is_none());
        let (client, outcome) = oneshot::channel();
        let reload = reloads.reply_to(client).unwrap();
        assert!(reloads.signal().is_none());
        drop(outcome);
        assert!(reload.start().is_some(), "a signal waits for no result");
    }
}

//! Connections that stay open and keep exchanging data while the lab changes around them.

use super::client::{Connection, runtime};
use super::namespaces::Namespaces;
use super::topology::{Family, clients};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::time::timeout;

#[derive(Debug, Default)]
struct One {
    exchanges: AtomicU64,
    /// The backend that answers, once it has answered.
    backend: Mutex<Option<String>>,
    /// Why the connection broke.
    broken: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connections: Vec<One>,
}

/// Many open connections, each with a request after every pause and each request numbered.
#[derive(Debug)]
pub struct Connections {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// The connections at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Request-and-answer pairs so far, by connection.
    pub exchanges: Vec<u64>,
    /// Open connections by backend.
    pub by_backend: BTreeMap<String, u64>,
    /// Why each broken connection broke.
    pub broken: Vec<String>,
}

impl Snapshot {
    /// Exchanges so far on all connections.
    pub fn total(&self) -> u64 {
        self.exchanges.iter().sum()
    }

    /// Connections that have exchanged nothing since the earlier snapshot.
    pub fn silent_since(&self, earlier: &Self) -> usize {
        self.exchanges.iter().zip(&earlier.exchanges).filter(|(now, then)| now <= then).count()
    }
}

impl Connections {
    /// Opens about `count` connections, spread evenly over clients and IP versions, and waits until
    /// each has had an answer. Each pauses for `pause` between two exchanges. An exchange may take
    /// as long as `limit`; after that the connection counts as broken.
    pub fn open(
        namespaces: &Namespaces,
        count: usize,
        pause: Duration,
        limit: Duration,
    ) -> Result<Self> {
        let share = count.div_ceil(clients().count() * Family::BOTH.len());
        let all = share * clients().count() * Family::BOTH.len();
        let shared = Shared {
            stop: AtomicBool::new(false),
            connections: (0..all).map(|_| One::default()).collect(),
        };
        let shared = Arc::new(shared);
        let mut this = Self { shared, threads: Vec::new() };
        for (place, client) in clients().enumerate() {
            let shared = Arc::clone(&this.shared);
            let first = place * share * Family::BOTH.len();
            this.threads.push(namespaces.background(client, move || {
                runtime()?.block_on(async {
                    let tasks: Vec<_> = (first..first + share * Family::BOTH.len())
                        .map(|index| {
                            tokio::spawn(converse(Arc::clone(&shared), index, pause, limit))
                        })
                        .collect();
                    for task in tasks {
                        task.await.context("a connection's task panicked")?;
                    }
                    Ok(())
                })
            })?);
        }
        let deadline = Instant::now() + limit;
        loop {
            let now = this.snapshot();
            if now.exchanges.iter().filter(|count| **count == 0).count() <= now.broken.len() {
                return Ok(this);
            }
            if Instant::now() > deadline {
                let waiting = now.exchanges.iter().filter(|count| **count == 0).count();
                this.close()?;
                return Err(anyhow!(
                    "{waiting} of {all} connections had no answer within {limit:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The connections now.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot =
            Snapshot { exchanges: Vec::new(), by_backend: BTreeMap::new(), broken: Vec::new() };
        for one in &self.shared.connections {
            snapshot.exchanges.push(one.exchanges.load(Ordering::Relaxed));
            match (lock(&one.broken).clone(), lock(&one.backend).clone()) {
                (Some(reason), _) => snapshot.broken.push(reason),
                (None, Some(backend)) => *snapshot.by_backend.entry(backend).or_default() += 1,
                (None, None) => {}
            }
        }
        snapshot
    }

    /// Waits until every open connection has had at least one more exchange that started after this
    /// call.
    ///
    /// Two counts more are needed: the first may be an exchange that was under way.
    pub fn all_exchange_again(&self, limit: Duration) -> Result<Snapshot> {
        let before = self.snapshot();
        let deadline = Instant::now() + limit;
        loop {
            let now = self.snapshot();
            let waiting = now
                .exchanges
                .iter()
                .zip(&before.exchanges)
                .filter(|(now, then)| **now < **then + 2)
                .count();
            if waiting <= now.broken.len() || Instant::now() > deadline {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Closes all connections and returns their last state.
    pub fn close(mut self) -> Result<Snapshot> {
        let last = self.snapshot();
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client's thread panicked"))??;
        }
        Ok(last)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // The threads end by themselves within one exchange; nobody waits for them on the way out
        // of a failure.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn converse(shared: Arc<Shared>, index: usize, pause: Duration, limit: Duration) {
    let one = &shared.connections[index];
    let family = Family::BOTH[index % Family::BOTH.len()];
    let talk = async {
        let mut connection = timeout(limit, Connection::open(family.web()))
            .await
            .context("no connection in time")??;
        for number in 0.. {
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let answered = timeout(limit, connection.sequence(number)).await;
            let backend = answered
                .with_context(|| format!("no answer to number {number} within {limit:?}"))??;
            let earlier = lock(&one.backend).replace(backend.clone());
            if let Some(earlier) = earlier.filter(|earlier| *earlier != backend) {
                return Err(anyhow!(
                    "{backend} answered number {number} on a connection of {earlier}"
                ));
            }
            one.exchanges.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    };
    if let Err(error) = talk.await {
        let backend = lock(&one.backend).clone().unwrap_or_else(|| "nobody".into());
        *lock(&one.broken) =
            Some(format!("connection {index} ({}, served by {backend}): {error:#}", family.name()));
    }
}

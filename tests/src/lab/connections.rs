//! Connections that stay open and exchange data during configuration changes and restarts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::time::timeout;

use super::client::{HttpConnection, runtime};
use super::namespaces::Namespaces;
use super::topology::{IpVersion, LabHost};

#[derive(Debug, Default)]
struct ConnectionState {
    /// Completed exchanges.
    exchanges: AtomicU64,
    /// The backend that served the first exchange.
    backend: Mutex<Option<String>>,
    /// Why the connection broke.
    broken: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connections: Vec<ConnectionState>,
}

/// Many open connections, each with a numbered request after every pause.
#[derive(Debug)]
pub struct Connections {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// The state of all connections at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionsSnapshot {
    /// Completed exchanges by connection.
    pub exchanges: Vec<u64>,
    /// Open connections by backend.
    pub by_backend: BTreeMap<String, u64>,
    /// The reason of each broken connection.
    pub broken: Vec<String>,
}

impl ConnectionsSnapshot {
    /// Completed exchanges on all connections.
    pub fn total(&self) -> u64 {
        self.exchanges.iter().sum()
    }

    /// Connections without an exchange since the earlier snapshot.
    pub fn idle_since(&self, earlier: &Self) -> usize {
        self.exchanges.iter().zip(&earlier.exchanges).filter(|(now, then)| now <= then).count()
    }
}

impl Connections {
    /// Opens at least `count` connections, the same number from each client over each IP version,
    /// and waits for the first reply on each. `pause` separates two exchanges of a connection. A
    /// connection whose exchange takes longer than `limit` counts as broken.
    pub fn open(
        namespaces: &Namespaces,
        clients: &[LabHost],
        count: usize,
        pause: Duration,
        limit: Duration,
    ) -> Result<Self> {
        let versions = IpVersion::BOTH.len();
        let per_client = versions * count.div_ceil(clients.len() * versions);
        let all = per_client * clients.len();
        let shared = Shared {
            stop: AtomicBool::new(false),
            connections: (0..all).map(|_| ConnectionState::default()).collect(),
        };
        let shared = Arc::new(shared);
        let mut this = Self { shared, threads: Vec::new() };
        for (position, client) in clients.iter().enumerate() {
            let shared = Arc::clone(&this.shared);
            let indexes = position * per_client..(position + 1) * per_client;
            this.threads.push(namespaces.background(client, move || {
                runtime()?.block_on(async {
                    let spawn =
                        |index| tokio::spawn(exchange(Arc::clone(&shared), index, pause, limit));
                    let tasks: Vec<_> = indexes.map(spawn).collect();
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
                    "{waiting} of {all} connections had no reply within {limit:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The current state.
    pub fn snapshot(&self) -> ConnectionsSnapshot {
        let mut snapshot = ConnectionsSnapshot {
            exchanges: Vec::new(),
            by_backend: BTreeMap::new(),
            broken: Vec::new(),
        };
        for connection in &self.shared.connections {
            snapshot.exchanges.push(connection.exchanges.load(Ordering::Relaxed));
            match (lock(&connection.broken).clone(), lock(&connection.backend).clone()) {
                (Some(reason), _) => snapshot.broken.push(reason),
                (None, Some(backend)) => *snapshot.by_backend.entry(backend).or_default() += 1,
                (None, None) => {}
            }
        }
        snapshot
    }

    /// Waits until every open connection has completed an exchange that started after this call.
    ///
    /// That needs two more exchanges, because one may be in progress at the call.
    pub fn wait_exchanges(&self, limit: Duration) -> Result<ConnectionsSnapshot> {
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
    pub fn close(mut self) -> Result<ConnectionsSnapshot> {
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
        // The threads end after their current exchange; after a failure nothing waits for them.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Exchanges messages on one connection until all connections are closed.
async fn exchange(shared: Arc<Shared>, index: usize, pause: Duration, limit: Duration) {
    let state = &shared.connections[index];
    let version = IpVersion::BOTH[index % IpVersion::BOTH.len()];
    let exchanges = async {
        let mut connection = timeout(limit, HttpConnection::open(version.web()))
            .await
            .context("the connection was not established in time")??;
        for number in 0.. {
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let reply = timeout(limit, connection.sequence(number)).await;
            let backend = reply
                .with_context(|| format!("no reply to number {number} within {limit:?}"))??;
            let earlier = lock(&state.backend).replace(backend.clone());
            if let Some(earlier) = earlier.filter(|earlier| *earlier != backend) {
                return Err(anyhow!(
                    "{backend} replied to number {number} on a connection to {earlier}"
                ));
            }
            state.exchanges.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    };
    if let Err(error) = exchanges.await {
        let backend = lock(&state.backend).clone().unwrap_or_else(|| "no backend".into());
        *lock(&state.broken) =
            Some(format!("connection {index} ({}, {backend}): {error:#}", version.name()));
    }
}

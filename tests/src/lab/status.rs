//! What `sluice status --json` and `sluice counters --json` say, as far as the lab reads it.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The answer of `sluice status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The balancer's part.
    pub lb: Balancer,
}

/// A balancer.
#[derive(Clone, Debug, Deserialize)]
pub struct Balancer {
    /// PID of its daemon, while one runs.
    pub daemon: Option<u32>,
    /// The services, as they are in the kernel's maps.
    pub services: Vec<ServiceStatus>,
    /// The backends, as they are in the kernel's maps.
    pub backends: Vec<BackendStatus>,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Version of its table.
    pub generation: u64,
    /// Digest of the owners of all slots.
    pub table_digest: String,
    /// Slots of its table.
    pub table_size: u64,
    /// Slots by the backend that takes their new flows.
    pub slots: BTreeMap<String, u64>,
}

/// One backend.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes no new flows.
    pub draining: bool,
    /// Interface and MTU towards each of its addresses.
    pub next_hops: BTreeMap<IpAddr, (u32, u32)>,
    /// Where a router told that MTU: for how many more seconds it counts.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

impl Balancer {
    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&ServiceStatus> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Whether the backend of that name is known and draining.
    pub fn drains(&self, name: &str) -> bool {
        self.backends.iter().any(|backend| backend.name == name && backend.draining)
    }
}

impl ServiceStatus {
    /// Slots whose new flows go to that backend.
    pub fn slots_of(&self, backend: &str) -> u64 {
        self.slots.get(backend).copied().unwrap_or(0)
    }

    /// All backends with their slots, for a person.
    pub fn slots_in_words(&self) -> String {
        self.slots
            .iter()
            .map(|(name, slots)| format!("{name} {slots}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// The answer of `sluice counters --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Counters {
    /// The balancer's part.
    pub lb: Option<BalancerCounters>,
    /// The backend's part.
    pub backend: Option<BackendCounters>,
}

/// What a backend's programs counted.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendCounters {
    /// SYN-ACKs that were made to tell of smaller segments.
    pub mss_clamped: u64,
}

/// What a balancer's programs counted.
#[derive(Clone, Debug, Deserialize)]
pub struct BalancerCounters {
    /// Forwarded, by service.
    pub services: BTreeMap<String, Traffic>,
    /// Forwarded, by backend.
    pub backends: BTreeMap<String, Traffic>,
    /// Packets not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Errors of routers about encapsulated packets, by what became of them.
    pub path_errors: BTreeMap<String, u64>,
}

/// Packets and bytes forwarded.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

//! What `sluice status --json` and `sluice counters --json` say, as far as the lab reads it.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The answer of `sluice status --json` on a balancer.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The services, as they are in the kernel's maps.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Version of its table.
    pub generation: u64,
    /// Slots of its table.
    pub table_size: u64,
    /// Digest of all slots, where the binary reports one.
    #[serde(default)]
    pub digest: Option<String>,
    /// Its backends.
    pub backends: Vec<BackendStatus>,
}

/// One backend of a service.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Its weight as configured.
    pub weight: u64,
    /// Slots it owns.
    pub slots: u64,
    /// Whether it takes no new flows.
    #[serde(default)]
    pub draining: bool,
    /// Packets sent to it.
    #[serde(default)]
    pub packets: u64,
}

impl Status {
    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&ServiceStatus> {
        self.services.iter().find(|service| service.name == name)
    }
}

impl ServiceStatus {
    /// The backend of that name.
    pub fn backend(&self, name: &str) -> Option<&BackendStatus> {
        self.backends.iter().find(|backend| backend.name == name)
    }

    /// Slots by backend.
    pub fn slots(&self) -> BTreeMap<&str, u64> {
        self.backends.iter().map(|backend| (backend.name.as_str(), backend.slots)).collect()
    }
}

/// The answer of `sluice counters --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Counters {
    /// By service.
    #[serde(default)]
    pub services: BTreeMap<String, Traffic>,
    /// By backend.
    #[serde(default)]
    pub backends: BTreeMap<String, Traffic>,
    /// Packets not forwarded, by reason.
    #[serde(default)]
    pub reasons: BTreeMap<String, u64>,
}

/// Packets and bytes forwarded.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

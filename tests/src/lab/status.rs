//! The parts of the documents of `sluice status --json` and `sluice counters --json` that the lab
//! reads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

/// The document of `sluice status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct StatusJson {
    /// The balancer's part.
    pub lb: BalancerJson,
}

/// A balancer.
#[derive(Clone, Debug, Deserialize)]
pub struct BalancerJson {
    /// The services in the kernel's maps.
    pub services: Vec<ServiceJson>,
    /// The backends in the kernel's maps.
    pub backends: Vec<BackendJson>,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceJson {
    /// Its name.
    pub name: String,
    /// Version of its lookup table.
    pub generation: u64,
    /// Digest of the owners of all slots.
    pub table_digest: String,
    /// Slots of its lookup table.
    pub table_size: u64,
    /// Slots by the backend that their new flows are sent to.
    pub slots: BTreeMap<String, u64>,
}

/// One backend.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendJson {
    /// Its name.
    pub name: String,
    /// Whether it takes no new flows.
    pub draining: bool,
    /// The next hop towards each of its addresses.
    pub next_hops: BTreeMap<IpAddr, NextHopJson>,
    /// Remaining lifetime in seconds of the path MTU that a router reported for an address.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

/// A next hop.
#[derive(Clone, Debug, Deserialize)]
pub struct NextHopJson {
    /// The MTU of the path in bytes.
    pub mtu: u32,
}

impl BalancerJson {
    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&ServiceJson> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Whether the backend of that name exists and is draining.
    pub fn is_draining(&self, name: &str) -> bool {
        self.backends.iter().any(|backend| backend.name == name && backend.draining)
    }
}

impl ServiceJson {
    /// Slots whose new flows are sent to that backend.
    pub fn slots_of(&self, backend: &str) -> u64 {
        self.slots.get(backend).copied().unwrap_or(0)
    }

    /// All backends with their slots: `web-1 500, web-2 250`.
    pub fn slots_text(&self) -> String {
        let slots: Vec<_> =
            self.slots.iter().map(|(name, slots)| format!("{name} {slots}")).collect();
        slots.join(", ")
    }
}

/// The document of `sluice counters --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct CountersJson {
    /// The balancer's part.
    pub lb: Option<BalancerCountersJson>,
    /// The backend's part.
    pub backend: Option<BackendCountersJson>,
}

/// The counters of a backend's programs.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendCountersJson {
    /// SYN-ACKs in which the MSS was lowered.
    pub mss_clamped: u64,
}

/// The counters of a balancer's programs.
#[derive(Clone, Debug, Deserialize)]
pub struct BalancerCountersJson {
    /// Forwarded, by service.
    pub services: BTreeMap<String, TrafficJson>,
    /// Forwarded, by backend.
    pub backends: BTreeMap<String, TrafficJson>,
    /// Packets not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// ICMP errors about encapsulated packets, by outcome.
    pub path_errors: BTreeMap<String, u64>,
}

impl BalancerCountersJson {
    /// Packets forwarded for all services.
    pub fn forwarded(&self) -> u64 {
        self.services.values().map(|traffic| traffic.packets).sum()
    }
}

/// Packets and bytes forwarded.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct TrafficJson {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

//! The document of `sluice status`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::memory::MemoryStatus;
use crate::notice::Notice;
use crate::read::daemon::DaemonStatus;
use crate::read::devices::DeviceStatus;
use crate::read::interfaces::InterfaceStatus;
use crate::read::next_hops::NextHopStatus;

/// The state of an instance on this host.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// The balancer, if this host has the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb: Option<LbStatus>,
    /// The backend, if this host has the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendStatus>,
}

/// The state of a balancer.
#[derive(Debug, Serialize)]
pub struct LbStatus {
    /// Whether the program is attached to all interfaces, which are up, and there is a service with
    /// a path to a backend.
    pub forwarding: bool,
    /// Notices about the state of this host and of the maps. The daemon's are in `daemon`.
    pub notices: Vec<Notice>,
    /// The daemon; `null` if none runs.
    pub daemon: Option<DaemonStatus>,
    /// The interfaces, and whether the program is attached there.
    pub interfaces: Vec<InterfaceStatus>,
    /// Digest of the text of the configuration that was applied last, hexadecimal.
    pub config_digest: String,
    /// Time of that, in seconds since 1970 (UTC).
    pub applied_at: u64,
    /// Whether a change of the maps is incomplete.
    pub changing: bool,
    /// The services, by name.
    pub services: Vec<ServiceStatus>,
    /// The backends, by name.
    pub backends: Vec<BackendEntry>,
    /// Memory of the maps.
    pub memory: MemoryStatus,
}

/// A service in the maps.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<String>,
    /// Routes: client prefix and name of the service that handles it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, String>,
    /// QUIC server IDs, as `0:c4605e` (configuration's rotation and hexadecimal ID), and the name
    /// of the backend.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_ids: BTreeMap<String, String>,
    /// Whether flows are kept in the connection table.
    pub tracked: bool,
    /// Incremented with every table.
    pub generation: u32,
    /// Digest of the slots' owners, hexadecimal; equal on balancers with equal tables.
    pub table_digest: String,
    /// Number of slots.
    pub table_size: u32,
    /// Slots of each backend, by name. Draining backends have none.
    pub slots: BTreeMap<String, u32>,
}

/// A backend in the maps.
#[derive(Debug, Serialize)]
pub struct BackendEntry {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it keeps existing connections and gets no new ones.
    pub draining: bool,
    /// The next hop towards each address; absent without a route.
    pub next_hops: BTreeMap<IpAddr, NextHopStatus>,
    /// Remaining lifetime, in seconds, of MTUs that an ICMP error lowered below the route's. 0 if
    /// it expired while no daemon runs: the MTU stays in force until one starts.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

/// The state of a backend.
#[derive(Debug, Serialize)]
pub struct BackendStatus {
    /// Whether the interfaces are up and the program is attached to all of them, or the tunnel
    /// devices are up.
    pub decapsulating: bool,
    /// Notices about the state of this host. The daemon's are in `daemon`.
    pub notices: Vec<Notice>,
    /// The daemon; `null` if none runs.
    pub daemon: Option<DaemonStatus>,
    /// The interfaces, and whether the program is attached there.
    pub interfaces: Vec<InterfaceStatus>,
    /// The tunnel devices.
    pub devices: Vec<DeviceStatus>,
    /// Whether the BPF program decapsulates, for at least one family; otherwise tunnel devices do.
    pub program: bool,
    /// The MSS that is clamped to, by family; absent where it is not clamped.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub largest_segments: BTreeMap<&'static str, u32>,
    /// Memory of the maps; absent if no program is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
}

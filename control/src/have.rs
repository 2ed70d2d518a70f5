//! The state that the maps hold.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::abi::{
    Backend, Connection, QuicIdLengths, QuicServerKey, RouteKey, ServiceRef, VipAddress, VipKey,
};

use crate::service_table::ServiceTable;

/// The state that the maps hold. Indexes that were never used are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// Backends and indexes in quarantine, by index.
    pub backends: BTreeMap<u16, HaveBackend>,
    /// Services and indexes in quarantine, by index.
    pub services: BTreeMap<u32, HaveService>,
    /// VIP addresses and prefixes.
    pub addresses: BTreeMap<IpNet, VipAddress>,
    /// VIPs.
    pub vips: BTreeMap<VipKey, ServiceRef>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, ServiceRef>,
    /// QUIC server IDs and their backends.
    pub quic_servers: BTreeMap<QuicServerKey, Connection>,
    /// Lengths of QUIC server IDs, by the index of the service.
    pub quic_lengths: BTreeMap<u32, QuicIdLengths>,
}

/// The state of a backend index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveBackend {
    /// The backend's name; `None` for an index that is free or in quarantine.
    pub name: Option<String>,
    /// The entry in `BACKENDS`.
    pub entry: Backend,
    /// The last epoch of the index.
    pub epoch: u32,
    /// Whether the backend is draining.
    pub draining: bool,
    /// The end of the index's quarantine, in nanoseconds since boot.
    pub reusable_after: u64,
}

/// The state of a service index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveService {
    /// The service's name; `None` for an index that is free or in quarantine.
    pub name: Option<String>,
    /// The lookup table.
    pub table: Option<ServiceTable>,
    /// The end of the index's quarantine, in nanoseconds since boot.
    pub reusable_after: u64,
}

/// How long a freed index stays in quarantine, in seconds.
///
/// After that time no program run still uses the index, and readers of counters have seen the last
/// values of the removed backend or service.
pub const QUARANTINE_SECONDS: u64 = 30;

//! The state of the maps.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_datapath::abi;
use sluice_datapath::abi::{
    Backend, Connection, QuicIdLengths, QuicServerKey, RouteKey, VipAddress, VipKey,
};

use crate::lookup_table::LookupTable;

/// What the maps hold. Indexes that were never used are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// Backends and resting indexes, by index.
    pub backends: BTreeMap<u16, HaveBackend>,
    /// Services and resting indexes, by index.
    pub services: BTreeMap<u32, HaveService>,
    /// VIP addresses and prefixes.
    pub addresses: BTreeMap<IpNet, VipAddress>,
    /// VIPs.
    pub vips: BTreeMap<VipKey, abi::ServiceRef>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, abi::ServiceRef>,
    /// QUIC server IDs and their backends.
    pub quic_servers: BTreeMap<QuicServerKey, Connection>,
    /// How long the QUIC server IDs of services are, of those that have any.
    pub quic_lengths: BTreeMap<u32, QuicIdLengths>,
}

/// What a backend's index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveBackend {
    /// The backend's name; `None` when the index is free, or rests.
    pub name: Option<String>,
    /// Its entry.
    pub entry: Backend,
    /// The epoch that the index had last.
    pub epoch: u32,
    /// Whether it is draining.
    pub draining: bool,
    /// Until when the index rests, nanoseconds since boot.
    pub reusable_after: u64,
}

/// What a service's index holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveService {
    /// The service's name; `None` when the index is free, or rests.
    pub name: Option<String>,
    /// Its lookup table.
    pub table: Option<LookupTable>,
    /// Until when the index rests, nanoseconds since boot.
    pub reusable_after: u64,
}

/// How long a freed index rests before it may be used again, in seconds.
///
/// A packet that read the index before it was freed has long been forwarded by then, and so have
/// the counters been read that belong to the one who had it.
pub const REST_SECONDS: u64 = 30;

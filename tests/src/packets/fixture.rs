//! Contents of the maps during a test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_datapath::abi::{AclVerdict, AddressOptions, LocalAddress, RateKind, VipOptions};

use super::addresses::{INTERFACE, VIP_V4, VIP_V6};

/// Key of the flow hash.
pub const HASH_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// MTU towards every backend, unless a case sets another.
pub const MTU: u32 = 1600;
/// Service of port 443/tcp.
pub const WEB: u32 = 1;
/// Service of port 53/udp.
pub const DNS: u32 = 2;
/// The largest index of a service or a backend in any case.
pub const LARGEST_INDEX: u16 = 8;

/// One slot of a lookup table: backend index and hint.
pub type SlotSpec = (u16, u16);

/// A service's lookup table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Whether the service uses the connection table.
    pub tracked: bool,
    /// Slots, by number.
    pub slots: Vec<SlotSpec>,
}

/// A backend in the balancer's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Number of uses of the index.
    pub epoch: u32,
    /// Interface and MTU towards it in both families; `None` without a route.
    pub next_hop: Option<(u32, u32)>,
}

impl BackendSpec {
    /// Backend `index` with both addresses and a route.
    pub fn new(index: u16) -> Self {
        Self {
            v4: Some(Ipv4Addr::new(10, 0, 1, index as u8)),
            v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, index)),
            epoch: 1,
            next_hop: Some((INTERFACE, MTU)),
        }
    }
}

/// Server IDs of a QUIC-LB configuration: their length in bytes, and backend and epoch of each.
pub type ServerIds = (usize, BTreeMap<Vec<u8>, (u16, u32)>);

/// The contents of the balancer's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixture {
    /// VIP addresses with their numbers.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// VIP prefixes with their numbers.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Options of addresses and prefixes, by number.
    pub address_options: BTreeMap<u32, AddressOptions>,
    /// VIPs: number of the address, port and protocol, to service.
    pub vips: BTreeMap<(u32, u16, u8), u32>,
    /// Options of services.
    pub vip_options: BTreeMap<u32, VipOptions>,
    /// Source ACLs by service; service 0 is the global ACL. A prefix of length 0 holds the default
    /// verdict.
    pub acls: BTreeMap<u32, BTreeMap<IpNet, AclVerdict>>,
    /// Burst of each rate limit, in tokens. Buckets refill long after any test.
    pub rates: BTreeMap<(u32, RateKind), u32>,
    /// Routes: service and client prefix, to target service.
    pub routes: BTreeMap<(u32, IpNet), u32>,
    /// QUIC server IDs by service and configuration rotation.
    pub server_ids: BTreeMap<(u32, u8), ServerIds>,
    /// Lookup tables by service.
    pub tables: BTreeMap<u32, TableSpec>,
    /// Backends by index.
    pub backends: BTreeMap<u16, BackendSpec>,
}

impl Fixture {
    /// Two services over four backends: [`WEB`] on 443/tcp and [`DNS`] on 53/udp, at [`VIP_V4`] and
    /// [`VIP_V6`].
    /// Adjacent slots have different backends. Hints have bits in every position.
    pub fn new() -> Self {
        let hint = |slot: u16| slot.wrapping_mul(0x9e37) ^ 0x55aa;
        let table = |length: u16, shift: u16| TableSpec {
            tracked: false,
            slots: (0..length).map(|slot| ((slot + shift) % 4 + 1, hint(slot + shift))).collect(),
        };
        Self {
            addresses: [(VIP_V4.into(), 1), (VIP_V6.into(), 2)].into(),
            prefixes: BTreeMap::new(),
            address_options: BTreeMap::new(),
            vip_options: BTreeMap::new(),
            acls: BTreeMap::new(),
            rates: BTreeMap::new(),
            routes: BTreeMap::new(),
            server_ids: BTreeMap::new(),
            vips: [((1, 443, 6), WEB), ((2, 443, 6), WEB), ((1, 53, 17), DNS), ((2, 53, 17), DNS)]
                .into(),
            tables: [(WEB, table(251, 0)), (DNS, table(1021, 2))].into(),
            backends: (1..=4).map(|index| (index, BackendSpec::new(index))).collect(),
        }
    }

    /// The same with one backend and hint in every slot of both services.
    #[must_use]
    pub fn all_to(mut self, backend: u16, hint: u16) -> Self {
        for table in self.tables.values_mut() {
            table.slots.fill((backend, hint));
        }
        self
    }

    /// The same with both services tracked or untracked.
    #[must_use]
    pub fn tracked(mut self, tracked: bool) -> Self {
        for table in self.tables.values_mut() {
            table.tracked = tracked;
        }
        self
    }

    /// The same with one backend changed.
    #[must_use]
    pub fn with_backend(mut self, index: u16, change: impl FnOnce(&mut BackendSpec)) -> Self {
        change(self.backends.entry(index).or_insert_with(|| BackendSpec::new(index)));
        self
    }

    /// The same with one backend removed, which frees its index.
    #[must_use]
    pub fn without_backend(mut self, index: u16) -> Self {
        self.backends.remove(&index);
        self
    }

    /// The same with another MTU towards every backend.
    #[must_use]
    pub fn with_mtu(mut self, mtu: u32) -> Self {
        for backend in self.backends.values_mut() {
            backend.next_hop = backend.next_hop.map(|(interface, _)| (interface, mtu));
        }
        self
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

/// The contents of the backend's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFixture {
    /// Local addresses: destinations of encapsulated packets.
    pub local: Vec<IpAddr>,
    /// Local addresses whose packets a tunnel device decapsulates.
    pub by_device: Vec<IpAddr>,
    /// VIP addresses and prefixes of the backend.
    pub vips: Vec<IpNet>,
    /// Accepted sources of outer headers; empty for any.
    pub balancers: Vec<IpNet>,
}

impl HostFixture {
    /// A backend that accepts any source of outer headers and has no tunnel device.
    pub fn new(local: Vec<IpAddr>, vips: Vec<IpNet>) -> Self {
        Self { local, by_device: Vec::new(), vips, balancers: Vec::new() }
    }

    /// The entries of the local addresses.
    pub fn local_entries(&self) -> Vec<(IpAddr, LocalAddress)> {
        let entry = |address| match self.by_device.contains(address) {
            true => LocalAddress::BY_DEVICE,
            false => LocalAddress::BY_PROGRAM,
        };
        self.local.iter().map(|address| (*address, entry(address))).collect()
    }
}

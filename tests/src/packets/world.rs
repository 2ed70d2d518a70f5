//! What a case finds in the maps, what it sends, and what it expects.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_datapath::Reason;
use sluice_datapath::entries::{Connection, FirstVip, Listing, RouteKey, Vip, VipAddress};
use sluice_datapath::flow::Port;
use sluice_datapath::options::{AddressOptions, VipOptions};
use sluice_datapath::quic::{IdLengths, ServerKey};
use sluice_datapath::rates::{Limit, Rate};

use super::build::RECEIVER;
use super::native::key;

/// Source address of IPv4 outer headers.
pub const UNDERLAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Source address of IPv6 outer headers.
pub const UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// The neighbour to whom IPv4 outer headers are handed.
pub const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// The neighbour to whom IPv6 outer headers are handed.
pub const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9);
/// The IPv4 VIP address.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The IPv6 VIP address.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// Key of the flow hash.
pub const HASH_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// Destination port of GUE; not the usual one, so that no number is in two places.
pub const GUE_PORT: Port = Port::new(5555);
/// Largest IP packet on the way to every backend, unless a case says otherwise.
pub const MTU: u32 = 1600;
/// Service of port 443/tcp.
pub const WEB: u32 = 1;
/// Service of port 53/udp.
pub const DNS: u32 = 2;
/// An interface that does not exist in the namespace of a test.
pub const INTERFACE: u32 = 1000;
/// The largest index of a service or a backend that any case uses.
pub const LARGEST_INDEX: u16 = 8;

/// One slot of a lookup table: the backend and the hint.
pub type Slot = (u16, u16);

/// A service's lookup table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Whether its flows are kept in the connection table.
    pub tracked: bool,
    /// Its slots.
    pub slots: Vec<Slot>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// How often its index was used.
    pub incarnation: u32,
    /// Interface and MTU towards it in both families; `None` when there is no route.
    pub next_hop: Option<(u32, u32)>,
}

impl Backend {
    /// Backend `index` as most cases have it.
    pub fn new(index: u16) -> Self {
        Self {
            v4: Some(Ipv4Addr::new(10, 0, 1, index as u8)),
            v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, index)),
            incarnation: 1,
            next_hop: Some((INTERFACE, MTU)),
        }
    }
}

/// QUIC server IDs of a configuration: how long they are, and the backend and incarnation that has
/// each.
pub type ServerIds = (usize, BTreeMap<Vec<u8>, (u16, u32)>);

/// What the balancer's maps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// VIP addresses and their numbers.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// VIP prefixes and their numbers.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Options of addresses and prefixes that have any, by number.
    pub address_options: BTreeMap<u32, AddressOptions>,
    /// VIPs: number of the address, port and protocol to service.
    pub vips: BTreeMap<(u32, u16, u8), u32>,
    /// Options of the VIPs of services that have any.
    pub vip_options: BTreeMap<u32, VipOptions>,
    /// Lists of sources by service; service 0 stands for all. Prefixes of no bits say what counts
    /// for everybody else.
    pub lists: BTreeMap<u32, BTreeMap<IpNet, Listing>>,
    /// Rates by service: tokens that buckets hold, which come again long after any test.
    pub rates: BTreeMap<(u32, Limit), u32>,
    /// Routes: a service and clients of it, and the service whose they are.
    pub routes: BTreeMap<(u32, IpNet), u32>,
    /// QUIC server IDs by service and rotation.
    pub quic: BTreeMap<(u32, u8), ServerIds>,
    /// Lookup tables by service.
    pub tables: BTreeMap<u32, Table>,
    /// Backends by index.
    pub backends: BTreeMap<u16, Backend>,
}

impl World {
    /// Two services over four backends: [`WEB`] on 443/tcp and [`DNS`] on 53/udp, at [`VIP_V4`] and
    /// [`VIP_V6`].
    ///
    /// The tables have a different backend in neighbouring slots and hints with bits in every
    /// position.
    pub fn new() -> Self {
        let hint = |slot: u16| slot.wrapping_mul(0x9e37) ^ 0x55aa;
        let table = |length: u16, shift: u16| Table {
            tracked: false,
            slots: (0..length).map(|slot| ((slot + shift) % 4 + 1, hint(slot + shift))).collect(),
        };
        Self {
            addresses: [(VIP_V4.into(), 1), (VIP_V6.into(), 2)].into(),
            prefixes: BTreeMap::new(),
            address_options: BTreeMap::new(),
            vip_options: BTreeMap::new(),
            lists: BTreeMap::new(),
            rates: BTreeMap::new(),
            routes: BTreeMap::new(),
            quic: BTreeMap::new(),
            vips: [((1, 443, 6), WEB), ((2, 443, 6), WEB), ((1, 53, 17), DNS), ((2, 53, 17), DNS)]
                .into(),
            tables: [(WEB, table(251, 0)), (DNS, table(1021, 2))].into(),
            backends: (1..=4).map(|index| (index, Backend::new(index))).collect(),
        }
    }

    /// All VIP addresses and prefixes, as the maps hold them.
    pub fn address_entries(&self) -> impl Iterator<Item = (IpNet, VipAddress)> {
        let single = self.addresses.iter().map(|(address, id)| (IpNet::from(*address), *id));
        let all = single.chain(self.prefixes.iter().map(|(prefix, id)| (*prefix, *id)));
        all.map(|(prefix, id)| {
            let options = self.address_options.get(&id).copied().unwrap_or_default();
            (prefix, VipAddress { first: self.first_vip(id), ..VipAddress::new(id, options) })
        })
    }

    /// The VIP that an address's entry holds: the last one of every other address, the first one of
    /// the others, so that cases meet VIPs that are held and VIPs that are not in both families.
    fn first_vip(&self, id: u32) -> FirstVip {
        let mut vips =
            self.vips.iter().filter(|((address, port, _), _)| *address == id && *port != 0);
        let chosen = if id.is_multiple_of(2) { vips.next() } else { vips.next_back() };
        chosen.map_or(FirstVip::NONE, |((_, port, protocol), service)| {
            FirstVip::new(Port::new(*port), *protocol, self.vip_entry(*service))
        })
    }

    /// A service's rate, as the map has it.
    pub fn rate(&self, service: u32, limit: Limit) -> Rate {
        self.rates.get(&(service, limit)).map_or(Rate::NONE, |burst| Rate::every(86_400, *burst))
    }

    /// The entry of the VIPs of a service.
    pub fn vip_entry(&self, service: u32) -> Vip {
        let routed = self.routes.keys().any(|(routing, _)| *routing == service);
        let leads = |to| self.routes.iter().any(|((from, _), led)| *from == service && *led == to);
        let quic = self.quic.keys().any(|(has, _)| *has == service || leads(*has));
        let options = self.vip_options.get(&service).copied().unwrap_or_default();
        Vip {
            service,
            options: options.with_if(routed, VipOptions::ROUTED).with_if(quic, VipOptions::QUIC),
        }
    }

    /// The QUIC server IDs, as the map has them.
    pub fn server_entries(&self) -> impl Iterator<Item = (ServerKey, Connection)> {
        self.quic.iter().flat_map(|((service, rotation), (_, servers))| {
            servers.iter().map(|(id, (backend, incarnation))| {
                let key = ServerKey::new(*service, *rotation, id).expect("a valid ID");
                (key, Connection { backend: u32::from(*backend), incarnation: *incarnation })
            })
        })
    }

    /// How long a service's QUIC server IDs are, as the map has it.
    pub fn id_lengths(&self, service: u32) -> IdLengths {
        let configs = self.quic.iter().filter(|((has, _), _)| *has == service);
        configs.fold(IdLengths::NONE, |all, ((_, rotation), (length, _))| {
            all.with(*rotation, *length as u8)
        })
    }

    /// The routes, as the map has them.
    pub fn route_entries(&self) -> impl Iterator<Item = (RouteKey, Vip)> {
        self.routes.iter().map(|((service, clients), to)| {
            (RouteKey::new(*service, &key(*clients)), self.vip_entry(*to))
        })
    }

    /// The same with every slot of both services naming one backend.
    #[must_use]
    pub fn all_to(mut self, backend: u16, hint: u16) -> Self {
        for table in self.tables.values_mut() {
            table.slots.fill((backend, hint));
        }
        self
    }

    /// The same with both services tracked or not.
    #[must_use]
    pub fn tracked(mut self, tracked: bool) -> Self {
        for table in self.tables.values_mut() {
            table.tracked = tracked;
        }
        self
    }

    /// The same with one backend changed.
    #[must_use]
    pub fn with_backend(mut self, index: u16, change: impl FnOnce(&mut Backend)) -> Self {
        change(self.backends.entry(index).or_insert_with(|| Backend::new(index)));
        self
    }

    /// The same without one backend: its index is free.
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

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A frame and what the kernel knows about it beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Payload of each segment of a merged packet, in bytes; 0 when it is not merged.
    pub segment_size: u32,
    /// Packets that a merged packet stands for; 0 when the kernel does not say.
    pub segments: u32,
    /// Whether a VLAN tag is held beside the bytes.
    pub vlan: bool,
}

impl Frame {
    /// Whether its link address is not the receiver's.
    pub fn is_for_other_host(&self) -> bool {
        !self.bytes.starts_with(&RECEIVER)
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, segment_size: 0, segments: 0, vlan: false }
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on untouched, counted under a reason.
    Pass(Reason),
    /// It is dropped, counted under a reason.
    Drop(Reason),
    /// It is encapsulated.
    Forward(Forwarded),
    /// It becomes its own answer, these bytes, counted under a reason.
    Answer(Reason, Vec<u8>),
}

/// An encapsulated frame and what it adds to counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Service that it is accounted to.
    pub service: u32,
    /// Backend that it goes to.
    pub backend: u16,
    /// Packets that it counts as.
    pub packets: u64,
    /// Bytes of the client's IP packet.
    pub length: u64,
    /// Whether it opens a connection.
    pub opens: bool,
}

/// Counters that are not zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By service: packets, bytes, new flows.
    pub services: BTreeMap<u32, (u64, u64, u64)>,
    /// By backend: packets, bytes, new flows.
    pub backends: BTreeMap<u16, (u64, u64, u64)>,
    /// By reason.
    pub reasons: BTreeMap<Reason, u64>,
}

impl Counters {
    /// Adds what an outcome should add.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Drop(reason @ Reason::MtuNotTold)
            | Outcome::Answer(reason @ Reason::MtuTold, _) => {
                *self.reasons.entry(Reason::TooBig).or_default() += 1;
                *self.reasons.entry(*reason).or_default() += 1;
            }
            Outcome::Pass(reason) | Outcome::Drop(reason) | Outcome::Answer(reason, _) => {
                *self.reasons.entry(*reason).or_default() += 1
            }
            Outcome::Forward(forwarded) => {
                let service = self.services.entry(forwarded.service).or_default();
                service.0 += forwarded.packets;
                service.1 += forwarded.length;
                service.2 += u64::from(forwarded.opens);
                let backend = self.backends.entry(forwarded.backend).or_default();
                backend.0 += forwarded.packets;
                backend.1 += forwarded.length;
                backend.2 += u64::from(forwarded.opens);
            }
        }
    }
}

impl Counters {
    /// Adds other counters.
    pub fn add_all(&mut self, other: &Self) {
        for (service, (packets, bytes, new_flows)) in &other.services {
            let sum = self.services.entry(*service).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes, sum.2 + new_flows);
        }
        for (backend, (packets, bytes, new_flows)) in &other.backends {
            let sum = self.backends.entry(*backend).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes, sum.2 + new_flows);
        }
        for (reason, count) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
    }
}

/// What a hook did with a frame, as far as it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The frame goes on.
    Pass,
    /// The frame is dropped.
    Drop,
    /// The frame leaves through an interface.
    Redirect,
    /// The frame leaves through the interface that it came from.
    Return,
}

/// What a backend's maps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Addresses of the host to which encapsulated packets may come.
    pub local: Vec<IpAddr>,
    /// VIP addresses and prefixes that it serves.
    pub vips: Vec<IpNet>,
}

/// Something that runs the balancer's packet path: natively, or a program in the kernel.
pub trait Balancer {
    /// Makes the maps hold a world, and nothing that an earlier one held; connections and counters
    /// stay.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, world: &World) -> anyhow::Result<()>;

    /// Gives it a frame: what it did, and the bytes as it left them.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// The counters since the start.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn counters(&self) -> anyhow::Result<Counters>;

    /// Whether it can be told that a frame is merged, or tagged beside its bytes.
    fn accepts(&self, frame: &Frame) -> bool;

    /// What a frame that is encapsulated looks like from outside.
    fn forwards_as(&self) -> Action;

    /// What a frame that became its own answer looks like from outside.
    fn answers_as(&self) -> Action;

    /// Whether the kernel refuses room in a merged packet, as it does in a test run: there the
    /// packet lacks a segment type.
    fn refuses_merged(&self) -> bool;
}

/// Packets and bytes decapsulated, and the reasons that occurred.
pub type Unwraps = ((u64, u64), BTreeMap<Reason, u64>);

/// Something that runs the backend's packet path.
pub trait Decapsulator {
    /// Makes the maps hold what a host serves.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, host: &Host) -> anyhow::Result<()>;

    /// Gives it a frame: what it did, and the bytes as it left them.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// Packets and bytes decapsulated, and the reasons that occurred.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn counters(&self) -> anyhow::Result<Unwraps>;

    /// As [`Balancer::refuses_merged`].
    fn refuses_merged(&self) -> bool;
}

/// Something that runs the packet path of what leaves a backend.
pub trait Clamper {
    /// Makes the maps hold the VIP addresses and prefixes, and the largest maximum segment sizes of
    /// IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()>;

    /// Gives it a frame: the bytes as it left them. It lets everything pass.
    ///
    /// # Errors
    ///
    /// What the kernel refused, or another verdict.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>>;

    /// How many frames it says that it changed.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn clamped(&self) -> anyhow::Result<u64>;
}

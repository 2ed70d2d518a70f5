//! The balancer's path: from a client's packet to an encapsulated one on its way to a backend.
//!
//! The path has stages. [`direct`] takes nearly every packet from wire to wire, reading headers at constant offsets only. What it finds
//! unusual (VLAN tags, options, extension headers, fragments) it leaves to [`unusual`], which finds the headers wherever they are and then
//! does the same. In the kernel each stage is a function with a stack frame of its own; [`balance`] is all of them, one after the other.

use crate::choose::{self, Choice};
use crate::encapsulate::wrap;
use crate::entries::{Fragment, FragmentKey, Listing, PrefixKey, Vip, VipAddress, VipKey};
use crate::flow::Port;
use crate::options::{AddressOptions, Features, VipOptions};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{Network, Part, Size, Transport};
use crate::rates::{Asks, SourceKey};
use crate::tables::{BalancerTables, Forwarded};
use crate::walk::{self, Walked};
use crate::{Family, Flow, Reason, parse};

/// Where an encapsulated packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Index of the interface towards the backend.
    pub interface: u32,
    /// Family of the outer header.
    pub family: Family,
}

/// What the first stage made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`unusual`].
    Unusual(P),
}

/// Balances one packet: on success it is encapsulated and accounted, and leaves through the interface named.
///
/// # Errors
///
/// The [`Reason`] why it is not forwarded, already counted; the packet is unchanged, and [`Reason::verdict`] says what to do
/// with it. (After [`Reason::NoRoom`] it may have been changed; it is dropped.)
#[inline(always)]
pub fn balance<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    match direct(packet, tables)? {
        Stage::Forward(forward) => Ok(forward),
        Stage::Unusual(packet) => unusual(packet, tables),
    }
}

/// The first stage: an untagged packet whose TCP or UDP header directly follows a plain IP header.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn direct<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Stage<P>, Reason> {
    counted(tables, forward_direct(packet, tables))
}

/// The second stage: headers wherever they are, and fragments.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn unusual<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    counted(tables, forward_unusual(packet, tables))
}

#[inline(always)]
fn counted<T: BalancerTables, R>(tables: &T, outcome: Result<R, Reason>) -> Result<R, Reason> {
    if let Err(reason) = outcome {
        tables.count_refused(reason);
    }
    outcome
}

#[inline(always)]
fn forward_direct<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Stage<P>, Reason> {
    let Some(family) = parse::family(&packet)? else { return Ok(Stage::Unusual(packet)) };
    let network = match family {
        Family::V4 => parse::ipv4(&packet, ETHERNET)?,
        Family::V6 => parse::ipv6(&packet, ETHERNET)?,
    };
    let address = find_address(tables, &network)?;
    if !network.is_direct() {
        return Ok(Stage::Unusual(packet));
    }
    let transport = parse::transport(&packet, &network)?;
    let vip = find_vip(tables, &address, transport.destination_port, network.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    check_source(tables, &network, &vip)?;
    let size = parse::size(&packet, ETHERNET, &network, &transport)?;
    let packet = Ours { network, size, opens: transport.opens, tags: None, vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables)?;
    packet.send(&choice, hash, tables).map(Stage::Forward)
}

#[inline(always)]
fn forward_unusual<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    let walked = walk::network(&packet)?;
    let address = find_address(tables, &walked.network)?;
    let walked = walked.past_extensions(&packet)?;
    if let Part::Later { identification } = walked.part {
        return follow(packet, &walked, identification, tables);
    }
    let offset = walked.start.wrapping_add(walked.network.header);
    let transport = parse::transport_at(&packet, offset, walked.network.protocol)?;
    let vip = find_vip(tables, &address, transport.destination_port, walked.network.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    check_source(tables, &walked.network, &vip)?;
    let size = parse::size(&packet, walked.start, &walked.network, &transport)?;
    let packet = Ours { network: walked.network, size, opens: transport.opens, tags: walked.tags(), vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables)?;
    if let Part::First { identification } = walked.part {
        let entry = Fragment {
            seen: tables.now(),
            service: vip.service,
            backend: u32::from(choice.index),
            incarnation: choice.backend.incarnation,
            hint: u32::from(choice.hint),
        };
        tables.remember_fragment(&packet.fragment_key(identification), &entry);
    }
    packet.send(&choice, hash, tables)
}

/// Sends a later fragment after its first one, if that is known.
#[inline(always)]
fn follow<P: Packet, T: BalancerTables>(
    packet: P,
    walked: &Walked,
    identification: u32,
    tables: &T,
) -> Result<Forward, Reason> {
    let (vip, tags) = (Vip { service: 0, options: Default::default() }, walked.tags());
    let size = Size { packet: 0, segment: 0 };
    let mut packet = Ours { network: walked.network, size, opens: false, tags, vip, packet };
    let first = tables.fragment(&packet.fragment_key(identification)).ok_or(Reason::Fragment)?;
    if tables.now().wrapping_sub(first.seen) > Fragment::LIFETIME {
        return Err(Reason::Fragment);
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    packet.size = parse::size_of_fragment(&packet.packet, walked.start, &walked.network)?;
    packet.vip.service = first.service;
    packet.alive()?;
    let backend = tables.backend(first.backend as u16).ok_or(Reason::NoBackend)?;
    if backend.incarnation != first.incarnation {
        return Err(Reason::NoBackend);
    }
    let choice = Choice { index: first.backend as u16, backend, hint: first.hint as u16 };
    // A later fragment has no ports; its outer source may differ from the first one's.
    let ports = Port::new(0);
    let flow = Flow::new(walked.network.source, walked.network.destination, ports, ports, walked.network.protocol);
    let hash = flow.hash(walked.network.family, tables.hash_key());
    packet.send(&choice, hash, tables)
}

/// The VIP address that a packet goes to. Whoever sends to anybody else has cost one look-up.
#[inline(always)]
fn find_address<T: BalancerTables>(tables: &T, network: &Network) -> Result<VipAddress, Reason> {
    if network.is_to_mapped() {
        return Err(Reason::NotVip);
    }
    let mut address = tables.vip_address(&network.destination);
    if address.is_none() && tables.features().has(Features::PREFIXES) {
        address = tables.vip_prefix(&PrefixKey::address(&network.destination));
    }
    address.ok_or(Reason::NotVip)
}

/// The VIP at a port of a VIP address.
#[inline(always)]
fn find_vip<T: BalancerTables>(tables: &T, address: &VipAddress, port: Port, protocol: u8) -> Result<Vip, Reason> {
    let mut vip = tables.vip(&VipKey::new(address.id, port, protocol));
    if vip.is_none() && tables.features().has(Features::ANY_PORT) {
        vip = tables.vip(&VipKey::new(address.id, VipKey::ANY_PORT, protocol));
    }
    vip.ok_or(if address.options.has(AddressOptions::DROP_UNLISTED) { Reason::Unlisted } else { Reason::NotVipPort })
}

/// Whether the lists of sources let a packet through: the one for all first, then the service's.
#[inline(always)]
fn check_source<T: BalancerTables>(tables: &T, network: &Network, vip: &Vip) -> Result<(), Reason> {
    let source = PrefixKey::address(&network.source);
    if tables.features().has(Features::LIST_OF_ALL)
        && let Some(listing) = tables.listing(Listing::OF_ALL, &source)
    {
        listing.check()?;
    }
    if tables.features().has(Features::LISTS) && vip.options.has(VipOptions::LISTED) {
        // A service that says it has a list and has none is new: its list is on the way.
        tables.listing(vip.service, &source).ok_or(Reason::NotAllowed)?.check()?;
    }
    Ok(())
}

/// A packet to a VIP, and what is known about it.
struct Ours<P> {
    packet: P,
    network: Network,
    size: Size,
    /// Whether it opens a TCP connection.
    opens: bool,
    /// Bytes of VLAN tags in the frame, if it has tags there or beside.
    tags: Option<usize>,
    vip: Vip,
}

impl<P: Packet> Ours<P> {
    #[inline(always)]
    fn flow(&self, transport: &Transport) -> Flow {
        let n = &self.network;
        Flow::new(n.source, n.destination, transport.source_port, transport.destination_port, n.protocol)
    }

    #[inline(always)]
    fn fragment_key(&self, identification: u32) -> FragmentKey {
        let n = &self.network;
        let (source, destination) = (n.source, n.destination);
        FragmentKey { source, destination, identification, protocol: u32::from(n.protocol) }
    }

    #[inline(always)]
    fn alive(&self) -> Result<(), Reason> {
        if self.network.hops == 0 { Err(Reason::Expired) } else { Ok(()) }
    }

    /// Takes the packet's tokens from its source's buckets, then from its service's: what a source has too much costs the others nothing.
    #[inline(always)]
    fn limit<T: BalancerTables>(&self, tables: &T) -> Result<(), Reason> {
        if !tables.features().has(Features::RATES) || !self.vip.options.has(VipOptions::LIMITED) {
            return Ok(());
        }
        let n = &self.network;
        let asks =
            Asks { service: self.vip.service, packets: self.packet.segments(), opens: self.opens, now: tables.now() };
        if !tables.take_from_source(&SourceKey::new(&n.source, n.family, asks.service), &asks) {
            return Err(Reason::SourceLimit);
        }
        if !tables.take_from_service(&asks) {
            return Err(Reason::ServiceLimit);
        }
        Ok(())
    }

    /// The backend that gets the packet, and the flow's hash.
    #[inline(always)]
    fn choose<T: BalancerTables>(&self, flow: &Flow, tables: &T) -> Result<(Choice, u64), Reason> {
        self.alive()?;
        self.limit(tables)?;
        let table = tables.table(self.vip.service).ok_or(Reason::NoTable)?;
        let mut hashed = *flow;
        if tables.features().has(Features::HASHING) {
            hashed = flow.reduced(self.vip.options);
        }
        let hash = hashed.hash(self.network.family, tables.hash_key());
        Ok((choose::choose(tables, &table, flow, hash, self.opens)?, hash))
    }

    /// Encapsulates the packet towards its backend, and accounts it.
    #[inline(always)]
    fn send<T: BalancerTables>(self, choice: &Choice, hash: u64, tables: &T) -> Result<Forward, Reason> {
        let forwarded = Forwarded {
            packets: self.packet.segments(),
            bytes: self.size.packet as u64,
            new_flows: u64::from(self.opens),
        };
        let forward = wrap(self.packet, &self.network, &self.size, self.tags, choice, hash, tables)?;
        tables.count_forwarded(self.vip.service, choice.index, &forwarded);
        Ok(forward)
    }
}

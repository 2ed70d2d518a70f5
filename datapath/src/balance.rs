//! The balancer's path: from a client's packet to an encapsulated one on its way to a backend.
//!
//! The path has stages. [`direct`] takes nearly every packet from wire to wire, reading headers at constant offsets only. What it finds
//! unusual (VLAN tags, options, extension headers, fragments) it leaves to [`unusual`], which finds the headers wherever they are and then
//! does the same. In the kernel each stage is a function with a stack frame of its own; [`balance`] is all of them, one after the other.

use crate::choose::{self, Choice};
use crate::encapsulate::{Way, way, wrap};
use crate::entries::{Fragment, FragmentKey, Listing, PrefixKey, Vip, VipAddress, VipKey};
use crate::flow::Port;
use crate::observe::{self, Seen};
use crate::options::{AddressOptions, Features, VipOptions};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{Network, Part, Size, Transport};
use crate::rates::{Asks, SourceKey};
use crate::reject::{reject, smallest};
use crate::tables::{BalancerTables, Forwarded};
use crate::walk::{self, Place};
use crate::{Address, Family, Flow, Reason, follow, icmp, parse};

/// Where an encapsulated packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Index of the interface towards the backend.
    pub interface: u32,
    /// Family of the outer header.
    pub family: Family,
    /// Index in `NEIGHBOURS` of whom it is handed to; 0 when the kernel finds out.
    pub neighbour: u32,
}

/// What the first stage made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`unusual`].
    Unusual(P),
    /// It is unchanged, uncounted, and a matter for [`reject`](crate::reject()): it does not fit, and its sender should be told this MTU.
    TooBig(P, u32),
}

/// What the second stage made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`icmp`](crate::icmp()): ICMP to a VIP address, and where it is.
    Icmp(P, Place),
    /// It is unchanged, uncounted, and a matter for [`follow`](crate::follow()): a later fragment to a VIP address, and where it is.
    Later(P, Place),
    /// As [`First::TooBig`].
    TooBig(P, u32),
}

/// Balances one packet: on success it is encapsulated and accounted, and leaves through the interface named.
///
/// # Errors
///
/// The [`Reason`] why it is not forwarded, already counted; [`Reason::verdict`] says what to do with the packet. It is unchanged, unless the
/// verdict is to answer, or the reason [`Reason::NoRoom`].
#[inline(always)]
pub fn balance<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    match direct(packet, tables)? {
        First::Forward(forward) => Ok(forward),
        First::TooBig(packet, mtu) => Err(reject(packet, mtu, tables)),
        First::Unusual(packet) => match unusual(packet, tables)? {
            Second::Forward(forward) => Ok(forward),
            Second::TooBig(packet, mtu) => Err(reject(packet, mtu, tables)),
            Second::Icmp(packet, place) => icmp(packet, place, tables),
            Second::Later(packet, place) => follow(packet, place, tables),
        },
    }
}

/// The first stage: an untagged packet whose TCP or UDP header directly follows a plain IP header.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn direct<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<First<P>, Reason> {
    let mut seen = Seen::default();
    let outcome = forward_direct(packet, tables, &mut seen);
    let became = match &outcome {
        Ok(First::Unusual(_)) => return outcome,
        Ok(First::Forward(forward)) => Ok(*forward),
        Ok(First::TooBig(..)) => Err(Reason::TooBig),
        Err(reason) => Err(*reason),
    };
    settle(tables, &seen, became);
    outcome
}

/// The second stage: headers wherever they are.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn unusual<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Second<P>, Reason> {
    let mut seen = Seen::default();
    let outcome = forward_unusual(packet, tables, &mut seen);
    let became = match &outcome {
        Ok(Second::Icmp(..) | Second::Later(..)) => return outcome,
        Ok(Second::Forward(forward)) => Ok(*forward),
        Ok(Second::TooBig(..)) => Err(Reason::TooBig),
        Err(reason) => Err(*reason),
    };
    settle(tables, &seen, became);
    outcome
}

/// Counts a packet that is not forwarded, and tells of every packet to whoever captures.
#[inline(always)]
pub(crate) fn settle<T: BalancerTables>(tables: &T, seen: &Seen, outcome: Result<Forward, Reason>) {
    if let Err(reason) = outcome {
        tables.count_refused(reason);
        if seen.service != 0
            && let Some(index) = reason.drop_index()
        {
            tables.count_dropped(seen.service, index);
        }
    }
    observe::note(tables, seen, outcome);
}

#[inline(always)]
fn forward_direct<P: Packet, T: BalancerTables>(packet: P, tables: &T, seen: &mut Seen) -> Result<First<P>, Reason> {
    let Some(family) = parse::family(&packet)? else { return Ok(First::Unusual(packet)) };
    let network = match family {
        Family::V4 => parse::ipv4(&packet, ETHERNET)?,
        Family::V6 => parse::ipv6(&packet, ETHERNET)?,
    };
    let address = find_address(tables, &network)?;
    if !network.is_direct() {
        return Ok(First::Unusual(packet));
    }
    let transport = parse::transport(&packet, &network)?;
    let vip = find_vip(tables, &address, transport.destination_port, network.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    (seen.service, seen.opens) = (vip.service, transport.opens);
    check_source(tables, &network.source, &vip)?;
    let size = parse::size(&packet, ETHERNET, &network, &transport)?;
    let packet = Ours { network, size, opens: transport.opens, tags: None, vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables)?;
    seen.backend = choice.index;
    let way = packet.way(&choice, tables)?;
    if let Some(mtu) = packet.mtu_to_tell(&way)? {
        return Ok(First::TooBig(packet.packet, mtu));
    }
    packet.send(&choice, &way, hash, tables).map(First::Forward)
}

#[inline(always)]
fn forward_unusual<P: Packet, T: BalancerTables>(packet: P, tables: &T, seen: &mut Seen) -> Result<Second<P>, Reason> {
    let walked = walk::network(&packet)?;
    let address = find_address(tables, &walked.network)?;
    let walked = walked.past_extensions(&packet)?;
    if let Part::Later = walked.part {
        return Ok(Second::Later(packet, Place::of(&walked)));
    }
    if walked.network.is_icmp() && matches!(walked.part, Part::Whole) {
        return Ok(Second::Icmp(packet, Place::of(&walked)));
    }
    let offset = walked.start.wrapping_add(walked.network.header);
    let transport = parse::transport_at(&packet, offset, walked.network.protocol)?;
    let vip = find_vip(tables, &address, transport.destination_port, walked.network.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    (seen.service, seen.opens) = (vip.service, transport.opens);
    check_source(tables, &walked.network.source, &vip)?;
    let size = parse::size(&packet, walked.start, &walked.network, &transport)?;
    let packet = Ours { network: walked.network, size, opens: transport.opens, tags: walked.tags(), vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables)?;
    seen.backend = choice.index;
    if let Part::First = walked.part {
        let entry = Fragment {
            seen: tables.now(),
            service: vip.service,
            backend: u32::from(choice.index),
            incarnation: choice.backend.incarnation,
            hint: u32::from(choice.hint),
        };
        tables.remember_fragment(&packet.fragment_key(walked.identification), &entry);
    }
    let way = packet.way(&choice, tables)?;
    if let Some(mtu) = packet.mtu_to_tell(&way)? {
        // What has tags in its bytes is told nothing.
        return if walked.start == ETHERNET { Ok(Second::TooBig(packet.packet, mtu)) } else { Err(Reason::TooBig) };
    }
    packet.send(&choice, &way, hash, tables).map(Second::Forward)
}

/// The VIP address that a packet goes to. Whoever sends to anybody else has cost one look-up.
#[inline(always)]
pub(crate) fn find_address<T: BalancerTables>(tables: &T, network: &Network) -> Result<VipAddress, Reason> {
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
pub(crate) fn find_vip<T: BalancerTables>(
    tables: &T,
    address: &VipAddress,
    port: Port,
    protocol: u8,
) -> Result<Vip, Reason> {
    if let Some(vip) = address.first.at(port, protocol) {
        return Ok(vip);
    }
    let mut vip = tables.vip(&VipKey::new(address.id, port, protocol));
    if vip.is_none() && tables.features().has(Features::ANY_PORT) {
        vip = tables.vip(&VipKey::new(address.id, VipKey::ANY_PORT, protocol));
    }
    vip.ok_or(if address.options.has(AddressOptions::DROP_UNLISTED) { Reason::Unlisted } else { Reason::NotVipPort })
}

/// Whether the list of sources that counts for all VIPs lets a client through.
#[inline(always)]
pub(crate) fn check_list_of_all<T: BalancerTables>(tables: &T, client: &Address) -> Result<(), Reason> {
    if tables.features().has(Features::LIST_OF_ALL)
        && let Some(listing) = tables.listing(Listing::OF_ALL, &PrefixKey::address(client))
    {
        listing.check()?;
    }
    Ok(())
}

/// Whether the lists of sources let a client through: the one for all first, then the service's.
#[inline(always)]
pub(crate) fn check_source<T: BalancerTables>(tables: &T, client: &Address, vip: &Vip) -> Result<(), Reason> {
    check_list_of_all(tables, client)?;
    if tables.features().has(Features::LISTS) && vip.options.has(VipOptions::LISTED) {
        // A service that says it has a list and has none is new: its list is on the way.
        tables.listing(vip.service, &PrefixKey::address(client)).ok_or(Reason::NotAllowed)?.check()?;
    }
    Ok(())
}

/// A packet to a VIP, and what is known about it.
pub(crate) struct Ours<P> {
    pub(crate) packet: P,
    pub(crate) network: Network,
    pub(crate) size: Size,
    /// Whether it opens a TCP connection.
    pub(crate) opens: bool,
    /// Bytes of VLAN tags in the frame, if it has tags there or beside.
    pub(crate) tags: Option<usize>,
    pub(crate) vip: Vip,
}

impl<P: Packet> Ours<P> {
    #[inline(always)]
    fn flow(&self, transport: &Transport) -> Flow {
        let n = &self.network;
        Flow::new(n.source, n.destination, transport.source_port, transport.destination_port, n.protocol)
    }

    #[inline(always)]
    pub(crate) fn fragment_key(&self, identification: u32) -> FragmentKey {
        let n = &self.network;
        let (source, destination) = (n.source, n.destination);
        FragmentKey { source, destination, identification, protocol: u32::from(n.protocol) }
    }

    #[inline(always)]
    pub(crate) fn alive(&self) -> Result<(), Reason> {
        if self.network.hops == 0 { Err(Reason::Expired) } else { Ok(()) }
    }

    /// Takes the packet's tokens from its source's buckets, then from its service's: what a source has too much costs the others nothing.
    #[inline(always)]
    pub(crate) fn limit<T: BalancerTables>(&self, tables: &T) -> Result<(), Reason> {
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
        self.choose_and(flow, tables, true)
    }

    /// The backend that has a flow, and the flow's hash; nothing is written down.
    #[inline(always)]
    pub(crate) fn find<T: BalancerTables>(&self, flow: &Flow, tables: &T) -> Result<(Choice, u64), Reason> {
        self.choose_and(flow, tables, false)
    }

    #[inline(always)]
    fn choose_and<T: BalancerTables>(&self, flow: &Flow, tables: &T, remembers: bool) -> Result<(Choice, u64), Reason> {
        self.alive()?;
        self.limit(tables)?;
        let table = tables.table(self.vip.service).ok_or(Reason::NoTable)?;
        let mut hashed = *flow;
        if tables.features().has(Features::HASHING) {
            hashed = flow.reduced(self.vip.options);
        }
        let hash = hashed.hash(self.network.family, tables.hash_key());
        Ok((choose::choose(tables, &table, flow, hash, self.opens, remembers)?, hash))
    }

    /// The way to the backend.
    #[inline(always)]
    fn way<T: BalancerTables>(&self, choice: &Choice, tables: &T) -> Result<Way, Reason> {
        way(&self.network, choice, tables)
    }

    /// The MTU that the sender should be told, when the packet does not fit with its outer header.
    #[inline(always)]
    fn mtu_to_tell(&self, way: &Way) -> Result<Option<u32>, Reason> {
        let room = way.room();
        if self.size.segment <= room as usize {
            return Ok(None);
        }
        let smallest = smallest(self.network.family);
        let mtu = if room > smallest { room } else { smallest };
        // Who keeps to the smallest MTU already can do no more.
        if self.size.segment > mtu as usize { Ok(Some(mtu)) } else { Err(Reason::TooBig) }
    }

    /// Sends a packet whose sender is told nothing if it does not fit.
    #[inline(always)]
    pub(crate) fn send_untold<T: BalancerTables>(
        self,
        choice: &Choice,
        hash: u64,
        tables: &T,
    ) -> Result<Forward, Reason> {
        let way = self.way(choice, tables)?;
        if self.size.segment > way.room() as usize {
            return Err(Reason::TooBig);
        }
        self.send(choice, &way, hash, tables)
    }

    /// Encapsulates the packet, which fits, towards its backend, and accounts it.
    #[inline(always)]
    fn send<T: BalancerTables>(self, choice: &Choice, way: &Way, hash: u64, tables: &T) -> Result<Forward, Reason> {
        let forwarded = Forwarded {
            packets: self.packet.segments(),
            bytes: self.size.packet as u64,
            new_flows: u64::from(self.opens),
        };
        let forward = wrap(self.packet, &self.network, &self.size, self.tags, choice, way, hash, tables)?;
        tables.count_forwarded(self.vip.service, choice.index, &forwarded);
        Ok(forward)
    }
}

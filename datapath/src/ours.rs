//! A packet to a VIP on its way to a backend.

use crate::balance::Forward;
use crate::choose::{self, Choice};
use crate::encapsulate::{Way, way, wrap};
use crate::entries::{FragmentKey, Vip};
use crate::flow::TCP;
use crate::gue::Behind;
use crate::observe;
use crate::options::{Features, VipOptions};
use crate::packet::Packet;
use crate::parse::{Network, Size, Transport};
use crate::rates::{Asks, SourceKey};
use crate::reject::smallest;
use crate::tables::{BalancerTables, Forwarded};
use crate::{Family, Flow, Reason};

/// A packet to a VIP, and what is known about it.
pub(crate) struct Ours<P> {
    pub(crate) packet: P,
    pub(crate) network: Network,
    pub(crate) size: Size,
    /// What its UDP header would depend on; without the flow's own bits.
    pub(crate) behind: Behind,
    /// Whether it opens a TCP connection.
    pub(crate) opens: bool,
    /// Bytes of VLAN tags in the frame, if it has tags there or beside.
    pub(crate) tags: Option<usize>,
    pub(crate) vip: Vip,
}

/// The flow of a packet.
#[inline(always)]
pub(crate) fn flow(network: &Network, transport: &Transport) -> Flow {
    let n = network;
    Flow::new(
        n.source,
        n.destination,
        transport.source_port,
        transport.destination_port,
        n.protocol,
    )
}

/// The hash of what a service tells flows apart by.
#[inline(always)]
pub(crate) fn hash<T: BalancerTables>(
    flow: &Flow,
    family: Family,
    options: VipOptions,
    tables: &T,
) -> u64 {
    // Twice, so that a program without the feature hashes the flow where it lies.
    if tables.uses(Features::HASHING) {
        return flow.reduced(options).hash(family, tables.hash_key());
    }
    flow.hash(family, tables.hash_key())
}

impl<P: Packet> Ours<P> {
    #[inline(always)]
    pub(crate) fn flow(&self, transport: &Transport) -> Flow {
        flow(&self.network, transport)
    }

    #[inline(always)]
    pub(crate) fn fragment_key(&self, identification: u32) -> FragmentKey {
        let n = &self.network;
        let (source, destination) = (n.source, n.destination);
        // What an IPv6 fragment says of it may differ from the others'.
        let protocol = if matches!(n.family, Family::V4) { u32::from(n.protocol) } else { 0 };
        FragmentKey { source, destination, identification, protocol }
    }

    #[inline(always)]
    pub(crate) fn alive(&self) -> Result<(), Reason> {
        if self.network.hops == 0 { Err(Reason::Expired) } else { Ok(()) }
    }

    /// Takes the packet's tokens from its source's buckets, then from its service's: what a source
    /// has too much costs the others nothing.
    #[inline(always)]
    pub(crate) fn limit<T: BalancerTables>(&self, tables: &T) -> Result<(), Reason> {
        if !tables.uses(Features::RATES) || !self.vip.options.has(VipOptions::LIMITED) {
            return Ok(());
        }
        let n = &self.network;
        let asks = Asks {
            service: self.vip.service,
            packets: self.packet.segments(),
            opens: self.opens,
            now: tables.now(),
        };
        if !tables.take_from_source(&SourceKey::new(&n.source, n.family, asks.service), &asks) {
            return Err(Reason::SourceLimit);
        }
        if !tables.take_from_service(&asks) {
            return Err(Reason::ServiceLimit);
        }
        Ok(())
    }

    /// The backend that gets the packet, and the flow's hash. A tracked flow without an entry gets
    /// one if this `remembers`.
    #[inline(always)]
    pub(crate) fn choose<T: BalancerTables>(
        &self,
        flow: &Flow,
        tables: &T,
        remembers: bool,
    ) -> Result<(Choice, u64), Reason> {
        self.alive()?;
        self.limit(tables)?;
        let table = tables.table(self.vip.service).ok_or(Reason::NoTable)?;
        let hash = hash(flow, self.network.family, self.vip.options, tables);
        Ok((choose::choose(tables, &table, flow, hash, self.opens, remembers)?, hash))
    }

    /// The MTU that the sender should be told, when the packet does not fit with its outer header.
    #[inline(always)]
    pub(crate) fn mtu_to_tell<T: BalancerTables>(
        &self,
        way: &Way,
        tables: &T,
    ) -> Result<Option<u32>, Reason> {
        let room = way.room();
        if self.size.segment <= room as usize {
            return Ok(None);
        }
        if tables.uses(Features::DROP_TOO_BIG) && self.vip.options.has(VipOptions::DROP_TOO_BIG) {
            return Err(Reason::TooBig);
        }
        let smallest = smallest(self.network.family);
        let mtu = if room > smallest { room } else { smallest };
        // Who keeps to the smallest MTU already can do no more.
        if self.size.segment > mtu as usize { Ok(Some(mtu)) } else { Err(Reason::TooBig) }
    }

    /// Whether the packet's segments do not fit with an outer header, and are to be cut smaller by
    /// it, so that they do. The bytes of a merged TCP packet may be cut anywhere; merged datagrams
    /// are what their sender made them, and a single packet has nobody who cuts it.
    #[inline(always)]
    pub(crate) fn shrinks<T: BalancerTables>(&self, way: &Way, tables: &T) -> bool {
        /// Bytes that a segment keeps, at least.
        const LEFT: u32 = 64;

        tables.uses(Features::RESEGMENT)
            && self.vip.options.has(VipOptions::RESEGMENT)
            && self.network.protocol == TCP
            && self.size.segment > way.room() as usize
            && self.size.segment <= way.mtu() as usize
            && self.packet.segment_size() > way.outer().wrapping_add(LEFT) as usize
    }

    /// Sends a packet whose sender is told nothing if it does not fit.
    #[inline(always)]
    pub(crate) fn send_untold<T: BalancerTables>(
        self,
        choice: &Choice,
        hash: u64,
        tables: &T,
    ) -> Result<Forward, Reason> {
        let way = way(&self.network, self.vip.options, choice, tables)?;
        if self.size.segment > way.room() as usize {
            return Err(Reason::TooBig);
        }
        self.send(choice, &way, hash, false, tables)
    }

    /// Encapsulates the packet, which fits, or whose segments do when they `shrink`, towards its
    /// backend, and accounts it.
    #[inline(always)]
    pub(crate) fn send<T: BalancerTables>(
        self,
        choice: &Choice,
        way: &Way,
        hash: u64,
        shrink: bool,
        tables: &T,
    ) -> Result<Forward, Reason> {
        let behind = self.behind(way, hash, tables)?;
        let forwarded = Forwarded {
            packets: self.packet.segments(),
            bytes: self.size.packet as u64,
            new_flows: u64::from(self.opens),
        };
        let (packet, inner, size, tags) = (self.packet, &self.network, &self.size, self.tags);
        let forward = wrap(packet, inner, size, tags, choice, way, behind, hash, shrink, tables)?;
        tables.count_forwarded(self.vip.service, choice.index, &forwarded);
        observe::forwarded(tables, self.vip.service, choice.index, self.opens, forward.interface);
        Ok(forward)
    }
}

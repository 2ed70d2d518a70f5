//! A packet to a VIP on its way to a backend.

use crate::abi::{
    ClientKey, Family, Features, Flow, FragmentKey, Reason, ServiceRef, TCP, TokenRequest,
    VipOptions,
};
use crate::balance::capture;
use crate::balance::encapsulate::{TunnelPath, encapsulate, resolve_path};
use crate::balance::gue::GueMeta;
use crate::balance::outcome::Forward;
use crate::balance::select::{Selection, select_backend};
use crate::balance::tables::{BalancerTables, ForwardedCounts};
use crate::wire::packet::Packet;
use crate::wire::parse::{IpHeader, L4Header, PacketSize};

/// A packet to a VIP, and what is known about it.
pub(crate) struct VipPacket<P> {
    pub(crate) packet: P,
    pub(crate) ip: IpHeader,
    pub(crate) size: PacketSize,
    /// What its UDP header would depend on; without the flow's own bits.
    pub(crate) gue: GueMeta,
    /// Whether it is_syn a TCP connection.
    pub(crate) is_syn: bool,
    /// Bytes of VLAN tags in the frame, if it has tags there or beside.
    pub(crate) tags: Option<usize>,
    pub(crate) service: ServiceRef,
}

/// The flow of a packet.
#[inline(always)]
pub(crate) fn flow_of(ip: &IpHeader, l4: &L4Header) -> Flow {
    let n = ip;
    Flow::new(n.source, n.destination, l4.source_port, l4.destination_port, n.protocol)
}

/// The hash of what a service tells flows apart by.
#[inline(always)]
pub(crate) fn hash_flow<T: BalancerTables>(
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

impl<P: Packet> VipPacket<P> {
    #[inline(always)]
    pub(crate) fn flow(&self, l4: &L4Header) -> Flow {
        flow_of(&self.ip, l4)
    }

    #[inline(always)]
    pub(crate) fn fragment_key(&self, identification: u32) -> FragmentKey {
        let n = &self.ip;
        let (source, destination) = (n.source, n.destination);
        // What an IPv6 fragment says of it may differ from the others'.
        let protocol = if matches!(n.family, Family::V4) { u32::from(n.protocol) } else { 0 };
        FragmentKey { source, destination, identification, protocol }
    }

    #[inline(always)]
    pub(crate) fn check_ttl(&self) -> Result<(), Reason> {
        if self.ip.ttl == 0 { Err(Reason::TtlExpired) } else { Ok(()) }
    }

    /// Takes the packet's tokens from its source's buckets, then from its service's: what a source
    /// has too much costs the others nothing.
    #[inline(always)]
    pub(crate) fn check_rates<T: BalancerTables>(&self, tables: &T) -> Result<(), Reason> {
        if !tables.uses(Features::RATES) || !self.service.options.has(VipOptions::RATE_LIMITED) {
            return Ok(());
        }
        let n = &self.ip;
        let request = TokenRequest {
            service: self.service.service,
            packets: self.packet.segments(),
            is_syn: self.is_syn,
            now: tables.now(),
        };
        if !tables
            .consume_source_tokens(&ClientKey::new(&n.source, n.family, request.service), &request)
        {
            return Err(Reason::RateLimitedSource);
        }
        if !tables.consume_service_tokens(&request) {
            return Err(Reason::RateLimitedService);
        }
        Ok(())
    }

    /// The backend that gets the packet, and the flow's hash. A tracked flow without an entry gets
    /// one if this `remembers`.
    #[inline(always)]
    pub(crate) fn select_backend<T: BalancerTables>(
        &self,
        flow: &Flow,
        tables: &T,
        insert: bool,
    ) -> Result<(Selection, u64), Reason> {
        self.check_ttl()?;
        self.check_rates(tables)?;
        let table = tables.table(self.service.service).ok_or(Reason::NoTable)?;
        let hash = hash_flow(flow, self.ip.family, self.service.options, tables);
        Ok((select_backend(tables, &table, flow, hash, self.is_syn, insert)?, hash))
    }

    /// The MTU that the sender should be told, when the packet does not fit with its outer header.
    #[inline(always)]
    pub(crate) fn pmtu_to_report<T: BalancerTables>(
        &self,
        path: &TunnelPath,
        tables: &T,
    ) -> Result<Option<u32>, Reason> {
        let room = path.room();
        if self.size.segment <= room as usize {
            return Ok(None);
        }
        if tables.uses(Features::DROP_TOO_BIG) && self.service.options.has(VipOptions::DROP_TOO_BIG)
        {
            return Err(Reason::TooBig);
        }
        let smallest = self.ip.family.min_mtu();
        let mtu = if room > smallest { room } else { smallest };
        // Who keeps to the smallest MTU already can do no more.
        if self.size.segment > mtu as usize { Ok(Some(mtu)) } else { Err(Reason::TooBig) }
    }

    /// Whether the packet's segments do not fit with an outer header, and are to be cut smaller by
    /// it, so that they do. The bytes of a merged TCP packet may be cut anywhere; merged datagrams
    /// are what their sender made them, and a single packet has nobody who cuts it.
    #[inline(always)]
    pub(crate) fn can_resegment<T: BalancerTables>(&self, path: &TunnelPath, tables: &T) -> bool {
        /// Bytes that a segment keeps, at least.
        const LEFT: u32 = 64;

        tables.uses(Features::RESEGMENT)
            && self.service.options.has(VipOptions::RESEGMENT)
            && self.ip.protocol == TCP
            && self.size.segment > path.room() as usize
            && self.size.segment <= path.mtu() as usize
            && self.packet.segment_size() > path.outer().wrapping_add(LEFT) as usize
    }

    /// Sends a packet whose sender is told nothing if it does not fit.
    #[inline(always)]
    pub(crate) fn send_or_drop<T: BalancerTables>(
        self,
        selection: &Selection,
        hash: u64,
        tables: &T,
    ) -> Result<Forward, Reason> {
        let path = resolve_path(&self.ip, self.service.options, selection, tables)?;
        if self.size.segment > path.room() as usize {
            return Err(Reason::TooBig);
        }
        self.send(selection, &path, hash, false, tables)
    }

    /// What the packet's UDP header will depend on; [`GueMeta::NONE`] when it gets none.
    ///
    /// # Errors
    ///
    /// [`Reason::NoChecksum`] when it cannot have the checksum that its receiver wants.
    #[inline(always)]
    pub(crate) fn gue_meta<T: BalancerTables>(
        &self,
        path: &TunnelPath,
        hash: u64,
        tables: &T,
    ) -> Result<GueMeta, Reason> {
        const ALL: u32 = VipOptions::GUE.bits() | VipOptions::NO_CHECKSUM.bits();

        if !tables.uses(Features::GUE) {
            return Ok(GueMeta::NONE);
        }
        // IPv4 has always allowed UDP without a checksum, IPv6 where both ends agree (RFC 6935).
        let needs = matches!(path.family, Family::V6)
            && self.service.options.bits() & ALL == VipOptions::GUE.bits();
        if needs && self.gue.protocol() == 0 {
            return Err(Reason::NoChecksum);
        }
        Ok(path.in_gue(self.gue.with_source_port(hash)))
    }

    /// Encapsulates the packet, which fits, or whose segments do when they `shrink`, towards its
    /// backend, and accounts it.
    #[inline(always)]
    pub(crate) fn send<T: BalancerTables>(
        self,
        selection: &Selection,
        path: &TunnelPath,
        hash: u64,
        shrink: bool,
        tables: &T,
    ) -> Result<Forward, Reason> {
        let gue = self.gue_meta(path, hash, tables)?;
        let forwarded = ForwardedCounts {
            packets: self.packet.segments(),
            bytes: self.size.packet as u64,
            new_connections: u64::from(self.is_syn),
        };
        let (packet, inner, size, tags) = (self.packet, &self.ip, &self.size, self.tags);
        let forward =
            encapsulate(packet, inner, size, tags, selection, path, gue, hash, shrink, tables)?;
        tables.count_forwarded(self.service.service, selection.index, &forwarded);
        capture::record_forwarded(
            tables,
            self.service.service,
            selection.index,
            self.is_syn,
            forward.interface,
        );
        Ok(forward)
    }
}

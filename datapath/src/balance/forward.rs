//! A packet to a VIP: rate limits, backend selection, MTU check, encapsulation.

use crate::abi::{
    ClientKey, Family, Features, Flow, FragmentKey, Reason, ServiceRef, TCP, TokenRequest,
    VipOptions,
};
use crate::balance::admit::Admission;
use crate::balance::capture;
use crate::balance::encapsulate::{TunnelPath, encapsulate, resolve_path};
use crate::balance::gue::GueMeta;
use crate::balance::maps::{BalancerMaps, ForwardedCounts, SelectionMaps};
use crate::balance::outcome::StageOutcome;
use crate::balance::select::{Selection, Tracking, select_backend};
use crate::balance::stage::Egress;
use crate::verifier::widen_for_verifier;
use crate::wire::packet::Packet;
use crate::wire::parse::{IpHeader, L4Header, PacketSize};

/// Whether merged TCP packets are cut into smaller segments if theirs do not fit the tunnel path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resegmentation {
    /// If [`VipOptions::RESEGMENT`] is set for the service.
    ByOption,
    /// Never.
    Never,
}

/// A packet to a VIP, and its parsed headers.
pub(crate) struct VipPacket<P> {
    pub(crate) packet: P,
    pub(crate) ip: IpHeader,
    pub(crate) size: PacketSize,
    /// Inputs of the UDP header of GUE; the source port is still missing.
    pub(crate) gue: GueMeta,
    /// Whether the packet opens a TCP connection.
    pub(crate) is_syn: bool,
    /// Bytes of VLAN tags in the frame; `None` if it is known to have no tag, not even one in its
    /// metadata.
    pub(crate) vlan_bytes: Option<usize>,
    /// The service that handles the packet.
    pub(crate) service: ServiceRef,
}

/// The flow of a packet.
#[inline(always)]
pub(crate) fn flow_of(ip: &IpHeader, l4: &L4Header) -> Flow {
    Flow::new(ip.source, ip.destination, l4.source_port, l4.destination_port, ip.protocol)
}

/// The hash of the fields of a flow that its service hashes.
#[inline(always)]
pub(crate) fn hash_flow<M: SelectionMaps>(
    flow: &Flow,
    family: Family,
    options: VipOptions,
    maps: &M,
) -> u64 {
    // Two calls on purpose: without `HASH_FIELDS` the flow is hashed in place and never copied to
    // the stack.
    if maps.uses(Features::HASH_FIELDS) {
        return flow.hashed_fields(options).hash(family, maps.hash_key());
    }
    flow.hash(family, maps.hash_key())
}

/// Checks whether the service that handles a fragment accepts it. Reassembly at the backend keeps a
/// first fragment for seconds, which a flood of them exploits.
#[inline(always)]
pub(crate) fn check_fragment<M: BalancerMaps>(
    service: &ServiceRef,
    maps: &M,
) -> Result<(), Reason> {
    if !maps.uses(Features::FRAGMENT_LIMITS) {
        return Ok(());
    }
    if service.options.has(VipOptions::DROP_FRAGMENTS) {
        return Err(Reason::FragmentDropped);
    }
    if service.options.has(VipOptions::RATE_LIMITED) && !maps.consume_fragment_token(service.index)
    {
        return Err(Reason::RateLimitedFragments);
    }
    Ok(())
}

/// The key that all fragments of a packet share.
#[inline(always)]
pub(crate) fn fragment_key(ip: &IpHeader, identification: u32) -> FragmentKey {
    // In IPv6, the next-header field may differ between fragments (RFC 8200 section 4.5).
    let protocol = if matches!(ip.family, Family::V4) { u32::from(ip.protocol) } else { 0 };
    FragmentKey { source: ip.source, destination: ip.destination, identification, protocol }
}

impl<P: Packet> VipPacket<P> {
    /// An admitted TCP or UDP packet.
    #[inline(always)]
    pub(crate) fn new(
        packet: P,
        ip: IpHeader,
        vlan_bytes: Option<usize>,
        l4: &L4Header,
        admission: &Admission,
    ) -> Self {
        let Admission { size, gue, service, .. } = *admission;
        // The verifier has followed a path for each protocol and for each value of the SYN flag,
        // and would explore the rest of the path once for each. One word holds both.
        let word = widen_for_verifier((u32::from(ip.protocol) << 8) | u32::from(l4.is_syn));
        let ip = IpHeader { protocol: (word >> 8) as u8, ..ip };
        Self { packet, ip, size, gue, is_syn: (word & 1) == 1, vlan_bytes, service }
    }

    #[inline(always)]
    pub(crate) fn check_ttl(&self) -> Result<(), Reason> {
        if self.ip.ttl == 0 { Err(Reason::TtlExpired) } else { Ok(()) }
    }

    /// Consumes tokens of the client's buckets, then of the service's: packets beyond a client's
    /// rate do not use up the tokens of other clients.
    #[inline(always)]
    pub(crate) fn consume_tokens<M: BalancerMaps>(&self, maps: &M) -> Result<(), Reason> {
        if !maps.uses(Features::RATES) || !self.service.options.has(VipOptions::RATE_LIMITED) {
            return Ok(());
        }
        let request = TokenRequest {
            service: self.service.index,
            packets: self.packet.segments(),
            is_syn: self.is_syn,
            now: maps.now(),
        };
        let client = ClientKey::new(&self.ip.source, self.ip.family, request.service);
        if !maps.consume_client_tokens(&client, &request) {
            return Err(Reason::RateLimitedSource);
        }
        if !maps.consume_service_tokens(&request) {
            return Err(Reason::RateLimitedService);
        }
        Ok(())
    }

    /// Checks the TTL, consumes tokens, and selects the backend. Returns the flow hash, too.
    #[inline(always)]
    pub(crate) fn check_and_select<M: BalancerMaps>(
        &self,
        flow: &Flow,
        maps: &M,
        tracking: Tracking,
    ) -> Result<(Selection, u64), Reason> {
        self.check_ttl()?;
        self.consume_tokens(maps)?;
        let table = maps.lookup_table(self.service.index).ok_or(Reason::NoTable)?;
        let hash = hash_flow(flow, self.ip.family, self.service.options, maps);
        Ok((select_backend(maps, &table, flow, hash, self.is_syn, tracking)?, hash))
    }

    /// The MTU to report to the client if the packet does not fit with its outer headers; `None` if
    /// it fits, and [`Reason::TooBig`] if no MTU is to be reported.
    #[inline(always)]
    fn pmtu_to_report<M: BalancerMaps>(
        &self,
        path: &TunnelPath,
        maps: &M,
    ) -> Result<Option<u32>, Reason> {
        let inner_mtu = path.inner_mtu();
        if self.size.segment <= inner_mtu as usize {
            return Ok(None);
        }
        if maps.uses(Features::DROP_TOO_BIG) && self.service.options.has(VipOptions::DROP_TOO_BIG) {
            return Err(Reason::TooBig);
        }
        let min_mtu = self.ip.family.min_mtu();
        let mtu = if inner_mtu > min_mtu { inner_mtu } else { min_mtu };
        // A client that already sends no more than the minimum MTU cannot send smaller packets.
        if self.size.segment > mtu as usize { Ok(Some(mtu)) } else { Err(Reason::TooBig) }
    }

    /// Whether the segments of a merged TCP packet do not fit with their outer headers, and the
    /// service lets the kernel cut the packet into smaller ones that do. UDP is excluded, because a
    /// segment is a datagram. The kernel never segments a packet that is not merged.
    #[inline(always)]
    fn can_resegment<M: BalancerMaps>(&self, path: &TunnelPath, maps: &M) -> bool {
        /// The minimum payload of a smaller segment in bytes, so that one packet does not become a
        /// great number of tiny ones.
        const MIN_PAYLOAD: u32 = 64;

        // The sizes come first: compilers would move a branch on the other conditions before the
        // selection of the backend, and the verifier would explore the selection twice.
        maps.uses(Features::RESEGMENT)
            && self.size.segment > path.inner_mtu() as usize
            && self.size.segment <= path.mtu() as usize
            && self.service.options.has(VipOptions::RESEGMENT)
            && self.ip.protocol == TCP
            && self.packet.segment_size() > path.outer_len().wrapping_add(MIN_PAYLOAD) as usize
    }

    /// Sends the packet, or drops it without an ICMP error if it does not fit.
    #[inline(always)]
    pub(crate) fn send_or_drop<M: BalancerMaps>(
        self,
        selection: &Selection,
        hash: u64,
        maps: &M,
    ) -> Result<Egress, Reason> {
        const KEEP_SEGMENTS: bool = false;

        let path = resolve_path(&self.ip, self.service.options, selection, maps)?;
        if self.size.segment > path.inner_mtu() as usize {
            return Err(Reason::TooBig);
        }
        self.send(selection, &path, hash, KEEP_SEGMENTS, maps)
    }

    /// Sends the packet. If it does not fit, the outcome requests an ICMP error with the path's
    /// MTU.
    #[inline(always)]
    pub(crate) fn send_or_report<M: BalancerMaps>(
        self,
        selection: &Selection,
        hash: u64,
        resegmentation: Resegmentation,
        maps: &M,
    ) -> Result<StageOutcome, Reason> {
        let path = resolve_path(&self.ip, self.service.options, selection, maps)?;
        let resegment =
            resegmentation == Resegmentation::ByOption && self.can_resegment(&path, maps);
        if !resegment && let Some(mtu) = self.pmtu_to_report(&path, maps)? {
            // No ICMP error is sent about a frame with VLAN tags in its bytes.
            if !matches!(self.vlan_bytes, None | Some(0)) {
                return Err(Reason::TooBig);
            }
            return Ok(StageOutcome::TooBig { service: self.service.index, mtu });
        }
        self.send(selection, &path, hash, resegment, maps).map(StageOutcome::Forwarded)
    }

    /// The inputs of the UDP header of GUE; [`GueMeta::NONE`] without GUE.
    #[inline(always)]
    fn gue_meta<M: BalancerMaps>(
        &self,
        path: &TunnelPath,
        hash: u64,
        maps: &M,
    ) -> Result<GueMeta, Reason> {
        const GUE_OPTIONS: u32 = VipOptions::GUE.bits() | VipOptions::ZERO_UDP_CHECKSUM.bits();

        if !maps.uses(Features::GUE) {
            return Ok(GueMeta::NONE);
        }
        // UDP without a checksum is valid over IPv4. It is valid over IPv6 if both ends agree (RFC
        // 6935), which the option `ZERO_UDP_CHECKSUM` states.
        let needs_checksum = matches!(path.family, Family::V6)
            && (self.service.options.bits() & GUE_OPTIONS) == VipOptions::GUE.bits();
        if needs_checksum && self.gue.protocol().is_none() {
            return Err(Reason::NoChecksum);
        }
        Ok(path.keep_if_gue(self.gue.with_source_port(hash)))
    }

    /// Encapsulates the packet towards its backend, and accounts it. The packet fits, or with
    /// `resegment` its smaller segments do.
    #[inline(always)]
    fn send<M: BalancerMaps>(
        self,
        selection: &Selection,
        path: &TunnelPath,
        hash: u64,
        resegment: bool,
        maps: &M,
    ) -> Result<Egress, Reason> {
        let gue = self.gue_meta(path, hash, maps)?;
        let Self { packet, ip, size, is_syn, vlan_bytes, service, .. } = self;
        let counts = ForwardedCounts {
            packets: packet.segments(),
            bytes: size.packet as u64,
            new_connections: u64::from(is_syn),
        };
        let egress = encapsulate(
            packet, &ip, &size, vlan_bytes, selection, path, gue, hash, resegment, maps,
        )?;
        maps.count_forwarded(service.index, selection.index, &counts);
        capture::record_forwarded(maps, service.index, selection.index, is_syn, egress.interface);
        Ok(egress)
    }
}

//! ICMP and ICMPv6 to a VIP address: errors go to the backend of the flow that they quote, echo
//! requests are answered or forwarded.

use crate::abi::{
    AddressOptions, Family, Flow, Port, Reason, ServiceRef, TCP, UDP, VipAddress, VipKey,
};
use crate::balance::acl::check_global_acl;
use crate::balance::admit::admit_client;
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{check_source, find_vip_address, find_vip_service};
use crate::balance::maps::BalancerMaps;
use crate::balance::outcome::{Refusal, StageOutcome, conclude};
use crate::balance::select::Tracking;
use crate::balance::stage::{Egress, Hook, Stage};
use crate::verifier::widen_for_verifier;
use crate::wire::header::{FragmentKind, Icmp, Ipv4, Ipv6, REPLY_TTL};
use crate::wire::offsets::{HeaderOffsets, ParsedHeaders};
use crate::wire::packet::Packet;
use crate::wire::parse::{self, IpHeader, PacketSize, from_ipv4, from_ipv6};

/// The kinds of ICMP messages that the balancer distinguishes.
enum Message {
    /// An error, which quotes the packet it is about.
    Error,
    /// An echo request: the first 16-bit word of its header and of the reply's, wire order.
    EchoRequest { request_word: u16, reply_word: u16 },
    /// Any other message.
    Other,
}

impl Message {
    #[inline(always)]
    fn of(family: Family, header: &Icmp) -> Self {
        const ECHO_REPLY: u16 = 0;
        const UNREACHABLE: u8 = 3;
        const ECHO: u8 = 8;
        const TIME_EXCEEDED: u8 = 11;
        const PARAMETER_PROBLEM: u8 = 12;

        const V6_UNREACHABLE: u8 = 1;
        const V6_PARAMETER_PROBLEM: u8 = 4;
        const V6_ECHO: u8 = 128;
        const V6_ECHO_REPLY: u8 = 129;

        match (family, header.kind, header.code) {
            (Family::V4, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => Self::Error,
            // Between them: packet too big (2) and time exceeded (3).
            (Family::V6, V6_UNREACHABLE..=V6_PARAMETER_PROBLEM, _) => Self::Error,
            (Family::V4, ECHO, 0) => Self::EchoRequest {
                request_word: u16::from_ne_bytes([ECHO, 0]),
                reply_word: ECHO_REPLY,
            },
            (Family::V6, V6_ECHO, 0) => Self::EchoRequest {
                request_word: u16::from_ne_bytes([V6_ECHO, 0]),
                reply_word: u16::from_ne_bytes([V6_ECHO_REPLY, 0]),
            },
            _ => Self::Other,
        }
    }
}

/// A whole ICMP message to a VIP address, at offsets from
/// [`ParseHeadersStage`](crate::balance::slow_path::ParseHeadersStage).
pub(crate) struct IcmpStage;

impl Stage for IcmpStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, offsets: u32, maps: &M) -> u64 {
        let result = icmp(hook.packet(), HeaderOffsets::decode(offsets), maps);
        conclude(hook, result, maps)
    }
}

/// An echo request that the balancer answers itself, at the offsets of [`IcmpStage`].
pub(crate) struct EchoReplyStage;

impl Stage for EchoReplyStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, offsets: u32, maps: &M) -> u64 {
        let (Ok(reason) | Err(reason)) =
            echo_reply(hook.packet(), HeaderOffsets::decode(offsets), maps);
        Refusal::from(reason).account(maps);
        hook.apply_verdict(reason).into()
    }
}

#[inline(always)]
fn icmp<P: Packet, M: BalancerMaps>(
    packet: P,
    offsets: HeaderOffsets,
    maps: &M,
) -> Result<StageOutcome, Refusal> {
    let headers = offsets.parse(&packet)?;
    let ip = headers.ip;
    let address = find_vip_address(maps, &ip)?;
    let icmp_offset = headers.l4_offset();
    let header: Icmp = packet.load_at(icmp_offset).ok_or(Reason::Truncated)?;
    let (vip_service, flow) = match Message::of(ip.family, &header) {
        Message::Error => {
            let end = headers.ip_offset.wrapping_add(ip.total_len);
            let quote = icmp_offset.wrapping_add(Icmp::SIZE);
            let (vip_service, flow) = quoted_flow(&packet, &ip, &address, quote, end, maps)?;
            // A router on the link may have nothing but a link-local address.
            if ip.source.is_martian(ip.family) && !ip.source.is_link_local(ip.family) {
                return Err(Refusal::for_service(vip_service)(Reason::MartianSource));
            }
            (vip_service, flow)
        }
        Message::EchoRequest { .. } if address.options.has(AddressOptions::PING_HOST) => {
            return Err(Reason::OtherProtocol.into());
        }
        Message::EchoRequest { .. } if address.options.has(AddressOptions::PING_FORWARD) => {
            // The hash of the two addresses selects the backend.
            let service = maps.vip(&VipKey::pings(address.id)).ok_or(Reason::OtherProtocol)?;
            let no_port = Port::new(0);
            (service, Flow::new(ip.source, ip.destination, no_port, no_port, ip.protocol))
        }
        Message::EchoRequest { .. } => return Ok(StageOutcome::EchoReply),
        Message::Other => return Err(Reason::OtherProtocol.into()),
    };

    // ACLs and routes apply to the client of the flow, not to the router that sent the error.
    let service = admit_client(&flow.source, &flow.destination, ip.family, vip_service, maps)?;
    select_and_send(packet, &headers, &flow, service, maps)
        .map(StageOutcome::Forwarded)
        .map_err(Refusal::for_service(service))
}

#[inline(always)]
fn select_and_send<P: Packet, M: BalancerMaps>(
    packet: P,
    headers: &ParsedHeaders,
    flow: &Flow,
    service: ServiceRef,
    maps: &M,
) -> Result<Egress, Reason> {
    let ip = headers.ip;
    let size = parse::unmerged_size(&packet, headers.ip_offset, &ip)?;
    // Bytes after the end of the IP packet are padding of the frame.
    if size.packet < ip.header_len.wrapping_add(Icmp::SIZE) {
        return Err(Reason::BadLength);
    }
    let gue = GueMeta::for_icmp(&packet, &ip, maps);
    let vlan_bytes = Some(headers.vlan_bytes());
    let packet = VipPacket { ip, size, gue, is_syn: false, vlan_bytes, service, packet };
    let (selection, hash) = packet.check_and_select(flow, maps, Tracking::ReadOnly)?;
    // No ICMP error is sent about an ICMP error (RFC 1122 section 3.2.2). Echo requests that do not
    // fit are dropped, too.
    packet.send_or_drop(&selection, hash, maps)
}

/// Returns the reason to count: [`Reason::IcmpEchoReplied`] when the packet has become the reply.
#[inline(always)]
fn echo_reply<P: Packet, M: BalancerMaps>(
    packet: P,
    offsets: HeaderOffsets,
    maps: &M,
) -> Result<Reason, Reason> {
    let headers = offsets.parse(&packet)?;
    check_source(maps, &headers.ip.source, &headers.ip.destination, headers.ip.family)?;
    check_global_acl(maps, &headers.ip.source)?;
    let icmp_offset = headers.l4_offset();
    let header: Icmp = packet.load_at(icmp_offset).ok_or(Reason::Truncated)?;
    match Message::of(headers.ip.family, &header) {
        Message::EchoRequest { request_word: old, reply_word: new } => {
            Ok(reply(packet, &headers, icmp_offset, old, new))
        }
        _ => Err(Reason::OtherProtocol),
    }
}

/// The service of the VIP that sent the packet that an ICMP error quotes, and its flow in the
/// direction of the client's packets. The quoted packet's IP header is at `ip_offset`; the error
/// ends at `end`.
#[inline(always)]
fn quoted_flow<P: Packet, M: BalancerMaps>(
    packet: &P,
    error_ip: &IpHeader,
    address: &VipAddress,
    ip_offset: usize,
    end: usize,
    maps: &M,
) -> Result<(ServiceRef, Flow), Reason> {
    let quoted = parse_quoted(packet, ip_offset, error_ip.family).ok_or(Reason::IcmpUnrelated)?;
    let ip = quoted.ip;
    // An error quotes at least eight bytes after the IP header (RFC 792). The ports are the first
    // four of TCP as of UDP.
    let ports_offset = quoted.l4_offset();
    if ports_offset.wrapping_add(size_of::<[Port; 2]>()) > end {
        return Err(Reason::IcmpUnrelated);
    }
    if ip.source != error_ip.destination || !(ip.protocol == TCP || ip.protocol == UDP) {
        return Err(Reason::IcmpUnrelated);
    }
    if let FragmentKind::NonFirst = quoted.fragment_kind {
        return Err(Reason::IcmpInnerFragment);
    }
    let [vip_port, client_port]: [Port; 2] =
        packet.load_at(ports_offset).ok_or(Reason::IcmpUnrelated)?;
    let vip_service = find_vip_service(maps, address, vip_port, ip.protocol)
        .map_err(|_| Reason::IcmpUnrelated)?;
    // The verifier explores the rest of the path once, not once per protocol.
    let protocol = widen_for_verifier(ip.protocol.into()) as u8;
    Ok((vip_service, Flow::new(ip.destination, ip.source, client_port, vip_port, protocol)))
}

/// Parses the headers of a quoted packet, which may be cut off.
#[inline(always)]
fn parse_quoted<P: Packet>(packet: &P, ip_offset: usize, family: Family) -> Option<ParsedHeaders> {
    let (ip, fragment_kind) = match family {
        Family::V4 => {
            let header: Ipv4 = packet.load_at(ip_offset)?;
            (from_ipv4(&header).ok()?, header.fragment_kind())
        }
        Family::V6 => (from_ipv6(&packet.load_at(ip_offset)?).ok()?, FragmentKind::None),
    };
    ParsedHeaders::new(ip, ip_offset, fragment_kind).skip_extensions(packet).ok()
}

/// Turns an echo request whose ICMP header is at `icmp_offset` into its reply. `old` and `new` are
/// the first 16-bit word of the ICMP header before and after.
///
/// The checksum is updated incrementally, without reading the payload: a request with a wrong
/// checksum gets a reply with a wrong checksum. Requests with IP options or extension headers are
/// left to the host, since those would have to be reversed, too.
#[inline(always)]
fn reply<P: Packet>(
    mut packet: P,
    headers: &ParsedHeaders,
    icmp_offset: usize,
    old: u16,
    new: u16,
) -> Reason {
    let ip = &headers.ip;
    let fixed_len = match ip.family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    if ip.header_len != fixed_len {
        return Reason::OtherProtocol;
    }

    // Except for the source and the global ACL, which `echo_reply` has checked, every refusal
    // before this line lets the packet pass; from here on, every refusal is a counted drop.
    let PacketSize { packet: length, .. } =
        match parse::unmerged_size(&packet, headers.ip_offset, ip) {
            Ok(size) => size,
            Err(reason) => return reason,
        };
    if length < fixed_len.wrapping_add(Icmp::SIZE) {
        return Reason::BadLength;
    }
    if ip.ttl == 0 {
        return Reason::TtlExpired;
    }
    // The swap fails for frames to broadcast and multicast addresses (RFC 1122 section 3.2.2), so
    // it comes before any other write.
    let swapped = packet.swap_macs().and_then(|()| match ip.family {
        Family::V4 => packet.load_at(headers.ip_offset).ok_or(Reason::AdjustRoomFailed).and_then(
            |header: Ipv4| packet.store(headers.ip_offset, &header.into_reply(REPLY_TTL)),
        ),
        Family::V6 => packet.load_at(headers.ip_offset).ok_or(Reason::AdjustRoomFailed).and_then(
            |header: Ipv6| packet.store(headers.ip_offset, &header.into_reply(REPLY_TTL)),
        ),
    });
    match swapped
        .and_then(|()| packet.csum_replace2(icmp_offset, old, new, icmp_offset.wrapping_add(2)))
    {
        Ok(()) => Reason::IcmpEchoReplied,
        Err(reason) => reason,
    }
}

//! ICMP and ICMPv6 to a VIP address: errors go to the backend of the flow that they quote, pings
//! are answered.

use crate::abi::{
    AddressOptions, Family, Flow, Port, Reason, ServiceRef, TCP, UDP, VipAddress, VipKey,
};
use crate::balance::acl::{check_acl, check_global_acl};
use crate::balance::forward::VipPacket;
use crate::balance::gue::GueMeta;
use crate::balance::lookup::{apply_route, find_vip, find_vip_address};
use crate::balance::outcome::{Forward, account_refusal};
use crate::balance::tables::BalancerTables;
use crate::wire::header::{FragmentKind, Icmp, Ipv4, Ipv6};
use crate::wire::offsets::{HeaderOffsets, ParsedHeaders};
use crate::wire::packet::Packet;
use crate::wire::parse;
use crate::wire::parse::{IpHeader, PacketSize, from_ipv4, from_ipv6};

/// Time to live of answers.
pub(super) const REPLY_TTL: u8 = 64;

/// What a message is to the balancer.
enum Message {
    /// An error about a packet that it quotes.
    Error,
    /// An echo request; the first word of its header, and that of the reply, both in wire order.
    EchoRequest(u16, u16),
    /// Anything else.
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
            // With packet-too-big (2) and time exceeded (3) between them.
            (Family::V6, V6_UNREACHABLE..=V6_PARAMETER_PROBLEM, _) => Self::Error,
            (Family::V4, ECHO, 0) => Self::EchoRequest(u16::from_ne_bytes([ECHO, 0]), ECHO_REPLY),
            (Family::V6, V6_ECHO, 0) => Self::EchoRequest(
                u16::from_ne_bytes([V6_ECHO, 0]),
                u16::from_ne_bytes([V6_ECHO_REPLY, 0]),
            ),
            _ => Self::Other,
        }
    }
}

/// What [`icmp`] made of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpOutcome<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`ping`]: a ping that nobody but the balancer
    /// answers.
    EchoRequest(P),
}

/// A stage of its own: a whole ICMP message to a VIP address, at a place that
/// [`locate`](crate::balance::slow_path::parse_headers) found.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn icmp<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<IcmpOutcome<P>, Reason> {
    let mut service = 0;
    act(packet, offsets, tables, &mut service)
        .inspect_err(|reason| account_refusal(tables, service, *reason))
}

/// The stage behind [`icmp`] for pings: answers one, and says so, or why not.
#[inline(always)]
pub fn echo_reply<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Reason {
    let reason = match answered(packet, offsets, tables) {
        Ok(reason) | Err(reason) => reason,
    };
    account_refusal(tables, 0, reason);
    reason
}

#[inline(always)]
fn answered<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<Reason, Reason> {
    let headers = offsets.parse(&packet)?;
    check_global_acl(tables, &headers.ip.source)?;
    let offset = headers.start.wrapping_add(headers.ip.header_len);
    let header: Icmp = packet.load_at(offset).ok_or(Reason::Truncated)?;
    match Message::of(headers.ip.family, &header) {
        Message::EchoRequest(old, new) => Ok(answer(packet, &headers, offset, old, new)),
        _ => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn act<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
    service: &mut u32,
) -> Result<IcmpOutcome<P>, Reason> {
    let headers = offsets.parse(&packet)?;
    let ip = headers.ip;
    let address = find_vip_address(tables, &ip)?;
    let offset = headers.start.wrapping_add(ip.header_len);
    let header: Icmp = packet.load_at(offset).ok_or(Reason::Truncated)?;
    let (vip, flow) = match Message::of(ip.family, &header) {
        Message::Error => {
            quoted_flow(&packet, &ip, &address, offset.wrapping_add(Icmp::SIZE), tables)?
        }
        Message::EchoRequest(..) if address.options.has(AddressOptions::PING_HOST) => {
            return Err(Reason::OtherProtocol);
        }
        Message::EchoRequest(..) if address.options.has(AddressOptions::PING_FORWARD) => {
            // The hash of the two addresses selects the backend.
            let vip = tables.vip(&VipKey::pings(address.id)).ok_or(Reason::OtherProtocol)?;
            let ports = Port::new(0);
            (vip, Flow::new(ip.source, ip.destination, ports, ports, ip.protocol))
        }
        Message::EchoRequest(..) => return Ok(IcmpOutcome::EchoRequest(packet)),
        Message::Other => return Err(Reason::OtherProtocol),
    };

    // From this line on the packet is ours, and every refusal is a counted drop. Routers are in no
    // list: who counts is the client whose packet they could not bring.
    *service = vip.service;
    check_acl(tables, &flow.source, &vip)?;
    let vip = apply_route(tables, &flow.source, vip);
    *service = vip.service;
    let size = parse::fragment_size(&packet, headers.start, &ip)?;
    let gue = GueMeta::for_icmp(&packet, &ip, &size);
    let ours =
        VipPacket { ip, size, gue, is_syn: false, tags: headers.tags(), service: vip, packet };
    let (selection, hash) = ours.select_backend(&flow, tables, false)?;
    // Nobody is told that an error does not fit (RFC 1122 section 3.2.2), nor a ping.
    ours.send_or_drop(&selection, hash, tables).map(IcmpOutcome::Forward)
}

/// The VIP's flow that an error quotes, as its client sends it, and the VIP. The quoted packet,
/// from the VIP to the client, is at `start`.
#[inline(always)]
fn quoted_flow<P: Packet, T: BalancerTables>(
    packet: &P,
    outer: &IpHeader,
    address: &VipAddress,
    start: usize,
    tables: &T,
) -> Result<(ServiceRef, Flow), Reason> {
    let quoted = quoted(packet, start, outer.family).ok_or(Reason::IcmpUnrelated)?;
    let ip = quoted.ip;
    if ip.source != outer.destination || !(ip.protocol == TCP || ip.protocol == UDP) {
        return Err(Reason::IcmpUnrelated);
    }
    if let FragmentKind::NonFirst = quoted.part {
        return Err(Reason::IcmpInnerFragment);
    }
    // Of what follows the quoted IP header, eight bytes are certain (RFC 792), and the ports are
    // the first four of TCP as of UDP.
    let ports = start.wrapping_add(ip.header_len);
    let [own, client]: [Port; 2] = packet.load_at(ports).ok_or(Reason::IcmpUnrelated)?;
    let vip = find_vip(tables, address, own, ip.protocol).map_err(|_| Reason::IcmpUnrelated)?;
    Ok((vip, Flow::new(ip.destination, ip.source, client, own, ip.protocol)))
}

/// The headers of a quoted packet, as far as they are quoted.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, start: usize, family: Family) -> Option<ParsedHeaders> {
    let (ip, part) = match family {
        Family::V4 => {
            let header: Ipv4 = packet.load_at(start)?;
            (from_ipv4(&header).ok()?, header.fragment_kind())
        }
        Family::V6 => (from_ipv6(&packet.load_at(start)?).ok()?, FragmentKind::None),
    };
    ParsedHeaders::new(ip, start, part, false).skip_extensions(packet).ok()
}

/// Turns a ping whose ICMP header is at `offset` into its answer; `old` and `new` are the first
/// word of that header.
///
/// Its payload is not touched: the checksum changes by what changes under it. A request whose
/// checksum is wrong gets an answer whose checksum is as wrong. Requests with IP options or
/// extension headers are left to the host, since those would have to be turned round, too.
#[inline(always)]
fn answer<P: Packet>(
    mut packet: P,
    headers: &ParsedHeaders,
    offset: usize,
    old: u16,
    new: u16,
) -> Reason {
    let ip = &headers.ip;
    let fixed = match ip.family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    if ip.header_len != fixed || !ip.source.is_answerable(ip.family) {
        return Reason::OtherProtocol;
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    let PacketSize { packet: length, .. } = match parse::fragment_size(&packet, headers.start, ip) {
        Ok(size) => size,
        Err(reason) => return reason,
    };
    if length < fixed.wrapping_add(Icmp::SIZE) {
        return Reason::BadLength;
    }
    if ip.ttl == 0 {
        return Reason::TtlExpired;
    }
    // First, since it refuses what is for everybody or for a group (RFC 1122 section 3.2.2).
    let turned = packet.swap_macs().and_then(|()| match ip.family {
        Family::V4 => packet
            .load_at(headers.start)
            .ok_or(Reason::AdjustRoomFailed)
            .and_then(|header: Ipv4| packet.store(headers.start, &header.answered(REPLY_TTL))),
        Family::V6 => packet
            .load_at(headers.start)
            .ok_or(Reason::AdjustRoomFailed)
            .and_then(|header: Ipv6| packet.store(headers.start, &header.answered(REPLY_TTL))),
    });
    match turned.and_then(|()| packet.csum_replace2(offset, old, new, offset.wrapping_add(2))) {
        Ok(()) => Reason::IcmpEchoReplied,
        Err(reason) => reason,
    }
}

//! ICMP and ICMPv6 to a VIP address: errors go to the backend of the flow that they quote, pings
//! are answered.

use crate::balance::{Forward, refuse};
use crate::entries::{Vip, VipAddress, VipKey};
use crate::flow::{Port, TCP, UDP};
use crate::gue::Behind;
use crate::header::{Icmp, Ipv4, Ipv6};
use crate::options::AddressOptions;
use crate::ours::Ours;
use crate::packet::Packet;
use crate::parse::{self, Network, Part, Size, from_ipv4, from_ipv6};
use crate::tables::BalancerTables;
use crate::vip::{check_list_of_all, check_source, find_address, find_vip, route};
use crate::walk::{Place, Walked};
use crate::{Family, Flow, Reason};

/// Time to live of answers.
pub const ANSWER_HOPS: u8 = 64;

/// What a message is to the balancer.
enum Message {
    /// An error about a packet that it quotes.
    Error,
    /// An echo request; the first word of its header, and that of the reply, both in wire order.
    Ping(u16, u16),
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
            (Family::V4, ECHO, 0) => Self::Ping(u16::from_ne_bytes([ECHO, 0]), ECHO_REPLY),
            (Family::V6, V6_ECHO, 0) => {
                Self::Ping(u16::from_ne_bytes([V6_ECHO, 0]), u16::from_ne_bytes([V6_ECHO_REPLY, 0]))
            }
            _ => Self::Other,
        }
    }
}

/// What [`icmp`] made of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`ping`]: a ping that nobody but the balancer
    /// answers.
    Ping(P),
}

/// A stage of its own: a whole ICMP message to a VIP address, at a place that
/// [`locate`](crate::balance::locate) found.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn icmp<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
) -> Result<Heard<P>, Reason> {
    let mut service = 0;
    act(packet, place, tables, &mut service).inspect_err(|reason| refuse(tables, service, *reason))
}

/// The stage behind [`icmp`] for pings: answers one, and says so, or why not.
#[inline(always)]
pub fn ping<P: Packet, T: BalancerTables>(packet: P, place: Place, tables: &T) -> Reason {
    let reason = match answered(packet, place, tables) {
        Ok(reason) | Err(reason) => reason,
    };
    refuse(tables, 0, reason);
    reason
}

#[inline(always)]
fn answered<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
) -> Result<Reason, Reason> {
    let walked = place.walked(&packet)?;
    check_list_of_all(tables, &walked.network.source)?;
    let offset = walked.start.wrapping_add(walked.network.header);
    let header: Icmp = packet.load_variable(offset).ok_or(Reason::Truncated)?;
    match Message::of(walked.network.family, &header) {
        Message::Ping(old, new) => Ok(answer(packet, &walked, offset, old, new)),
        _ => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn act<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
    service: &mut u32,
) -> Result<Heard<P>, Reason> {
    let walked = place.walked(&packet)?;
    let network = walked.network;
    let address = find_address(tables, &network)?;
    let offset = walked.start.wrapping_add(network.header);
    let header: Icmp = packet.load_variable(offset).ok_or(Reason::Truncated)?;
    let (vip, flow) = match Message::of(network.family, &header) {
        Message::Error => {
            quoted_flow(&packet, &network, &address, offset.wrapping_add(Icmp::SIZE), tables)?
        }
        Message::Ping(..) if address.options.has(AddressOptions::PING_HOST) => {
            return Err(Reason::OtherProtocol);
        }
        Message::Ping(..) if address.options.has(AddressOptions::PING_FORWARD) => {
            // The hash of the two addresses selects the backend.
            let vip = tables.vip(&VipKey::pings(address.id)).ok_or(Reason::OtherProtocol)?;
            let ports = Port::new(0);
            (vip, Flow::new(network.source, network.destination, ports, ports, network.protocol))
        }
        Message::Ping(..) => return Ok(Heard::Ping(packet)),
        Message::Other => return Err(Reason::OtherProtocol),
    };

    // From this line on the packet is ours, and every refusal is a counted drop. Routers are in no
    // list: who counts is the client whose packet they could not bring.
    *service = vip.service;
    check_source(tables, &flow.source, &vip)?;
    let vip = route(tables, &flow.source, vip);
    *service = vip.service;
    let size = parse::size_of_fragment(&packet, walked.start, &network)?;
    let behind = Behind::icmp(&packet, &network, &size);
    let ours = Ours { network, size, behind, opens: false, tags: walked.tags(), vip, packet };
    let (choice, hash) = ours.choose(&flow, tables, false)?;
    // Nobody is told that an error does not fit (RFC 1122 section 3.2.2), nor a ping.
    ours.send_untold(&choice, hash, tables).map(Heard::Forward)
}

/// The VIP's flow that an error quotes, as its client sends it, and the VIP. The quoted packet,
/// from the VIP to the client, is at `start`.
#[inline(always)]
fn quoted_flow<P: Packet, T: BalancerTables>(
    packet: &P,
    outer: &Network,
    address: &VipAddress,
    start: usize,
    tables: &T,
) -> Result<(Vip, Flow), Reason> {
    let quoted = quoted(packet, start, outer.family).ok_or(Reason::QuotesOther)?;
    let network = quoted.network;
    if network.source != outer.destination || !(network.protocol == TCP || network.protocol == UDP)
    {
        return Err(Reason::QuotesOther);
    }
    if let Part::Later = quoted.part {
        return Err(Reason::QuotesFragment);
    }
    // Of what follows the quoted IP header, eight bytes are certain (RFC 792), and the ports are
    // the first four of TCP as of UDP.
    let ports = start.wrapping_add(network.header);
    let [own, client]: [Port; 2] = packet.load_variable(ports).ok_or(Reason::QuotesOther)?;
    let vip = find_vip(tables, address, own, network.protocol).map_err(|_| Reason::QuotesOther)?;
    Ok((vip, Flow::new(network.destination, network.source, client, own, network.protocol)))
}

/// The headers of a quoted packet, as far as they are quoted.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, start: usize, family: Family) -> Option<Walked> {
    let (network, part) = match family {
        Family::V4 => {
            let header: Ipv4 = packet.load_variable(start)?;
            (from_ipv4(&header).ok()?, header.part())
        }
        Family::V6 => (from_ipv6(&packet.load_variable(start)?).ok()?, Part::Whole),
    };
    Walked::new(network, start, part, false).past_extensions(packet).ok()
}

/// Turns a ping whose ICMP header is at `offset` into its answer; `old` and `new` are the first
/// word of that header.
///
/// Its payload is not touched: the checksum changes by what changes under it. A request whose
/// checksum is wrong gets an answer whose checksum is as wrong. Requests with IP options or
/// extension headers are left to the host, since those would have to be turned round, too.
#[inline(always)]
fn answer<P: Packet>(mut packet: P, walked: &Walked, offset: usize, old: u16, new: u16) -> Reason {
    let network = &walked.network;
    let fixed = match network.family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    if network.header != fixed || !network.source.is_answerable(network.family) {
        return Reason::OtherProtocol;
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    let Size { packet: length, .. } = match parse::size_of_fragment(&packet, walked.start, network)
    {
        Ok(size) => size,
        Err(reason) => return reason,
    };
    if length < fixed.wrapping_add(Icmp::SIZE) {
        return Reason::BadLength;
    }
    if network.hops == 0 {
        return Reason::Expired;
    }
    // First, since it refuses what is for everybody or for a group (RFC 1122 section 3.2.2).
    let turned = packet.turn_back().and_then(|()| match network.family {
        Family::V4 => packet
            .load_variable(walked.start)
            .ok_or(Reason::NoRoom)
            .and_then(|header: Ipv4| packet.store(walked.start, &header.answered(ANSWER_HOPS))),
        Family::V6 => packet
            .load_variable(walked.start)
            .ok_or(Reason::NoRoom)
            .and_then(|header: Ipv6| packet.store(walked.start, &header.answered(ANSWER_HOPS))),
    });
    match turned.and_then(|()| packet.store_summed(offset, old, new, offset.wrapping_add(2))) {
        Ok(()) => Reason::PingAnswered,
        Err(reason) => reason,
    }
}

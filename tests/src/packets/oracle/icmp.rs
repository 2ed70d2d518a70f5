//! Expected result of ICMP to a VIP address, by RFC 792 and RFC 4443. etherparse computes checksums
//! over the whole message.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, Ipv4Header};
use sluice_datapath::Reason;
use sluice_datapath::abi::AddressOptions;

use super::encapsulate::{Path, drop_reason};
use super::flow::{self, tuple};
use super::ip::{self, Fragmentation, Ip};
use super::lookup::{Oracle, is_link_local, is_martian};
use crate::packets::expectation::Expectation;
use crate::packets::frames::Frame;
use crate::packets::frames::icmp::packet_too_big;

/// Classes of ICMP messages.
enum MessageClass {
    /// An error that quotes a packet.
    Error,
    EchoRequest,
    Other,
}

impl MessageClass {
    fn new(ip: &Ip, message: &[u8]) -> Option<Self> {
        Some(if ip.source.is_ipv4() {
            // Only the first eight bytes are read; etherparse expects more for some types.
            match Icmpv4Slice::from_slice(message).ok()?.icmp_type() {
                Icmpv4Type::DestinationUnreachable(_) | Icmpv4Type::TimeExceeded(_) => Self::Error,
                Icmpv4Type::ParameterProblem(_) => Self::Error,
                Icmpv4Type::EchoRequest(_) => Self::EchoRequest,
                // Unassigned codes are errors too.
                Icmpv4Type::Unknown { type_u8: 3 | 11 | 12, .. } => Self::Error,
                _ => Self::Other,
            }
        } else {
            match Icmpv6Slice::from_slice(message).ok()?.icmp_type() {
                Icmpv6Type::DestinationUnreachable(_) | Icmpv6Type::PacketTooBig { .. } => {
                    Self::Error
                }
                Icmpv6Type::TimeExceeded(_) | Icmpv6Type::ParameterProblem(_) => Self::Error,
                Icmpv6Type::EchoRequest(_) => Self::EchoRequest,
                Icmpv6Type::Unknown { type_u8: 1..=4, .. } => Self::Error,
                _ => Self::Other,
            }
        })
    }
}

impl Oracle {
    pub(super) fn icmp(
        &mut self,
        frame: &Frame,
        ip: &Ip,
        address: u32,
    ) -> Result<Expectation, Reason> {
        let start = ip.start + ip.header;
        let header = frame.bytes.get(start..start + 8).ok_or(Reason::Truncated)?;
        let options = self.fixture.address_options.get(&address).copied().unwrap_or_default();
        match MessageClass::new(ip, header).unwrap_or(MessageClass::Other) {
            MessageClass::Other => Err(Reason::OtherProtocol),
            MessageClass::Error => self.error(frame, ip, address),
            MessageClass::EchoRequest if options.has(AddressOptions::PING_HOST) => {
                Err(Reason::OtherProtocol)
            }
            MessageClass::EchoRequest if options.has(AddressOptions::PING_FORWARD) => {
                let service =
                    *self.fixture.vips.get(&(address, 0, 1)).ok_or(Reason::OtherProtocol)?;
                let tuple = tuple(ip.source, ip.destination, &[0; 4], ip.protocol);
                self.check_client(service, ip.source, ip.destination)?;
                self.forward_by_flow(frame, ip, self.routed(service, ip.source), &tuple)
            }
            MessageClass::EchoRequest => {
                self.check_source(ip.source, ip.destination)?;
                self.check_global_acl(ip.source)?;
                answer(frame, ip)
            }
        }
    }

    /// An error about a packet from a VIP goes to the backend of the flow.
    fn error(&mut self, frame: &Frame, ip: &Ip, address: u32) -> Result<Expectation, Reason> {
        // Bytes after the error's own end are no part of it.
        let end = ip.start + ip.length;
        let bytes = &frame.bytes[..end.min(frame.bytes.len())];
        let start = ip.start + ip.header + 8;
        let quoted = if ip.source.is_ipv4() { ip::v4(bytes, start) } else { ip::v6(bytes, start) };
        let quoted = quoted
            .and_then(|quoted| quoted.past_extensions(bytes))
            .map_err(|_| Reason::IcmpUnrelated)?;
        let at = quoted.start + quoted.header;
        if at + 4 > end {
            return Err(Reason::IcmpUnrelated);
        }
        if quoted.source != ip.destination || !matches!(quoted.protocol, 6 | 17) {
            return Err(Reason::IcmpUnrelated);
        }
        if matches!(quoted.fragmentation, Fragmentation::NonInitial(_)) {
            return Err(Reason::IcmpInnerFragment);
        }
        let ports = bytes.get(at..at + 4).ok_or(Reason::IcmpUnrelated)?;
        let port = u16::from_be_bytes([ports[0], ports[1]]);
        let service =
            self.service(address, port, quoted.protocol).map_err(|_| Reason::IcmpUnrelated)?;
        if is_martian(ip.source) && !is_link_local(ip.source) {
            return Err(Reason::MartianSource);
        }
        let turned = [&ports[2..], &ports[..2]].concat();
        let tuple = tuple(quoted.destination, quoted.source, &turned, quoted.protocol);
        // ACLs apply to the client, not to the router that sends the error.
        self.check_client(service, quoted.destination, quoted.source)?;
        self.forward_by_flow(frame, ip, self.routed(service, quoted.destination), &tuple)
    }

    fn forward_by_flow(
        &mut self,
        frame: &Frame,
        ip: &Ip,
        service: u32,
        flow: &Vec<u8>,
    ) -> Result<Expectation, Reason> {
        check(frame, ip, ip.header + 8)?;
        self.consume_tokens(service, ip.source, frame.segments.max(1), false)?;
        let (backend, hint) = self.select_backend(service, flow, false)?;
        let (options, hash) = (self.options(service), flow::hash(&self.hashed(service, flow)));
        let path = Path { service, backend, hint, options, hash };
        self.encapsulated(frame, ip, path, (ip.length, ip.length), false).map_err(drop_reason)
    }
}

fn check(frame: &Frame, ip: &Ip, least: usize) -> Result<(), Reason> {
    if ip.length > frame.bytes.len() - ip.start || ip.length < least {
        return Err(Reason::BadLength);
    }
    if ip.ttl == 0 { Err(Reason::TtlExpired) } else { Ok(()) }
}

/// The result for a packet whose `largest` segment exceeds `room`.
pub(super) fn too_big(
    frame: &Frame,
    ip: &Ip,
    largest: usize,
    room: usize,
) -> Result<Expectation, Reason> {
    let mtu = room.max(if ip.source.is_ipv4() { 576 } else { 1280 });
    if largest <= mtu || ip.start != 14 {
        return Err(Reason::TooBig);
    }
    // After extension headers the L4 checksum is quoted unchanged.
    let transport = (ip.source.is_ipv4() || ip.header == 40).then_some(ip.protocol);
    Ok(Expectation::Reply(
        Reason::IcmpTooBigSent,
        packet_too_big(&frame.bytes, ip.header, transport, mtu as u32),
    ))
}

/// The frame as an echo reply.
fn answer(frame: &Frame, ip: &Ip) -> Result<Expectation, Reason> {
    let fixed = if ip.source.is_ipv4() { 20 } else { 40 };
    if ip.header != fixed {
        return Err(Reason::OtherProtocol);
    }
    check(frame, ip, fixed + 8)?;
    let mut bytes = frame.bytes.clone();
    bytes[..6].copy_from_slice(&frame.bytes[6..12]);
    bytes[6..12].copy_from_slice(&frame.bytes[..6]);
    let packet = &mut bytes[ip.start..][..ip.length];
    let size = if fixed == 20 { 4 } else { 16 };
    let addresses = fixed - 2 * size;
    let (header, message) = packet.split_at_mut(fixed);
    let valid = checksum(ip, message);
    header[addresses..].rotate_left(size);
    if fixed == 20 {
        let was = Ipv4Header::from_slice(&[&frame.bytes[ip.start..][..20], &[0; 40]].concat())
            .map_err(|_| Reason::BadHeader)?
            .0;
        let valid = was.header_checksum == was.calc_header_checksum();
        header[8] = 64;
        let new = Ipv4Header::from_slice(header).map_err(|_| Reason::BadHeader)?.0;
        if valid {
            header[10..12].copy_from_slice(&new.calc_header_checksum().to_be_bytes());
        } else {
            // A wrong checksum keeps its error.
            let by = difference(was.calc_header_checksum(), was.header_checksum);
            header[10..12].copy_from_slice(&plus(new.calc_header_checksum(), by).to_be_bytes());
        }
        message[0] = 0;
    } else {
        header[7] = 64;
        message[0] = 129;
    }
    let was = [frame.bytes[ip.start + fixed + 2], frame.bytes[ip.start + fixed + 3]];
    let by = difference(valid, u16::from_be_bytes(was));
    // 0 and all ones are equal in ones' complement; Sluice writes all ones.
    let new = match plus(checksum(ip, message), by) {
        0 => u16::MAX,
        new => new,
    };
    message[2..4].copy_from_slice(&new.to_be_bytes());
    Ok(Expectation::Reply(Reason::IcmpEchoReplied, bytes))
}

/// The valid checksum of a message.
fn checksum(ip: &Ip, message: &[u8]) -> u16 {
    let sum = match (ip.source, ip.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => Sum16BitWords::new()
            .add_16bytes(source.octets())
            .add_16bytes(destination.octets())
            .add_4bytes((message.len() as u32).to_be_bytes())
            .add_2bytes([0, 58]),
        _ => Sum16BitWords::new(),
    };
    let sum = sum.add_2bytes([message[0], message[1]]).add_slice(&message[4..]);
    sum.ones_complement().to_be()
}

/// The difference `b - a` in ones' complement.
fn difference(a: u16, b: u16) -> u16 {
    plus(b, !a)
}

/// The ones' complement sum.
fn plus(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

//! Reading an ICMP error that says "too big": what it tells, and of which packet.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded;
use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv4HeaderSlice, Ipv4Slice,
    Ipv6HeaderSlice, UdpHeaderSlice,
};
use sluice_datapath::Family;

/// Bytes that an error quotes at least behind the IP header of the packet that it is about (RFC
/// 792).
const QUOTED: usize = 8;

/// What an error tells of an IP packet that carries another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// The MTU that the router tells, in bytes; 0 when it does not (RFC 1191 section 5).
    pub mtu: u32,
    /// The quoted packet's source.
    pub source: IpAddr,
    /// The quoted packet's destination.
    pub destination: IpAddr,
    /// The quoted packet's length in bytes, outer header included.
    pub length: u32,
    /// The family of the packet inside it; `None` where the router quotes a UDP header and nothing
    /// behind it, which is as much as it must.
    pub inner: Option<Family>,
    /// The port that it is sent to, where it is UDP.
    pub port: Option<u16>,
    /// Whether the quoted packet forbade routers to cut it, as every IPv6 packet does.
    pub uncut: bool,
}

/// The error is cut short, broken, or about something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl TooBig {
    /// Reads an ICMP message from its IPv4 header on, as a raw socket gives it: nobody has looked
    /// at its checksum yet.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn from_ipv4(packet: &[u8]) -> Result<Self, Malformed> {
        let icmp = Ipv4Slice::from_slice(packet).map_err(|_| Malformed)?.payload().payload;
        if Sum16BitWords::new().add_slice(icmp).ones_complement() != 0 {
            return Err(Malformed);
        }
        let icmp = Icmpv4Slice::from_slice(icmp).map_err(|_| Malformed)?;
        let Icmpv4Type::DestinationUnreachable(FragmentationNeeded { next_hop_mtu }) =
            icmp.icmp_type()
        else {
            return Err(Malformed);
        };
        let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).map_err(|_| Malformed)?;
        // Outer headers have no options, and later fragments have no header behind theirs.
        if quoted.slice().len() != 20 || quoted.fragments_offset().value() != 0 {
            return Err(Malformed);
        }
        let (inner, port) = inner(quoted.protocol(), &icmp.payload()[quoted.slice().len()..])?;
        Ok(Self {
            mtu: next_hop_mtu.into(),
            source: quoted.source_addr().into(),
            destination: quoted.destination_addr().into(),
            length: quoted.total_len().into(),
            inner,
            port,
            uncut: quoted.dont_fragment(),
        })
    }

    /// Reads an ICMPv6 message from its own header on, as a raw socket gives it: the kernel has
    /// checked its checksum.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn from_icmpv6(message: &[u8]) -> Result<Self, Malformed> {
        let icmp = Icmpv6Slice::from_slice(message).map_err(|_| Malformed)?;
        let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { return Err(Malformed) };
        let quoted = Ipv6HeaderSlice::from_slice(icmp.payload()).map_err(|_| Malformed)?;
        let (inner, port) = inner(quoted.next_header(), &icmp.payload()[quoted.slice().len()..])?;
        // Here routers quote as much as fits (RFC 4443 section 3.2).
        if inner.is_none() {
            return Err(Malformed);
        }
        Ok(Self {
            mtu,
            source: quoted.source_addr().into(),
            destination: quoted.destination_addr().into(),
            length: u32::from(quoted.payload_length()) + 40,
            inner,
            port,
            uncut: true,
        })
    }
}

/// The family of the packet inside, where it is quoted, and the port that it is sent to if it is
/// UDP; enough of it is quoted, and it is of the version that its protocol number says.
fn inner(protocol: IpNumber, quoted: &[u8]) -> Result<(Option<Family>, Option<u16>), Malformed> {
    let version = |at: usize| quoted.get(at).map(|first| first >> 4);
    let (family, port) = match (protocol, version(0)) {
        (IpNumber::IPV4, Some(4)) => (Some(Family::V4), None),
        (IpNumber::IPV6, Some(6)) => (Some(Family::V6), None),
        (IpNumber::UDP, _) => {
            let udp = UdpHeaderSlice::from_slice(quoted).map_err(|_| Malformed)?;
            let family = match version(udp.slice().len()) {
                Some(4) => Some(Family::V4),
                Some(6) => Some(Family::V6),
                Some(_) => return Err(Malformed),
                None => None,
            };
            (family, Some(udp.destination_port()))
        }
        _ => return Err(Malformed),
    };
    if quoted.len() >= QUOTED { Ok((family, port)) } else { Err(Malformed) }
}

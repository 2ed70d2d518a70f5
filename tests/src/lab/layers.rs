//! What is in a captured frame: an outer header perhaps, the packet in it, and whether their
//! checksums are right.

use super::topology::GUE_PORT;
use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice, UdpSlice};
use std::net::IpAddr;

/// The outermost IP header of a frame.
pub(super) struct Seen {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Whether it is an outer header: another IP header follows, or GUE.
    pub(super) encapsulated: bool,
    /// The outer source port of GUE.
    pub(super) gue_source: Option<u16>,
}

/// The checksum of an outer UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OuterChecksum {
    /// It is right, or will be once a device has completed the checksum inside.
    Right,
    /// There is none.
    None,
    /// It is wrong.
    Wrong,
}

pub(super) fn look(bytes: &[u8]) -> Option<Seen> {
    let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    let gue_source = gue(&packet).map(|udp| udp.source_port());
    let (source, destination, next): (IpAddr, IpAddr, IpNumber) = match packet.net? {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            (header.source_addr().into(), header.destination_addr().into(), header.protocol())
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            (header.source_addr().into(), header.destination_addr().into(), header.next_header())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    Some(Seen {
        source,
        destination,
        encapsulated: is_ip(next) || gue_source.is_some(),
        gue_source,
    })
}

/// The packet in a frame, without the outer header if there is one.
pub(super) fn inner(bytes: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    if let Some(udp) = gue(&packet) {
        return LaxSlicedPacket::from_ip(udp.payload()).ok();
    }
    match &packet.net {
        Some(LaxNetSlice::Ipv4(v4)) if is_ip(v4.header().protocol()) => {
            LaxSlicedPacket::from_ip(v4.payload().payload).ok()
        }
        Some(LaxNetSlice::Ipv6(v6)) if is_ip(v6.header().next_header()) => {
            LaxSlicedPacket::from_ip(v6.payload().payload).ok()
        }
        _ => Some(packet),
    }
}

/// The source, both ports and the protocol of a TCP or UDP packet.
pub(super) fn flow(packet: &LaxSlicedPacket<'_>) -> Option<(IpAddr, u16, u16, u8)> {
    let source = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(v4) => v4.header().source_addr().into(),
        LaxNetSlice::Ipv6(v6) => v6.header().source_addr().into(),
        LaxNetSlice::Arp(_) => return None,
    };
    match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            Some((source, tcp.source_port(), tcp.destination_port(), IpNumber::TCP.0))
        }
        TransportSlice::Udp(udp) => {
            Some((source, udp.source_port(), udp.destination_port(), IpNumber::UDP.0))
        }
        _ => None,
    }
}

/// Whether the checksum of a TCP packet is right, in front of which may be an outer header; `None`
/// when it is none.
pub(super) fn has_good_checksum(bytes: &[u8]) -> Option<bool> {
    let packet = inner(bytes)?;
    matches!(packet.transport, Some(TransportSlice::Tcp(_)))
        .then(|| Sums::of(&packet).map(|sums| sums.is_good()))?
}

/// How the checksum of an outer UDP header is; `None` when there is no such header.
pub(super) fn outer_checksum(bytes: &[u8]) -> Option<OuterChecksum> {
    let outer = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    // Nearly all bytes of large transfers: nothing need be summed.
    if gue(&outer)?.checksum() == 0 {
        return Some(OuterChecksum::None);
    }
    let sums = Sums::of(&outer)?;
    // What a device will complete inside is covered by the outer checksum.
    let change = match Sums::of(&inner(bytes)?) {
        Some(inner) if inner.is_left_to_a_device() => {
            u64::from(!inner.field) + u64::from(inner.right)
        }
        _ => 0,
    };
    Some(if fold(sums.all + change) == 0xffff {
        OuterChecksum::Right
    } else {
        OuterChecksum::Wrong
    })
}

/// The sums about a TCP or UDP checksum.
struct Sums {
    /// The checksum's field.
    field: u16,
    /// What it should be.
    right: u16,
    /// The sum of the pseudo-header: what a device that is to fill in the checksum finds in its
    /// place.
    pseudo: u16,
    /// Of the pseudo-header and of all that it covers, the checksum included.
    all: u64,
}

impl Sums {
    fn of(packet: &LaxSlicedPacket<'_>) -> Option<Self> {
        let (covered, protocol, field): (&[u8], _, _) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.slice(), IpNumber::TCP, tcp.checksum()),
            Some(TransportSlice::Udp(udp)) => (udp.slice(), IpNumber::UDP, udp.checksum()),
            _ => return None,
        };
        let addresses = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(v4) => sum(&v4.header().source()) + sum(&v4.header().destination()),
            LaxNetSlice::Ipv6(v6) => sum(&v6.header().source()) + sum(&v6.header().destination()),
            LaxNetSlice::Arp(_) => return None,
        };
        let length = covered.len() as u64;
        let pseudo = addresses + (length >> 16) + (length & 0xffff) + u64::from(protocol.0);
        let all = pseudo + sum(covered);
        let right = !fold(all + u64::from(!field));
        Some(Self { field, right, pseudo: fold(pseudo), all })
    }

    fn is_left_to_a_device(&self) -> bool {
        self.field == self.pseudo
    }

    fn is_good(&self) -> bool {
        fold(self.all) == 0xffff || self.is_left_to_a_device()
    }
}

fn gue<'a>(packet: &LaxSlicedPacket<'a>) -> Option<UdpSlice<'a>> {
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == GUE_PORT => Some(udp.clone()),
        _ => None,
    }
}

fn is_ip(protocol: IpNumber) -> bool {
    protocol == IpNumber::IPV4 || protocol == IpNumber::IPV6
}

/// The sum of the 16-bit words, not folded: 32 bits at a time, which fold to the same.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::VIP_V4;
    use etherparse::PacketBuilder;

    /// A TCP packet in a frame, and the offset of its checksum from the end.
    fn plain() -> Vec<u8> {
        let mut plain = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], VIP_V4.octets(), 64);
        builder.tcp(1000, 80, 7, 64_000).write(&mut plain, b"hello").unwrap();
        plain
    }

    fn checksum_in(frame: &mut [u8]) -> &mut [u8] {
        let at = frame.len() - 5 - 4;
        &mut frame[at..at + 2]
    }

    fn pseudo() -> u16 {
        fold(sum(&[&[10, 0, 1, 2][..], &VIP_V4.octets(), &[0, 6, 0, 25]].concat()))
    }

    #[test]
    fn checksums_are_judged_plain_and_encapsulated_and_to_be_completed() {
        let builder =
            || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        let (mut in_ip, mut in_udp) = (Vec::new(), Vec::new());
        builder().write(&mut in_ip, IpNumber::IPV4, &plain()[14..]).unwrap();
        builder().udp(50_000, GUE_PORT).write(&mut in_udp, &plain()[14..]).unwrap();
        for mut frame in [plain(), in_ip, in_udp] {
            assert_eq!(has_good_checksum(&frame), Some(true));
            checksum_in(&mut frame)[0] ^= 1;
            assert_eq!(has_good_checksum(&frame), Some(false));
            checksum_in(&mut frame).copy_from_slice(&pseudo().to_be_bytes());
            assert_eq!(has_good_checksum(&frame), Some(true));
        }
        assert_eq!(has_good_checksum(&[0; 20]), None);
    }

    #[test]
    fn an_outer_checksum_covers_what_a_device_has_yet_to_complete_inside() {
        let mut frame = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        builder.udp(50_000, GUE_PORT).write(&mut frame, &plain()[14..]).unwrap();
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Right));
        checksum_in(&mut frame).copy_from_slice(&pseudo().to_be_bytes());
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Right));
        frame[14 + 20] ^= 1;
        assert_eq!(outer_checksum(&frame), Some(OuterChecksum::Wrong));
        frame[14 + 26..14 + 28].fill(0);
        assert_eq!(
            (outer_checksum(&frame), outer_checksum(&plain())),
            (Some(OuterChecksum::None), None)
        );
        let seen = look(&frame).unwrap();
        assert_eq!((seen.encapsulated, seen.gue_source), (true, Some(50_000 ^ 0x100)));
    }
}

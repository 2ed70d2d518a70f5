//! Verification of TCP and UDP checksums (RFC 1071), partial ones included.

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// The sums that verify the checksum of one TCP or UDP packet.
pub(super) struct L4Sums {
    /// The checksum field.
    field: u16,
    /// The correct checksum.
    correct: u16,
    /// Sum of the pseudo-header: the content of the field while the checksum is partial, that is,
    /// left to a device to complete (`CHECKSUM_PARTIAL`).
    pseudo_header: u16,
    /// Sum of the pseudo-header, the L4 header with its checksum, and the payload; not folded.
    all: u64,
}

impl L4Sums {
    pub(super) fn new(packet: &LaxSlicedPacket<'_>) -> Option<Self> {
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
        let pseudo_header = addresses + (length >> 16) + (length & 0xffff) + u64::from(protocol.0);
        let all = pseudo_header + sum(covered);
        let correct = !fold(all + u64::from(!field));
        Some(Self { field, correct, pseudo_header: fold(pseudo_header), all })
    }

    pub(super) fn is_partial(&self) -> bool {
        self.field == self.pseudo_header
    }

    pub(super) fn is_correct(&self) -> bool {
        fold(self.all) == 0xffff
    }

    /// Whether the checksum is correct once a device has completed the one of `inner`, which it
    /// covers.
    pub(super) fn is_correct_after(&self, inner: &Self) -> bool {
        fold(self.all + u64::from(!inner.field) + u64::from(inner.correct)) == 0xffff
    }

    pub(super) fn is_good(&self) -> bool {
        self.is_correct() || self.is_partial()
    }
}

/// The sum of the 16-bit words, not folded. Words of 32 bits are added, which fold to the same sum.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

/// Folds a sum to 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

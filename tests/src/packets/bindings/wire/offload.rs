//! The offloads of a frame: the header (`virtio_net_hdr`) that marks it as merged or as partially
//! checksummed.

use anyhow::bail;
use etherparse::{SlicedPacket, TransportSlice};

use super::socket::Offload;
use crate::packets::frames::Frame;

/// Bytes of the two link addresses.
pub(super) const ADDRESSES: usize = 12;

/// Whether the link can carry exactly this frame. The kernel computes the number of segments, and
/// moves the first VLAN tag from the bytes into the metadata, which needs two bytes after the tag.
pub fn link_accepts(frame: &Frame) -> bool {
    let tagged =
        matches!(frame.bytes.get(ADDRESSES..ADDRESSES + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    if tagged && !frame.vlan || frame.vlan && frame.bytes.len() < ADDRESSES + 4 {
        return false;
    }
    if frame.segment_size == 0 {
        return frame.segments <= 1;
    }
    !frame.vlan
        && merged(&frame.bytes).is_some_and(|merged| {
            /// Bytes of an Ethernet and an IPv6 header.
            const AFTER_IPV6: usize = 14 + 40;

            let size = frame.segment_size as usize;
            // A packet socket does not accept merged datagrams with IPv6 extension headers.
            let skipped = merged.kind != Offload::UDP || merged.transport <= AFTER_IPV6;
            skipped
                && merged.payload > size
                && merged.payload.div_ceil(size) == frame.segments as usize
        })
}

/// The parts of a packet that can be sent as a merged one: GSO type, offset of the L4 header,
/// offset of the checksum in it, bytes of payload.
pub(super) struct Merged {
    pub(super) kind: u8,
    pub(super) transport: usize,
    pub(super) checksum: u16,
    pub(super) payload: usize,
}

pub(super) fn merged(bytes: &[u8]) -> Option<Merged> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let v4 = bytes.get(ADDRESSES..ADDRESSES + 2) == Some(&[0x08, 0x00]);
    let (kind, slice, checksum, payload) = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            (if v4 { Offload::TCP4 } else { Offload::TCP6 }, tcp.slice(), 16, tcp.payload().len())
        }
        TransportSlice::Udp(udp) => (Offload::UDP, udp.slice(), 6, udp.payload().len()),
        _ => return None,
    };
    let transport = slice.as_ptr() as usize - bytes.as_ptr() as usize;
    (transport + slice.len() == bytes.len()).then_some(Merged {
        kind,
        transport,
        checksum,
        payload,
    })
}

pub(super) fn offload(
    frame: &Frame,
    linear: Option<u16>,
    partial: bool,
) -> anyhow::Result<Offload> {
    let linear = linear.unwrap_or(0).min(frame.bytes.len() as u16);
    let mut offload = Offload { linear, ..Offload::default() };
    if partial || frame.segment_size != 0 {
        let Some(merged) = merged(&frame.bytes) else {
            bail!("the frame has no L4 packet that ends with the frame")
        };
        offload.flags = Offload::PARTIAL;
        offload.checksum_start = merged.transport as u16;
        offload.checksum_offset = merged.checksum;
        if frame.segment_size != 0 {
            offload.kind = merged.kind;
            offload.segment_size = frame.segment_size as u16;
        }
    }
    Ok(offload)
}

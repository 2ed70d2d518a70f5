//! Packets in byte buffers.
#![expect(unsafe_code, reason = "copies headers from and to bytes")]

use crate::abi::{CAPTURE_LEN, Family, Pod, Reason};
use crate::wire::checksum;
use crate::wire::header::Udp;
use crate::wire::packet::{ETH_HLEN, Packet, ether_type, is_group};

/// An Ethernet frame in a byte buffer.
#[derive(Debug)]
pub struct PacketBuffer<'a> {
    /// The frame.
    pub bytes: &'a mut Vec<u8>,
    /// [`Packet::segment_size`].
    pub segment_size: usize,
    /// [`Packet::segments`].
    pub segments: u64,
    /// [`Packet::has_vlan`] and [`Packet::is_in_vlan`].
    pub vlan: bool,
    /// The opposite of [`Packet::is_for_this_host`].
    pub other_host: bool,
    /// [`Packet::interface`].
    pub interface: u32,
}

impl<'a> PacketBuffer<'a> {
    /// A frame that is not merged and has no VLAN tag in its metadata.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, segment_size: 0, segments: 1, vlan: false, other_host: false, interface: 1 }
    }
}

impl PacketBuffer<'_> {
    /// The same frame, borrowed for one stage.
    pub(crate) fn reborrow(&mut self) -> PacketBuffer<'_> {
        PacketBuffer { bytes: self.bytes, ..*self }
    }
}

impl Packet for PacketBuffer<'_> {
    fn frame_len(&self) -> usize {
        self.bytes.len()
    }

    fn has_vlan(&self) -> bool {
        self.vlan
    }

    fn is_in_vlan(&self) -> bool {
        self.vlan
    }

    fn is_for_this_host(&self) -> bool {
        !self.other_host
    }

    fn segment_size(&self) -> usize {
        self.segment_size
    }

    fn segments(&self) -> u64 {
        self.segments
    }

    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: the slice holds `size_of::<T>()` bytes, and every bit pattern is a valid `T`.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn load_at<T: Pod>(&self, offset: usize) -> Option<T> {
        self.load(offset)
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn copy_head(&self, head: &mut [u8; CAPTURE_LEN]) -> u32 {
        let bytes = &self.bytes[..self.bytes.len().min(CAPTURE_LEN)];
        head[..bytes.len()].copy_from_slice(bytes);
        bytes.len() as u32
    }

    fn vlan_pop(self, bytes: usize) -> Result<Self, Reason> {
        self.bytes.drain(ETH_HLEN - 2..ETH_HLEN - 2 + bytes);
        Ok(Self { vlan: false, ..self })
    }

    fn store<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        let end = offset + size_of::<T>();
        self.bytes
            .get_mut(offset..end)
            .ok_or(Reason::AdjustRoomFailed)?
            .copy_from_slice(bytes_of(header));
        Ok(())
    }

    fn csum_replace2(
        &mut self,
        offset: usize,
        old: u16,
        new: u16,
        at: usize,
    ) -> Result<(), Reason> {
        let checksum = checksum::replaced(self.load(at).ok_or(Reason::AdjustRoomFailed)?, old, new);
        self.store(offset, &new)?;
        self.store(at, &checksum)
    }

    fn swap_macs(&mut self) -> Result<(), Reason> {
        let [to, from]: [[u16; 3]; 2] = self.load(0).ok_or(Reason::AdjustRoomFailed)?;
        if is_group(to) {
            return Err(Reason::OtherHost);
        }
        self.store(0, &[from, to])
    }

    fn trim(self, length: usize) -> Result<Self, Reason> {
        self.bytes.truncate(length);
        Ok(Self { segment_size: 0, segments: 1, ..self })
    }

    fn csum_partial<const N: usize>(&self, offset: usize) -> Option<u32> {
        let [sum, carry]: [u32; 2] =
            self.bytes.get(offset..offset + N)?.chunks(2).fold([0, 0], |[sum, carry], word| {
                let sum = sum + u32::from(u16::from_ne_bytes([word[0], word[1]]));
                [sum & 0xffff, carry + (sum >> 16)]
            });
        Some(sum + carry)
    }

    fn push_headers<T: Pod>(self, headers: &T) -> Result<(), Reason> {
        self.bytes.splice(ETH_HLEN..ETH_HLEN, bytes_of(headers).iter().copied());
        Ok(())
    }

    fn encapsulate<T: Pod>(
        self,
        family: Family,
        _: Family,
        outer: &T,
        _: bool,
        between: u32,
    ) -> Result<Self, Reason> {
        // A recognizable pattern, so that tests detect bytes that are not overwritten.
        const UNWRITTEN: [u8; Udp::SIZE] = [0xee; Udp::SIZE];

        self.bytes[ETH_HLEN - 2..ETH_HLEN].copy_from_slice(&ether_type(family).to_ne_bytes());
        let between = &UNWRITTEN[..between as usize];
        self.bytes.splice(ETH_HLEN..ETH_HLEN, bytes_of(outer).iter().chain(between).copied());
        Ok(self)
    }

    fn write<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        self.store(offset, header)
    }

    fn decapsulate<T: Pod, H: Pod>(self, _: Family, inner: Family, head: &H) -> Result<(), Reason> {
        self.bytes[ETH_HLEN - 2..ETH_HLEN].copy_from_slice(&ether_type(inner).to_ne_bytes());
        self.bytes.drain(ETH_HLEN..ETH_HLEN + size_of::<T>());
        self.bytes[ETH_HLEN..ETH_HLEN + size_of::<H>()].copy_from_slice(bytes_of(head));
        Ok(())
    }
}

/// The bytes of a value.
pub fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: a `Pod` type has no padding, so all bytes are initialized; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

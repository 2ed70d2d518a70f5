//! The interface of the packet path to a packet.

use crate::abi::{CAPTURE_LEN, Family, Pod, Reason};

/// Bytes of an Ethernet header.
pub const ETH_HLEN: usize = 14;

/// An Ethernet frame at a hook.
///
/// Three bindings exist: TC (`__sk_buff`), XDP (`xdp_md`), and a plain byte buffer (the module
/// `memory`). Headers are read by value. Methods after which earlier pointers into the packet would
/// be invalid, such as [`Packet::encapsulate`] and [`Packet::decapsulate`], consume the packet. A
/// change fails with [`Reason::AdjustRoomFailed`] if the kernel rejects it or the frame is too
/// short.
pub trait Packet: Sized {
    /// Bytes of the frame, Ethernet header included.
    fn frame_len(&self) -> usize;

    /// Whether the packet's metadata holds a VLAN tag of the frame (`skb->vlan_tci`).
    fn has_vlan(&self) -> bool;

    /// Whether a VLAN tag in the packet's metadata has a VLAN ID other than 0. ID 0 marks a
    /// priority tag (IEEE 802.1Q section 9.6), which the kernel ignores.
    fn is_in_vlan(&self) -> bool;

    /// Whether the destination MAC address is this host's. Always true if the hook does not have
    /// that information.
    fn is_for_this_host(&self) -> bool;

    /// Bytes of L4 payload per segment of a merged packet (`gso_size`); 0 if the packet is not
    /// merged.
    fn segment_size(&self) -> usize;

    /// Number of segments of a merged packet (`gso_segs`), else 1.
    fn segments(&self) -> u64;

    /// Loads the header at `offset`; `None` if the frame is shorter. `offset` is a constant at
    /// every call.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Loads the header at a variable offset, at most [`MAX_LOAD_OFFSET`].
    fn load_at<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Index of the ingress interface.
    fn interface(&self) -> u32;

    /// Copies the first bytes of the frame and returns their number.
    fn copy_head(&self, head: &mut [u8; CAPTURE_LEN]) -> u32;

    /// Removes VLAN tags: `bytes` bytes after the MAC addresses, and the tag in the packet's
    /// metadata, if it has one.
    fn vlan_pop(self, bytes: usize) -> Result<Self, Reason>;

    /// Overwrites the bytes at a variable offset, at most [`MAX_LOAD_OFFSET`], in or after the IP
    /// header.
    fn store<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Overwrites a 16-bit word and updates the Internet checksum that covers it, as
    /// [`crate::wire::checksum::replaced`] does. Both offsets are even and within the limits of
    /// [`Packet::store`].
    fn csum_replace2(
        &mut self,
        offset: usize,
        old: u16,
        new: u16,
        checksum: usize,
    ) -> Result<(), Reason>;

    /// Swaps the MAC addresses, so that the frame returns to its sender.
    /// [`Reason::OtherHost`] for a broadcast or multicast frame, which is unchanged (XDP programs
    /// receive such frames without a check).
    fn swap_macs(&mut self) -> Result<(), Reason>;

    /// Trims the frame to its first `length` bytes, a constant less than its length. Afterwards all
    /// bytes are readable, and the packet is not merged.
    fn trim(self, length: usize) -> Result<Self, Reason>;

    /// The one's complement sum of the 16-bit words of `N` bytes at `offset`, in memory order. `N`
    /// is a multiple of four, at most 512. `offset` is a constant, as in [`Packet::load`].
    fn csum_partial<const N: usize>(&self, offset: usize) -> Option<u32>;

    /// Inserts headers of the packet's family between the Ethernet header and the IP header.
    fn push_headers<T: Pod>(self, headers: &T) -> Result<(), Reason>;

    /// Inserts an outer header of `family` between the Ethernet header and the IP header, which is
    /// of the family `inner`. `resegment` reduces the segment size of a merged packet by the
    /// inserted bytes; [`Packet::segment_size`] must be larger than that. `udp_len` bytes are
    /// reserved after the outer header: those of the UDP header in GUE, else 0.
    fn encapsulate<T: Pod>(
        self,
        family: Family,
        inner: Family,
        outer: &T,
        resegment: bool,
        udp_len: u32,
    ) -> Result<Self, Reason>;

    /// Overwrites bytes of headers that this program inserted. `offset` is a constant at every
    /// call.
    fn write<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Removes the outer header `T` of the family `outer`, then overwrites the start of the
    /// following header, of the family `inner`, with `head`.
    fn decapsulate<T: Pod, H: Pod>(
        self,
        outer: Family,
        inner: Family,
        head: &H,
    ) -> Result<(), Reason>;
}

/// The largest offset of [`Packet::load_at`].
pub const MAX_LOAD_OFFSET: usize = 2047;

/// Whether a MAC address is a broadcast or multicast address (IEEE 802: the lowest bit of the first
/// byte).
#[inline(always)]
pub const fn is_group(address: [u16; 3]) -> bool {
    (address[0].to_ne_bytes()[0] & 1) != 0
}

/// The EtherType of a family, wire order.
#[inline(always)]
pub const fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800_u16.to_be(),
        Family::V6 => 0x86dd_u16.to_be(),
    }
}

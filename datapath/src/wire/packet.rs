//! What the packet path needs from a packet.

use crate::abi::{CAPTURE_LEN, Family, Pod, Reason};

/// Bytes of an Ethernet header.
pub const ETH_HLEN: usize = 14;

/// An Ethernet frame on its way through a hook.
///
/// Three bindings exist: TC (`__sk_buff`), XDP (`xdp_md`), and a plain byte buffer (the module
/// `memory`). Headers are read by value. [`Packet::encapsulate`] and [`Packet::decapsulate`] move
/// the packet, which voids every earlier look at it: they consume the packet, so that this is a
/// type error and not a rule to remember.
pub trait Packet: Sized {
    /// Bytes of the frame, Ethernet header included.
    fn frame_len(&self) -> usize;

    /// Whether a VLAN tag of the frame is held beside it and not in its bytes.
    fn has_vlan(&self) -> bool;

    /// Whether the frame's link address is this host's, as far as the hook can tell.
    fn is_for_this_host(&self) -> bool;

    /// Bytes of L4 payload of each segment that a merged packet will be cut into; 0 when the packet
    /// is not merged.
    fn segment_size(&self) -> usize;

    /// How many packets this one stands for, at least 1.
    fn segments(&self) -> u64;

    /// The header at `offset`, or `None` when the frame is shorter. `offset` is a constant wherever
    /// the function is called.
    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    /// The header at an offset that is known at run time only, at most [`MAX_LOAD_OFFSET`].
    fn load_at<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Index of the interface on which the frame came.
    fn interface(&self) -> u32;

    /// Copies the first bytes of the frame; how many there are.
    fn copy_head(&self, head: &mut [u8; CAPTURE_LEN]) -> u32;

    /// Removes VLAN tags: `bytes` bytes of them behind the link addresses, and one beside the bytes
    /// if there is one.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn vlan_pop(self, bytes: usize) -> Result<Self, Reason>;

    /// Overwrites the bytes at an offset that is known at run time only, at most
    /// [`MAX_LOAD_OFFSET`], at or behind the IP header.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn store<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Overwrites a 16-bit word, and brings the Internet checksum that covers it up to date as
    /// [`crate::wire::checksum::replaced`] does. Both offsets are even, and as in
    /// [`Packet::store`].
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn csum_replace2(
        &mut self,
        offset: usize,
        old: u16,
        new: u16,
        checksum: usize,
    ) -> Result<(), Reason>;

    /// Swaps the link addresses: the frame goes back to where it came from.
    ///
    /// # Errors
    ///
    /// [`Reason::OtherHost`] for a frame to everybody or to a group, which is unchanged (at XDP
    /// nobody has looked at the link address); [`Reason::AdjustRoomFailed`].
    fn swap_macs(&mut self) -> Result<(), Reason>;

    /// Cuts the frame to its first `length` bytes, a constant of which it has more. All of them are
    /// readable then, and the packet is no longer merged.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn trim(self, length: usize) -> Result<Self, Reason>;

    /// The sum of the 16-bit words of `N` bytes at `offset`, in memory order, one's complement; `N`
    /// is a multiple of four, at most 512, and `offset` as in [`Packet::load`].
    fn csum_partial<const N: usize>(&self, offset: usize) -> Option<u32>;

    /// Inserts headers of the packet's own family between the Ethernet header and the IP header.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn push_headers<T: Pod>(self, headers: &T) -> Result<(), Reason>;

    /// Inserts an outer header of `family` between the Ethernet header and the IP header, which is
    /// of the family `inner`. With `shrink`, a merged packet's segments are made smaller by as much
    /// ([`Packet::segment_size`], which is more than that). There are `between` bytes of room
    /// behind it, those of a UDP header in GUE, or none.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn encapsulate<T: Pod>(
        self,
        family: Family,
        inner: Family,
        outer: &T,
        shrink: bool,
        between: u32,
    ) -> Result<Self, Reason>;

    /// Does work at once, unless the binding's stages are functions: then it is left to one of
    /// them.
    ///
    /// # Errors
    ///
    /// The work's.
    #[inline(always)]
    fn in_place(self, _: impl FnOnce(Self) -> Result<(), Reason>) -> Result<(), Reason> {
        Ok(())
    }

    /// Overwrites bytes of headers that this program has inserted. `offset` is a constant wherever
    /// the function is called.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn write<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Removes the outer header `T`, of the family `outer`, behind the Ethernet header, then
    /// overwrites the start of the header of the family `inner` that follows it with `head`.
    ///
    /// # Errors
    ///
    /// [`Reason::AdjustRoomFailed`].
    fn decapsulate<T: Pod, H: Pod>(
        self,
        outer: Family,
        inner: Family,
        head: &H,
    ) -> Result<(), Reason>;
}

/// The largest offset at which [`Packet::load_at`] finds something.
pub const MAX_LOAD_OFFSET: usize = 2047;

/// Whether a link address is everybody's or a group's (IEEE 802: the lowest bit of its first byte).
#[inline(always)]
pub const fn is_group(address: [u16; 3]) -> bool {
    address[0].to_ne_bytes()[0] & 1 != 0
}

/// The EtherType of a family, wire order.
#[inline(always)]
pub const fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800_u16.to_be(),
        Family::V6 => 0x86dd_u16.to_be(),
    }
}

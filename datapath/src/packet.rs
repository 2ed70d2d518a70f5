//! What the packet path needs from a packet.

use crate::observe::HEAD;
use crate::{Family, Plain, Reason};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// An Ethernet frame on its way through a hook.
///
/// Three bindings exist: TC (`__sk_buff`), XDP (`xdp_md`), and a plain byte buffer (the module
/// `memory`). Headers are read by value. [`Packet::encapsulate`] and [`Packet::decapsulate`] move
/// the packet, which voids every earlier look at it: they consume the packet, so that this is a
/// type error and not a rule to remember.
pub trait Packet: Sized {
    /// Bytes of the frame, Ethernet header included.
    fn length(&self) -> usize;

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
    fn load<T: Plain>(&self, offset: usize) -> Option<T>;

    /// The header at an offset that is known at run time only, at most [`MAX_VARIABLE_OFFSET`].
    fn load_variable<T: Plain>(&self, offset: usize) -> Option<T>;

    /// Index of the interface on which the frame came.
    fn interface(&self) -> u32;

    /// Copies the first bytes of the frame; how many there are.
    fn head(&self, head: &mut [u8; HEAD]) -> u32;

    /// Removes VLAN tags: `bytes` bytes of them behind the link addresses, and one beside the bytes
    /// if there is one.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn untag(self, bytes: usize) -> Result<Self, Reason>;

    /// Overwrites the bytes at an offset that is known at run time only, at most
    /// [`MAX_VARIABLE_OFFSET`], at or behind the IP header.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn store<T: Plain>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Overwrites a 16-bit word, and brings the Internet checksum that covers it up to date as
    /// [`crate::checksum::replaced`] does. Both offsets are even, and as in [`Packet::store`].
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn store_summed(
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
    /// nobody has looked at the link address); [`Reason::NoRoom`].
    fn turn_back(&mut self) -> Result<(), Reason>;

    /// Cuts the frame to its first `length` bytes, a constant of which it has more. All of them are
    /// readable then, and the packet is no longer merged.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn cut(self, length: usize) -> Result<Self, Reason>;

    /// The sum of the 16-bit words of `N` bytes at `offset`, in memory order, one's complement; `N`
    /// is a multiple of four, at most 512, and `offset` as in [`Packet::load`].
    fn sum<const N: usize>(&self, offset: usize) -> Option<u32>;

    /// Inserts headers of the packet's own family between the Ethernet header and the IP header.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn insert<T: Plain>(self, headers: &T) -> Result<(), Reason>;

    /// Inserts an outer header of `family` between the Ethernet header and the IP header, which is
    /// of the family `inner`. With `shrink`, a merged packet's segments are made smaller by as much
    /// ([`Packet::segment_size`], which is more than that). There are `between` bytes of room
    /// behind it, those of a UDP header in GUE, or none.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn encapsulate<T: Plain>(
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
    /// [`Reason::NoRoom`].
    fn write<T: Plain>(&mut self, offset: usize, header: &T) -> Result<(), Reason>;

    /// Removes the outer header `T`, of the family `outer`, behind the Ethernet header, then
    /// overwrites the start of the header of the family `inner` that follows it with `head`.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn decapsulate<T: Plain, H: Plain>(
        self,
        outer: Family,
        inner: Family,
        head: &H,
    ) -> Result<(), Reason>;
}

/// The largest offset at which [`Packet::load_variable`] finds something.
pub const MAX_VARIABLE_OFFSET: usize = 2047;

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

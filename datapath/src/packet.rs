//! What the packet path needs from a packet.

use crate::{Family, Reason};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// An Ethernet frame on its way through a hook.
///
/// Three bindings exist: TC (`__sk_buff`), XDP (`xdp_md`), and a plain byte buffer ([`crate::memory`]). Headers are read by value.
/// [`Packet::encapsulate`] and [`Packet::decapsulate`] move the packet, which voids every earlier look at it: they consume the
/// packet, so that this is a type error and not a rule to remember.
pub trait Packet: Sized {
    /// Bytes of the frame, Ethernet header included.
    fn len(&self) -> usize;

    /// Whether a VLAN tag of the frame is held beside it and not in its bytes.
    fn has_vlan(&self) -> bool;

    /// Bytes of L4 payload of each segment that a merged packet will be cut into; 0 when the packet is not merged.
    fn segment_size(&self) -> usize;

    /// How many packets this one stands for, at least 1.
    fn segments(&self) -> u64;

    /// `N` bytes at `offset`, or `None` when the frame is shorter. `offset` is a constant wherever the function is called.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `N` bytes at an offset that is known at run time only, at most [`MAX_VARIABLE_OFFSET`].
    fn load_variable<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Inserts an outer header of `N` bytes of `family` between the Ethernet header and the IP header.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn encapsulate<const N: usize>(self, family: Family, outer: &[u8; N]) -> Result<(), Reason>;

    /// Removes the `N` bytes behind the Ethernet header, then overwrites the first `M` bytes of what follows it with `head`.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRoom`].
    fn decapsulate<const N: usize, const M: usize>(self, head: &[u8; M]) -> Result<(), Reason>;
}

/// The largest offset at which [`Packet::load_variable`] is used: a transport header behind an IPv4 header full of options.
pub const MAX_VARIABLE_OFFSET: usize = ETHERNET + 60;

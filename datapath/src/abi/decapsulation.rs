//! Maps of the backend's programs.

use crate::abi::pod::pod;

/// Value of the backend's `DECAPSULATED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Decapsulated {
    /// Packets; a merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of inner IP packets.
    pub bytes: u64,
}
pod!(Decapsulated, 16);

/// Value of the backend's map `LOCAL_ADDRESSES`: an address of this host to which encapsulated
/// packets may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LocalAddress {
    /// Always 1.
    pub present: u32,
}
pod!(LocalAddress, 4);

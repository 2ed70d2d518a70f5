//! Values of the maps of the backend's programs.

use crate::abi::pod::pod;

/// Value of the per-CPU array `DECAPSULATED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Decapsulated {
    /// Decapsulated packets. A merged packet counts as its segments.
    pub packets: u64,
    /// Bytes of inner IP packets.
    pub bytes: u64,
}
pod!(Decapsulated, 16);

/// Value of the map `LOCAL_ADDRESSES`: an address of this host that is accepted as an outer
/// destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LocalAddress {
    /// Always 1.
    pub present: u32,
}
pod!(LocalAddress, 4);

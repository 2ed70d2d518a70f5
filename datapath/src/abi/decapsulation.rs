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
    /// 1 if the program decapsulates; 0 if a tunnel device does, and the program checks the outer
    /// source only.
    pub decapsulates: u32,
}
pod!(LocalAddress, 4);

impl LocalAddress {
    /// The program decapsulates.
    pub const BY_PROGRAM: Self = Self { decapsulates: 1 };
    /// A tunnel device decapsulates.
    pub const BY_DEVICE: Self = Self { decapsulates: 0 };
}

/// Value of the map `BALANCERS`: a prefix of outer sources that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct AcceptedSource {
    /// Always 1.
    pub present: u32,
}
pod!(AcceptedSource, 4);

impl AcceptedSource {
    /// The value of every entry.
    pub const PRESENT: Self = Self { present: 1 };
}

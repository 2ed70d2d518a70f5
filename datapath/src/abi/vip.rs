//! VIP addresses and VIPs: from address, port and protocol to service.

use crate::abi::flow::Port;
use crate::abi::options::{AddressOptions, VipOptions};
use crate::abi::pod::pod;

/// What is known about a VIP address before the port: value of the map `VIP_ADDRESSES`, keyed by
/// [`Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VipAddress {
    /// Number of the address or prefix, the first part of a [`VipKey`]; never 0.
    pub id: u32,
    /// What becomes of packets to this address that no VIP takes: bits of [`AddressOptions`].
    pub options: AddressOptions,
    /// One of its VIPs.
    pub cached: CachedVip,
}
pod!(VipAddress, 20);

impl VipAddress {
    /// The entry of an address that holds none of its VIPs.
    pub const fn new(id: u32, options: AddressOptions) -> Self {
        Self { id, options, cached: CachedVip::NONE }
    }

    /// The key in `VIPS` of the VIP that the entry holds, if it holds one.
    pub fn cached_key(&self) -> Option<VipKey> {
        let [low, high, protocol, _] = self.cached.selector.to_ne_bytes();
        let port = Port::new(u16::from_be_bytes([low, high]));
        (self.cached != CachedVip::NONE).then(|| VipKey::new(self.id, port, protocol))
    }
}

/// A copy of the entry in `VIPS` of one VIP of an address, so that most packets need one look-up in
/// a hash map and not two.
///
/// It never differs from that entry: it is written after the entry, and cleared before the entry
/// changes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CachedVip {
    /// [`VipKey::selector`]; 0 for none.
    selector: u32,
    vip: ServiceRef,
}
pod!(CachedVip, 12);

impl CachedVip {
    /// No VIP.
    pub const NONE: Self =
        Self { selector: 0, vip: ServiceRef { service: 0, options: VipOptions::NONE } };

    /// The copy of a VIP's entry.
    pub const fn new(port: Port, protocol: u8, vip: ServiceRef) -> Self {
        Self { selector: VipKey::selector(port, protocol), vip }
    }

    /// The VIP, if it is that at a port; `protocol` is not 0.
    #[inline(always)]
    pub const fn at(&self, port: Port, protocol: u8) -> Option<ServiceRef> {
        if self.selector == VipKey::selector(port, protocol) { Some(self.vip) } else { None }
    }

    /// The VIP, whichever it is.
    pub fn vip(&self) -> Option<ServiceRef> {
        (*self != Self::NONE).then_some(self.vip)
    }
}

/// Key of the map `VIPS`: a VIP, its address by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VipKey {
    /// [`VipAddress::id`].
    pub address: u32,
    /// Its port.
    pub port: Port,
    /// [`crate::abi::flow::TCP`] or [`crate::abi::flow::UDP`]; [`crate::abi::flow::ICMP`], at
    /// [`VipKey::ANY_PORT`], for pings that are forwarded.
    pub protocol: u8,
    pad: u8,
}
pod!(VipKey, 8);

impl VipKey {
    /// The port that stands for every port.
    pub const ANY_PORT: Port = Port::new(0);

    /// The key of the service that gets the pings to the VIP address with number `address`.
    #[inline(always)]
    pub const fn pings(address: u32) -> Self {
        Self::new(address, Self::ANY_PORT, crate::abi::flow::ICMP)
    }

    /// Port and protocol as they lie in the key.
    #[inline(always)]
    const fn selector(port: Port, protocol: u8) -> u32 {
        let [low, high] = port.wire();
        u32::from_ne_bytes([low, high, protocol, 0])
    }

    /// The key of `port` and `protocol` at the VIP address with number `address`.
    #[inline(always)]
    pub const fn new(address: u32, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// Value of the maps `VIPS` and `ROUTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRef {
    /// Index of the service in `TABLES` and `SERVICE_COUNTERS`; never 0.
    pub service: u32,
    /// How its packets are treated: bits of [`VipOptions`].
    pub options: VipOptions,
}
pod!(ServiceRef, 8);

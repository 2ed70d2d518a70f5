//! VIP addresses and VIPs: from address, port and protocol to service.

use crate::abi::flow::Port;
use crate::abi::options::{AddressOptions, VipOptions};
use crate::abi::pod::pod;

/// Entry of a VIP address or prefix: value of the maps `VIP_ADDRESSES`, keyed by
/// [`Address`](crate::abi::address::Address), and `VIP_PREFIXES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VipAddress {
    /// ID of the address or prefix, the first field of a [`VipKey`]; never 0.
    pub id: u32,
    /// Handling of packets to this address that match no VIP, and of packets from it.
    pub options: AddressOptions,
    /// Cache of one of its VIPs.
    pub cached: CachedVip,
}
pod!(VipAddress, 20);

impl VipAddress {
    /// An entry without a cached VIP.
    pub const fn new(id: u32, options: AddressOptions) -> Self {
        Self { id, options, cached: CachedVip::NONE }
    }

    /// The key in `VIPS` of the cached VIP, if there is one.
    pub fn cached_key(&self) -> Option<VipKey> {
        let [low, high, protocol, _] = self.cached.selector.to_ne_bytes();
        let port = Port::new(u16::from_be_bytes([low, high]));
        (self.cached != CachedVip::NONE).then(|| VipKey::new(self.id, port, protocol))
    }
}

/// Cache of one entry in `VIPS` of a VIP address, so that most packets need one hash lookup and not
/// two.
///
/// The cache is never stale: it is written after the entry in `VIPS`, and cleared before that entry
/// is changed or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CachedVip {
    /// [`VipKey::selector`]; 0 for an empty cache.
    selector: u32,
    service: ServiceRef,
}
pod!(CachedVip, 12);

impl CachedVip {
    /// An empty cache.
    pub const NONE: Self =
        Self { selector: 0, service: ServiceRef { index: 0, options: VipOptions::NONE } };

    /// The cache of a VIP and its service.
    pub const fn new(port: Port, protocol: u8, service: ServiceRef) -> Self {
        Self { selector: VipKey::selector(port, protocol), service }
    }

    /// The service of the cached VIP, if that VIP has this port and protocol. `protocol` is not 0.
    #[inline(always)]
    pub const fn at(&self, port: Port, protocol: u8) -> Option<ServiceRef> {
        if self.selector == VipKey::selector(port, protocol) { Some(self.service) } else { None }
    }

    /// The service of the cached VIP, for any port and protocol.
    pub fn service(&self) -> Option<ServiceRef> {
        (*self != Self::NONE).then_some(self.service)
    }
}

/// A VIP: key of the map `VIPS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VipKey {
    /// [`VipAddress::id`].
    pub address: u32,
    /// Its port.
    pub port: Port,
    /// [`crate::abi::flow::TCP`] or [`crate::abi::flow::UDP`]; [`crate::abi::flow::ICMP`] with
    /// [`VipKey::ANY_PORT`] for echo requests that are forwarded.
    pub protocol: u8,
    pad: u8,
}
pod!(VipKey, 8);

impl VipKey {
    /// The port of an any-port VIP.
    pub const ANY_PORT: Port = Port::new(0);

    /// The key of the service that handles echo requests to the VIP address with ID `address`.
    #[inline(always)]
    pub const fn pings(address: u32) -> Self {
        Self::new(address, Self::ANY_PORT, crate::abi::flow::ICMP)
    }

    /// Port and protocol as one word, in the key's memory order.
    #[inline(always)]
    const fn selector(port: Port, protocol: u8) -> u32 {
        let [low, high] = port.wire();
        u32::from_ne_bytes([low, high, protocol, 0])
    }

    /// The key of `port` and `protocol` at the VIP address with ID `address`.
    #[inline(always)]
    pub const fn new(address: u32, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// A service and the options of its VIPs: value of the maps `VIPS` and `ROUTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRef {
    /// The service's index in `TABLES` and `SERVICE_COUNTERS`; never 0.
    pub index: u32,
    /// Options of the service's VIPs.
    pub options: VipOptions,
}
pod!(ServiceRef, 8);

//! Keys of longest-prefix-match tries.

use crate::abi::address::Address;
use crate::abi::pod::pod;

/// An IP prefix: key of the map `VIP_PREFIXES` and of source ACLs, which are LPM tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PrefixKey {
    /// Prefix length, host order: 0 to 128. It is 96 + `n` for an IPv4 prefix of length `n`.
    pub length: u32,
    address: [u32; 4],
}
pod!(PrefixKey, 20);

impl PrefixKey {
    /// The key to look up an address.
    #[inline(always)]
    pub const fn address(address: &Address) -> Self {
        Self { length: 128, address: address.words() }
    }

    /// The address's words, wire order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.address
    }

    /// A key from a prefix length in the form of [`PrefixKey::length`], and the address's words,
    /// wire order.
    pub const fn new(length: u32, address: [u32; 4]) -> Self {
        Self { length, address }
    }

    /// The key of a prefix. `length` is the prefix length in the address's family.
    pub const fn prefix(address: Address, length: u32) -> Self {
        let length = if address.is_mapped() { length + 96 } else { length };
        Self { length, address: address.words() }
    }

    /// Whether this prefix contains the prefix `other`.
    pub fn holds(&self, other: &Self) -> bool {
        let bits = |key: &Self| {
            key.address.iter().fold(0, |bits, word| (bits << 32) | u128::from(u32::from_be(*word)))
        };
        let differ = bits(self) ^ bits(other);
        other.length >= self.length && differ.leading_zeros() >= self.length
    }

    /// The first address of the prefix, and the prefix length in the address's family.
    pub const fn to_prefix(self) -> (Address, u32) {
        let address = Address::v6(self.address);
        (address, if address.is_mapped() { self.length - 96 } else { self.length })
    }
}

/// A service and a client prefix: key of the map `ROUTES`, an LPM trie of
/// [`ServiceRef`](crate::abi::vip::ServiceRef).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RouteKey {
    /// Prefix length, host order: 32 for the service, plus [`PrefixKey::length`].
    pub length: u32,
    /// The VIP's service.
    pub service: u32,
    address: [u32; 4],
}
pod!(RouteKey, 24);

impl RouteKey {
    /// Bits of the service in the key.
    const SERVICE: u32 = u32::BITS;

    /// The key of a service and a client prefix.
    #[inline(always)]
    pub const fn new(service: u32, clients: &PrefixKey) -> Self {
        Self {
            length: clients.length.wrapping_add(Self::SERVICE),
            service,
            address: clients.address,
        }
    }

    /// The client prefix.
    pub const fn clients(&self) -> PrefixKey {
        PrefixKey { length: self.length.saturating_sub(Self::SERVICE), address: self.address }
    }

    /// The key's data: the service and the address.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.address;
        [self.service, a, b, c, d]
    }
}

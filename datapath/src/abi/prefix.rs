//! Keys of longest-prefix-match tries.

use crate::abi::address::Address;
use crate::abi::pod::pod;

/// Key of the map `VIP_PREFIXES`, a longest-prefix-match trie of [`VipAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PrefixKey {
    /// Bits that count, host order: 0 to 128. An IPv4 prefix of `n` bits has 96 + `n`.
    pub length: u32,
    address: [u32; 4],
}
pod!(PrefixKey, 20);

impl PrefixKey {
    /// The key that looks an address up.
    #[inline(always)]
    pub const fn address(address: &Address) -> Self {
        Self { length: 128, address: address.words() }
    }

    /// The address's words, wire order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.address
    }

    /// A key from its parts: bits that count, and the address's words, wire order.
    pub const fn new(length: u32, address: [u32; 4]) -> Self {
        Self { length, address }
    }

    /// The key of a prefix: `length` bits as they count in the address's own family.
    pub const fn prefix(address: Address, length: u32) -> Self {
        let length = if address.is_mapped() { length + 96 } else { length };
        Self { length, address: address.words() }
    }

    /// Whether all addresses of `other` are among those of this prefix.
    pub fn holds(&self, other: &Self) -> bool {
        let bits = |key: &Self| {
            key.address.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
        };
        let differ = bits(self) ^ bits(other);
        other.length >= self.length && differ.leading_zeros() >= self.length
    }

    /// The first address of the prefix, and its bits as they count in the address's own family.
    pub const fn to_prefix(self) -> (Address, u32) {
        let address = Address::v6(self.address);
        (address, if address.is_mapped() { self.length - 96 } else { self.length })
    }
}

/// Key of the map `ROUTES`, a longest-prefix-match trie of [`ServiceRef`]: clients of a service that are
/// another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RouteKey {
    /// Bits that count, host order: those of the service, all 32, and of the prefix as
    /// [`PrefixKey::length`] has them.
    pub length: u32,
    /// The service whose VIP the client aims at.
    pub service: u32,
    address: [u32; 4],
}
pod!(RouteKey, 24);

impl RouteKey {
    /// Bits of the service.
    const SERVICE: u32 = u32::BITS;

    /// The key of the clients of a prefix.
    #[inline(always)]
    pub const fn new(service: u32, clients: &PrefixKey) -> Self {
        Self {
            length: clients.length.wrapping_add(Self::SERVICE),
            service,
            address: clients.address,
        }
    }

    /// The prefix.
    pub const fn clients(&self) -> PrefixKey {
        PrefixKey { length: self.length.saturating_sub(Self::SERVICE), address: self.address }
    }

    /// What follows the length, as the trie compares it.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.address;
        [self.service, a, b, c, d]
    }
}

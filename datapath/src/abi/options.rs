//! Option bits: of a VIP address, of a VIP, and of the whole program.

use crate::abi::pod::pod;

/// Declares a set of option bits, stored in maps as a 32-bit word.
macro_rules! bits {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $bit_doc:literal])+ $bit:ident = $value:expr;)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(u32);
        pod!($name, 4);

        impl $name {
            /// No bit.
            pub const NONE: Self = Self(0);
            /// Every bit.
            pub const ALL: Self = Self($($value)|+);
            $($(#[doc = $bit_doc])+ pub const $bit: Self = Self($value);)+

            /// Whether all bits of `other` are set.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                (self.0 & other.0) == other.0
            }

            /// The union of both sets.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Adds the bits of `other` if `wanted`.
            #[must_use]
            pub const fn with_if(self, wanted: bool, other: Self) -> Self {
                if wanted { self.with(other) } else { self }
            }

            /// The set as a word, host order.
            #[inline(always)]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// The set of a word, host order. Undefined bits are kept.
            #[inline(always)]
            pub const fn from_bits(word: u32) -> Self {
                Self(word)
            }
        }
    };
}

bits! {
    /// Handling of packets to a VIP address that match no VIP, and of packets from it.
    AddressOptions {
        /// Drop TCP and UDP packets to a port without a VIP; without this bit they pass to the
        /// host.
        DROP_NO_SERVICE = 1;
        /// Echo requests pass to the host. With neither this bit nor the next, the balancer
        /// replies.
        PING_HOST = 1 << 1;
        /// Echo requests are forwarded to a backend of the service at
        /// [`VipKey::pings`](crate::abi::vip::VipKey::pings).
        PING_FORWARD = 1 << 2;
        /// Packets from this address to VIPs are accepted. Without this bit, they are dropped.
        ALLOW_AS_SOURCE = 1 << 3;
    }
}

bits! {
    /// Options of a VIP. All VIPs of a service have the same options.
    VipOptions {
        /// Hash the 5-tuple without the client's port: all connections of a client to a VIP reach
        /// one backend.
        HASH_CLIENT = 1;
        /// Hash the client's address alone: a client has the same backend at all VIPs of the
        /// service.
        HASH_SOURCE = 1 << 1;
        /// Encapsulate in GUE (variant 1) instead of IP-in-IP.
        GUE = 1 << 4;
        /// The service's backends accept UDP over IPv6 with a zero checksum (RFC 6935).
        ZERO_UDP_CHECKSUM = 1 << 5;
        /// The service has a source ACL in `ACLS`.
        ACL = 1 << 16;
        /// The service has rates in `RATES`.
        RATE_LIMITED = 1 << 17;
        /// Drop packets that exceed the MTU with the outer header, without an ICMP error.
        DROP_TOO_BIG = 1 << 24;
        /// Let the kernel cut merged TCP segments smaller if they exceed the MTU with the outer
        /// header.
        RESEGMENT = 1 << 25;
        /// Drop fragments of the service's packets.
        DROP_FRAGMENTS = 1 << 20;
        /// The service has routes in `ROUTES`: clients in some prefixes are handled by other
        /// services.
        ROUTED = 1 << 18;
        /// The service, or a target of its routes, has server IDs in `QUIC_SERVERS`: connection IDs
        /// of its UDP packets can select the backend.
        QUIC = 1 << 19;
    }
}

bits! {
    /// Features in use, set when the program is loaded. They are constants in read-only data, so
    /// the verifier removes the code of all unused features as dead code.
    Features {
        /// VIP prefixes: a lookup in `VIP_PREFIXES` for addresses that are not in `VIP_ADDRESSES`.
        PREFIXES = 1;
        /// Any-port VIPs: a second lookup for ports without a VIP.
        ANY_PORT = 1 << 1;
        /// Services that hash a part of the 5-tuple.
        HASH_FIELDS = 1 << 2;
        /// Outer source addresses that depend on the flow's hash.
        SOURCE_SPREADING = 1 << 3;
        /// Captures: a lookup in `CAPTURE_CONTROL` for each packet.
        CAPTURE = 1 << 4;
        /// Services that use GUE.
        GUE = 1 << 8;
        /// The global source ACL.
        GLOBAL_ACL = 1 << 16;
        /// Services with source ACLs.
        SERVICE_ACLS = 1 << 17;
        /// Services with rate limits.
        RATES = 1 << 18;
        /// Services with [`VipOptions::DROP_TOO_BIG`].
        DROP_TOO_BIG = 1 << 24;
        /// Services with [`VipOptions::RESEGMENT`].
        RESEGMENT = 1 << 25;
        /// Services that drop fragments, or limit their rate.
        FRAGMENT_LIMITS = 1 << 21;
        /// Services with routes.
        ROUTES = 1 << 19;
        /// Services with QUIC server IDs.
        QUIC = 1 << 20;
    }
}

impl Features {
    /// Maximum number of features.
    pub const BITS: usize = u32::BITS as usize;

    /// One byte per bit, 1 or 0: the layout of the program's constant.
    pub const fn bytes(self) -> [u8; Self::BITS] {
        let mut bytes = [0; Self::BITS];
        let mut bit = 0;
        while bit < Self::BITS {
            bytes[bit] = ((self.0 >> bit) & 1) as u8;
            bit += 1;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_has_its_own_byte() {
        let bytes = Features::ANY_PORT.with(Features::QUIC).bytes();
        let set: Vec<_> = (0..).zip(bytes).filter(|(_, byte)| *byte != 0).collect();
        assert_eq!(set, [(1, 1), (20, 1)]);
        assert_eq!(
            Features::ALL.bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>(),
            Features::ALL.bits().count_ones()
        );
    }
}

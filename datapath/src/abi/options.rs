//! Sets of bits that say how packets are treated: for an address, for a VIP, and for the whole
//! program.

use crate::abi::pod::pod;

/// Declares a set of bits that cross_family the kernel boundary as a 32-bit word.
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
                self.0 & other.0 == other.0
            }

            /// The bits of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// `other`'s bits when `wanted`, else none: for building a set.
            #[must_use]
            pub const fn with_if(self, wanted: bool, other: Self) -> Self {
                if wanted { self.with(other) } else { self }
            }

            /// The set as a word, host order.
            #[inline(always)]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// The set that a word says; bits without a meaning are kept.
            #[inline(always)]
            pub const fn from_bits(word: u32) -> Self {
                Self(word)
            }
        }
    };
}

bits! {
    /// What becomes of packets to a VIP address that no VIP takes.
    AddressOptions {
        /// TCP and UDP to a port that no VIP has is dropped; otherwise it goes on to the host.
        DROP_NO_SERVICE = 1;
        /// Pings are left to the host. Without this bit and the next the balancer answers them.
        PING_HOST = 1 << 1;
        /// Pings go to a backend of the service that
        /// [`VipKey::pings`](crate::abi::vip::VipKey::pings) names.
        PING_FORWARD = 1 << 2;
    }
}

bits! {
    /// How the packets of a VIP are treated. All VIPs of a service have the same.
    VipOptions {
        /// Hash everything but the client's port: all its connections to a VIP go to one backend.
        HASH_CLIENT = 1;
        /// Hash the client's address alone: it has the same backend at all VIPs of the service.
        HASH_SOURCE = 1 << 1;
        /// Packets to backends are encapsulated in UDP ([`crate::balance::gue`]).
        GUE = 1 << 4;
        /// The service's backends take UDP over IPv6 without a checksum.
        NO_CHECKSUM = 1 << 5;
        /// The service has a list of sources in `ACLS`.
        ACL = 1 << 16;
        /// The service has rates in `RATES`.
        RATE_LIMITED = 1 << 17;
        /// What does not fit with its outer header is dropped, and nobody is told.
        DROP_TOO_BIG = 1 << 24;
        /// Merged TCP segments that do not fit with an outer header are cut smaller.
        RESEGMENT = 1 << 25;
        /// The service has routes in `ROUTES`: clients of some prefixes are other services'.
        ROUTED = 1 << 18;
        /// The service has server IDs in `QUIC_SERVERS`, or one to which its routes lead has: the
        /// connection IDs of its UDP packets may name their backends.
        QUIC = 1 << 19;
    }
}

bits! {
    /// Which features are in use: fixed when the program is loaded, as a constant that the kernel's
    /// verifier knows, so that it leaves out the code of all others.
    Features {
        /// VIP prefixes: a look-up in `VIP_PREFIXES` for addresses that are not in `VIP_ADDRESSES`.
        PREFIXES = 1;
        /// Any-port VIPs: a second look-up for ports that no VIP has.
        ANY_PORT = 1 << 1;
        /// Services that hash less than the 5-tuple.
        HASHING = 1 << 2;
        /// Sources of outer headers that differ from flow to flow.
        SOURCE_SPREADING = 1 << 3;
        /// Captures: a look at `CAPTURE_CONTROL` for each packet.
        CAPTURE = 1 << 4;
        /// Services whose packets are encapsulated in UDP.
        GUE = 1 << 8;
        /// A list of sources that counts for every VIP.
        GLOBAL_ACL = 1 << 16;
        /// Services with lists of sources of their own.
        SERVICE_ACLS = 1 << 17;
        /// Services with rates of packets or new flows.
        RATES = 1 << 18;
        /// Services that tell nobody what fits.
        DROP_TOO_BIG = 1 << 24;
        /// Services whose merged segments are cut smaller.
        RESEGMENT = 1 << 25;
        /// Services with routes.
        ROUTES = 1 << 19;
        /// Services with QUIC server IDs.
        QUIC = 1 << 20;
    }
}

impl Features {
    /// How many features there can be.
    pub const BITS: usize = u32::BITS as usize;

    /// For each bit whether it is set, 1 or 0: what the program is loaded with.
    pub const fn bytes(self) -> [u8; Self::BITS] {
        let mut bytes = [0; Self::BITS];
        let mut bit = 0;
        while bit < Self::BITS {
            bytes[bit] = (self.0 >> bit & 1) as u8;
            bit += 1;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_has_a_byte_of_its_own() {
        let bytes = Features::ANY_PORT.with(Features::QUIC).bytes();
        let set: Vec<_> = (0..).zip(bytes).filter(|(_, byte)| *byte != 0).collect();
        assert_eq!(set, [(1, 1), (20, 1)]);
        assert_eq!(
            Features::ALL.bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>(),
            Features::ALL.bits().count_ones()
        );
    }
}

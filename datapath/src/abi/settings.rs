//! Load-time constants of the balancer's program.

use crate::abi::address::{Address, Family};
use crate::abi::flow::Port;
use crate::abi::options::Features;
use crate::abi::rate::Rate;
use crate::abi::vip_sources::VipSources;

/// Constants of the balancer's program, set when it is loaded. Each field is a constant in the
/// program. The daemon replaces the program if a field changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The features in use.
    pub features: Features,
    /// Key of the flow hash; the same on every balancer of a fleet.
    pub hash_key: [u64; 2],
    /// Source address of IPv4 outer headers, or [`Address::NONE`].
    pub source_v4: Address,
    /// Source address of IPv6 outer headers, or [`Address::NONE`].
    pub source_v6: Address,
    /// Bits of the last word of `source_v4` that are filled from the flow's hash, as a mask in wire
    /// order. They are zero in the address.
    pub source_bits_v4: u32,
    /// Bits of the last word of `source_v6`, as above.
    pub source_bits_v6: u32,
    /// Destination port of GUE.
    pub gue_port: Port,
    /// Blocks of the VIP addresses from which packets to VIPs are dropped.
    pub vip_sources: VipSources,
    /// Rate limit of the ICMP errors that each CPU sends.
    pub errors: Rate,
}

impl Settings {
    /// No feature, no key, no address.
    pub const NONE: Self = Self {
        features: Features::NONE,
        hash_key: [0; 2],
        source_v4: Address::NONE,
        source_v6: Address::NONE,
        source_bits_v4: 0,
        source_bits_v6: 0,
        gue_port: Port::new(0),
        vip_sources: VipSources::NONE,
        errors: Rate::NONE,
    };

    /// The source address of outer headers of a family, and its bits that are filled from the
    /// flow's hash.
    pub const fn outer_source(&self, family: Family) -> (Address, u32) {
        match family {
            Family::V4 => (self.source_v4, self.source_bits_v4),
            Family::V6 => (self.source_v6, self.source_bits_v6),
        }
    }
}

//! The interface of the backend's path to its maps.

use crate::abi::{Address, Family, LocalAddress, Port, PrefixKey, Reason};

/// The maps of the backend's programs.
pub trait BackendMaps {
    /// The entry of an address of this host.
    fn local_address(&self, address: &Address) -> Option<LocalAddress>;
    /// Whether the outer headers of an address are accepted.
    fn is_balancer(&self, key: &PrefixKey) -> bool;
    /// Whether the kernel can decapsulate across address families; a constant.
    fn cross_family(&self) -> bool;
    /// Destination port of GUE, a constant; port 0 if GUE is not decapsulated.
    fn gue_port(&self) -> Port;
    /// Whether the address is a VIP address of this backend, or in one of its VIP prefixes.
    fn is_vip(&self, key: &PrefixKey) -> bool;
    /// The largest allowed MSS of a VIP of a family; 0 for no limit.
    fn max_segment_size(&self, family: Family) -> u32;
    /// Counts a segment whose MSS was lowered.
    fn count_clamped(&self);
    /// Counts a decapsulated packet and the bytes of the inner IP packet.
    fn count_decapsulated(&self, packets: u64, bytes: u64);
    /// Counts a packet that was not decapsulated.
    fn count_reason(&self, reason: Reason);
}

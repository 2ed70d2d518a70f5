//! The backend's maps in plain memory.

use super::maps::MemoryBackendMaps;
use crate::abi::{Address, Family, LocalAddress, Port, PrefixKey, Reason};
use crate::backend::BackendMaps;

/// The backend's maps in plain memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    /// [`BackendMaps::cross_family`].
    pub cross_family: bool,
    /// [`BackendMaps::gue_port`].
    pub gue_port: Port,
    /// The maps.
    pub maps: MemoryBackendMaps,
}

impl BackendMaps for MemoryBackend {
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.maps.local_addresses.borrow().get(address).copied()
    }

    fn is_balancer(&self, key: &PrefixKey) -> bool {
        self.maps.balancers.borrow().keys().any(|prefix| prefix.holds(key))
    }

    fn cross_family(&self) -> bool {
        self.cross_family
    }

    fn gue_port(&self) -> Port {
        self.gue_port
    }

    fn is_vip(&self, key: &PrefixKey) -> bool {
        self.maps.vip_prefixes.borrow().keys().any(|prefix| prefix.holds(key))
    }

    fn max_segment_size(&self, family: Family) -> u32 {
        self.maps.max_segment_sizes.borrow().get(&family.index()).copied().unwrap_or(0)
    }

    fn count_clamped(&self) {
        *self.maps.mss_clamped.borrow_mut().entry(0).or_default() += 1;
    }

    fn count_decapsulated(&self, packets: u64, bytes: u64) {
        let mut counters = self.maps.decapsulated.borrow_mut();
        let counters = counters.entry(0).or_default();
        counters.packets += packets;
        counters.bytes += bytes;
    }

    fn count_reason(&self, reason: Reason) {
        *self.maps.reasons.borrow_mut().entry(reason.index()).or_default() += 1;
    }
}

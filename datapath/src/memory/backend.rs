//! The backend's maps in plain memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};

use crate::abi::{Address, Decapsulated, Family, Port, PrefixKey, Reason};
use crate::backend::BackendTables;

/// The backend's maps in plain memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    /// The map `LOCAL_ADDRESSES`.
    pub local_addresses: HashSet<Address>,
    /// [`BackendTables::cross_family`].
    pub cross_family: bool,
    /// [`BackendTables::gue_port`].
    pub gue_port: Port,
    /// The map `VIP_PREFIXES`.
    pub vip_prefixes: HashSet<PrefixKey>,
    /// The map `MAX_SEGMENT_SIZES`, by [`Family::index`].
    pub max_segment_sizes: [u32; 2],
    /// The map `MSS_CLAMPED`.
    pub mss_clamped: Cell<u64>,
    /// The map `DECAPSULATED`.
    pub decapsulated: Cell<Decapsulated>,
    /// The map `REASONS`.
    pub reasons: RefCell<BTreeMap<Reason, u64>>,
}

impl BackendTables for MemoryBackend {
    fn is_local(&self, address: &Address) -> bool {
        self.local_addresses.contains(address)
    }

    fn cross_family(&self) -> bool {
        self.cross_family
    }

    fn gue_port(&self) -> Port {
        self.gue_port
    }

    fn is_vip(&self, key: &PrefixKey) -> bool {
        self.vip_prefixes.iter().any(|prefix| prefix.holds(key))
    }

    fn max_segment_size(&self, family: Family) -> u32 {
        self.max_segment_sizes[family.index() as usize]
    }

    fn count_clamped(&self) {
        self.mss_clamped.set(self.mss_clamped.get() + 1);
    }

    fn count_decapsulated(&self, packets: u64, bytes: u64) {
        let before = self.decapsulated.get();
        self.decapsulated
            .set(Decapsulated { packets: before.packets + packets, bytes: before.bytes + bytes });
    }

    fn count_refused(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
}

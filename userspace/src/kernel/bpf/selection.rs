//! The maps that decide which backend takes a flow, read one entry at a time.

use sluice_datapath::Address;
use sluice_datapath::abi::maps::balancer::{
    BACKENDS, CONNECTIONS, ROUTES, TABLES, VIP_ADDRESSES, VIP_PREFIXES, VIPS,
};
use sluice_datapath::abi::{
    Backend, Connection, Features, Flow, PrefixKey, RouteKey, ServiceRef, Settings, VipAddress,
    VipKey,
};
use sluice_datapath::balance::{LookupTable, SelectionMaps};

use super::BalancerMaps;
use super::raw::{RawMap, value};

/// The maps of an instance, for
/// [`resolve_flow`](sluice_datapath::balance::resolve_flow). An entry that cannot be read counts as
/// absent.
pub struct LiveSelection<'a> {
    /// The maps.
    pub maps: &'a BalancerMaps,
    /// Constants of the loaded program.
    pub settings: &'a Settings,
}

/// A lookup table in use, which is never written again.
pub struct LiveTable(RawMap);

impl LookupTable for LiveTable {
    fn pair(&self, element: u32) -> Option<u64> {
        Some(value(&self.0.lookup(&element.to_ne_bytes()).ok()??))
    }
}

impl SelectionMaps for LiveSelection<'_> {
    type LookupTable<'a>
        = LiveTable
    where
        Self: 'a;

    fn uses(&self, feature: Features) -> bool {
        self.settings.features.has(feature)
    }

    fn hash_key(&self) -> [u64; 2] {
        self.settings.hash_key
    }

    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        self.maps.entry(VIP_ADDRESSES, address).ok()?
    }

    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        self.maps.entry(VIP_PREFIXES, key).ok()?
    }

    fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        self.maps.entry(VIPS, key).ok()?
    }

    fn route(&self, key: &RouteKey) -> Option<ServiceRef> {
        self.maps.entry(ROUTES, key).ok()?
    }

    fn lookup_table(&self, service: u32) -> Option<LiveTable> {
        let outer = self.maps.outer(TABLES);
        let id = value(&outer.lookup(&service.to_ne_bytes()).ok()??);
        RawMap::by_id(id, outer.name()).ok().map(LiveTable)
    }

    fn backend(&self, index: u16) -> Option<Backend> {
        self.maps.element(BACKENDS, index.into()).ok()
    }

    fn connection(&self, flow: &Flow) -> Option<Connection> {
        self.maps.entry(CONNECTIONS, flow).ok()?
    }

    /// Only packets create entries.
    fn insert_connection(&self, _: &Flow, _: &Connection) {}
}

//! The balancer's object: the programs `sluice_tc` (TC ingress) and `sluice_xdp`, and their maps.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use sluice_datapath::entries::{
    Backend, BackendCounters, Connection, NextHop, ServiceCounters, Settings, Vip, VipAddress, VipKey,
};
use sluice_datapath::records::{BackendRecord, InstanceRecord, ServiceRecord};
use sluice_datapath::tables::Forwarded;
use sluice_datapath::{Address, BalancerTables, Flow, LookupTable, Reason, balance};
use sluice_probes::tc::{self, TcPacket};
use sluice_probes::xdp::{self, XdpPacket};

// Every capacity but that of REASONS is set by the loader; the numbers here are the smallest that the kernel accepts.

/// Inner maps of any length (`INNER_MAP`) that the loader fills through memory (`MMAPABLE`).
type Table = Array<u64, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

/// Settings, fixed when the program is loaded.
#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> =
    Global::new(Settings { hash_key: [0; 2], underlay_v4: Address::NONE, underlay_v6: Address::NONE });

/// VIP addresses: one look-up sends everybody else's packets on their way.
#[btf_map]
static VIP_ADDRESSES: HashMap<Address, VipAddress, 1> = HashMap::new();
/// VIPs: address, port and protocol to service.
#[btf_map]
static VIPS: HashMap<VipKey, Vip, 1> = HashMap::new();
/// Lookup tables, by service.
#[btf_map]
static TABLES: ArrayOfMaps<Table, 1> = ArrayOfMaps::new();
/// Backends, by index.
#[btf_map]
static BACKENDS: Array<Backend, 1> = Array::new();
/// Next hops, two for each backend.
#[btf_map]
static NEXT_HOPS: Array<NextHop, 1> = Array::new();
/// The connection table, for services that are tracked.
#[btf_map]
static CONNECTIONS: LruHashMap<Flow, Connection, 1> = LruHashMap::new();
/// Counters, by service.
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, 1> = PerCpuArray::new();
/// Counters, by backend.
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters, 1> = PerCpuArray::new();
/// Counters, by reason.
#[btf_map]
static REASONS: PerCpuArray<u64, { Reason::COUNTERS as usize }> = PerCpuArray::new();

// Maps that no packet reads: what a daemon writes down for the next one.

/// Names and states of backends, by index.
#[btf_map]
static BACKEND_RECORDS: Array<BackendRecord, 1> = Array::new();
/// Names and states of services, by index.
#[btf_map]
static SERVICE_RECORDS: Array<ServiceRecord, 1> = Array::new();
/// What was applied last.
#[btf_map]
static INSTANCE: Array<InstanceRecord, 1> = Array::new();

/// Balances at TC ingress.
#[classifier]
pub fn sluice_tc(context: TcContext) -> i32 {
    match balance(TcPacket::new(&context), &Maps, &SETTINGS.load()) {
        Ok(forward) => tc::redirect(&forward),
        Err(reason) => tc::refuse(reason),
    }
}

/// Balances at XDP.
#[xdp]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    match balance(XdpPacket::new(&context), &Maps, &SETTINGS.load()) {
        Ok(forward) => xdp::redirect(&context, &forward),
        Err(reason) => xdp::refuse(reason),
    }
}

/// The maps above, as the packet path sees them. Values are copied out at once: a hash map's entry may be given to another key.
struct Maps;

/// A lookup table of [`TABLES`].
struct Words<'a>(&'a Table);

impl LookupTable for Words<'_> {
    #[inline(always)]
    fn pair(&self, element: u32) -> Option<u64> {
        self.0.get(element).copied()
    }
}

impl BalancerTables for Maps {
    type Table<'a> = Words<'a>;

    #[inline(always)]
    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIP_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<Vip> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIPS.get(key) }.copied()
    }

    #[inline(always)]
    fn table(&self, service: u32) -> Option<Words<'_>> {
        TABLES.get(service).map(Words)
    }

    #[inline(always)]
    fn backend(&self, index: u16) -> Option<Backend> {
        BACKENDS.get(u32::from(index)).copied()
    }

    #[inline(always)]
    fn next_hop(&self, index: u32) -> Option<NextHop> {
        NEXT_HOPS.get(index).copied()
    }

    #[inline(always)]
    fn connection(&self, flow: &Flow) -> Option<Connection> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { CONNECTIONS.get(flow) }.copied()
    }

    #[inline(always)]
    fn remember(&self, flow: &Flow, connection: &Connection) {
        let _ = CONNECTIONS.insert(flow, connection, 0);
    }

    #[inline(always)]
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &Forwarded) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
            // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on it.
            let counters = unsafe { &mut *counters };
            counters.packets = counters.packets.wrapping_add(forwarded.packets);
            counters.bytes = counters.bytes.wrapping_add(forwarded.bytes);
            counters.new_flows = counters.new_flows.wrapping_add(forwarded.new_flows);
        }
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(u32::from(backend)) {
            // SAFETY: as above.
            let counters = unsafe { &mut *counters };
            counters.packets = counters.packets.wrapping_add(forwarded.packets);
            counters.bytes = counters.bytes.wrapping_add(forwarded.bytes);
        }
    }

    #[inline(always)]
    fn count_refused(&self, reason: Reason) {
        if let Some(counter) = REASONS.get_ptr_mut(reason.index()) {
            // SAFETY: as above.
            let counter = unsafe { &mut *counter };
            *counter = counter.wrapping_add(1);
        }
    }
}

sluice_probes::license!();

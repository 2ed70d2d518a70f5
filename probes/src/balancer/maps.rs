//! The balancer's maps, and how the packet path sees them.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use sluice_datapath::entries::{
    Backend, BackendCounters, Connection, Fragment, FragmentKey, Listing, Neighbour, NextHop,
    PrefixKey, RouteKey, ServiceCounters, Vip, VipAddress, VipKey,
};
use sluice_datapath::flow::Port;
use sluice_datapath::observe::{Event, Observer, switch};
use sluice_datapath::options::Features;
use sluice_datapath::quic::{IdLengths, ServerKey};
use sluice_datapath::rates::{Asks, Buckets, Limit, Rate, SourceKey, Taken};
use sluice_datapath::records::{
    BackendRecord, InstanceRecord, PATH_ERRORS as OUTCOMES, PathMtuRecord, ServiceRecord,
};
use sluice_datapath::tables::Forwarded;
use sluice_datapath::{Address, BalancerTables, EventTables, Family, Flow, LookupTable, Reason};

// Every capacity but those of REASONS and of the maps of captures is set by the loader; the numbers
// here are the smallest that the kernel accepts.

/// Inner maps of any length (`INNER_MAP`) that the loader fills through memory (`MMAPABLE`).
type Table = Array<u64, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

/// Inner maps of as many prefixes as each needs. Their value is a [`Listing`] as a plain number:
/// kernels before 6.2 take no inner map without type information when the prototype's value is a
/// structure.
type List = LpmTrie<[u32; 4], u32, 1>;

// Settings (`entries::Settings`), fixed when the program is loaded. Each is a constant of its own:
// the verifier follows it into the code, which leaves out what is switched off, and nothing is
// copied to the small stack.

/// The features in use: for each bit of [`Features`] whether it is set. A byte is looked at in two
/// instructions, a bit of a word in three, and they stay also where the verifier leaves out what
/// the feature would do.
#[unsafe(no_mangle)]
static FEATURES: [Global<u8>; Features::BITS] = [const { Global::new(0) }; Features::BITS];
/// Key of the flow hash.
#[unsafe(no_mangle)]
static HASH_KEY: Global<[u64; 2]> = Global::new([0; 2]);
/// Sources of outer headers.
#[unsafe(no_mangle)]
static SOURCE_V4: Global<Address> = Global::new(Address::NONE);
#[unsafe(no_mangle)]
static SOURCE_V6: Global<Address> = Global::new(Address::NONE);
/// Bits of the sources that a flow's hash fills in.
#[unsafe(no_mangle)]
static SOURCE_BITS_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_BITS_V6: Global<u32> = Global::new(0);

/// Destination port of GUE.
#[unsafe(no_mangle)]
static GUE_PORT: Global<Port> = Global::new(Port::new(0));

/// How often each CPU may send an ICMP error.
#[unsafe(no_mangle)]
static ERROR_RATE: Global<Rate> = Global::new(Rate::NONE);

/// VIP addresses: one look-up sends everybody else's packets on their way.
#[btf_map]
static VIP_ADDRESSES: HashMap<Address, VipAddress, 1> = HashMap::new();
/// VIP prefixes.
#[btf_map]
static VIP_PREFIXES: LpmTrie<[u32; 4], VipAddress, 1> = LpmTrie::new();
/// VIPs: address, port and protocol to service.
#[btf_map]
static VIPS: HashMap<VipKey, Vip, 1> = HashMap::new();
/// Routes: service and client to service.
#[btf_map]
static ROUTES: LpmTrie<[u32; 5], Vip, 1> = LpmTrie::new();
/// How long QUIC server IDs are, by service.
#[btf_map]
static QUIC_LENGTHS: Array<IdLengths, 1> = Array::new();
/// QUIC server IDs: service and ID to backend. Not preallocated: there are as many as servers have
/// IDs, and for most services none.
#[btf_map]
static QUIC_SERVERS: HashMap<ServerKey, Connection, 1, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Lists of sources: at index 0 the one for all VIPs, else by service.
#[btf_map]
static LISTS: ArrayOfMaps<List, 1> = ArrayOfMaps::new();
/// Lookup tables, by service.
#[btf_map]
static TABLES: ArrayOfMaps<Table, 1> = ArrayOfMaps::new();
/// Backends, by index.
#[btf_map]
static BACKENDS: Array<Backend, 1> = Array::new();
/// Next hops, two for each backend.
#[btf_map]
static NEXT_HOPS: Array<NextHop, 1> = Array::new();
/// To whom packets are handed on the way, two for each next hop.
#[btf_map]
pub static NEIGHBOURS: Array<Neighbour, 1> = Array::new();
/// The connection table, for services that are tracked.
#[btf_map]
static CONNECTIONS: LruHashMap<Flow, Connection, 1> = LruHashMap::new();
/// Rates, four for each service.
#[btf_map]
static RATES: Array<Rate, 1> = Array::new();
/// Token buckets, by service.
#[btf_map]
static BUCKETS: Array<Buckets, 1> = Array::new();
/// Token buckets, by source and service.
#[btf_map]
static SOURCES: LruHashMap<SourceKey, Buckets, 1> = LruHashMap::new();
/// Where first fragments went.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 1> = LruHashMap::new();
/// Counters, by service.
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, 1> = PerCpuArray::new();
/// Counters, by backend.
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters, 1> = PerCpuArray::new();
/// Counters, by reason.
#[btf_map]
static REASONS: PerCpuArray<u64, { Reason::COUNTERS as usize }> = PerCpuArray::new();

// Maps of captures. See `sluice_datapath::observe`.

/// Whether a capture is on, and what it wants.
#[btf_map]
static EVENT_SWITCH: Array<u64, { switch::WORDS as usize }> = Array::new();
/// Each CPU's share of a capture.
#[btf_map]
static OBSERVERS: PerCpuArray<Observer, 1> = PerCpuArray::new();
/// What captures read; some three thousand events.
#[btf_map]
static EVENTS: RingBuf<Event, { 512 << 10 }> = RingBuf::new();

/// Each CPU's bucket of ICMP errors. Not pinned: it starts full with each program.
#[btf_map]
static ERRORS: PerCpuArray<u64, 1> = PerCpuArray::new();

// Maps that no packet reads: what a daemon writes down for the next one.

/// Names and states of backends, by index.
#[btf_map]
static BACKEND_RECORDS: Array<BackendRecord, 1> = Array::new();
/// Names and states of services, by index.
#[btf_map]
static SERVICE_RECORDS: Array<ServiceRecord, 1> = Array::new();
/// MTUs that routers on the way to backends have told, two for each backend.
#[btf_map]
static PATH_MTUS: Array<PathMtuRecord, 1> = Array::new();
/// Errors about encapsulated packets that the daemon heard, by what became of them.
#[btf_map]
static PATH_ERRORS: Array<u64, { OUTCOMES as usize }> = Array::new();
/// What was applied last.
#[btf_map]
static INSTANCE: Array<InstanceRecord, 1> = Array::new();

/// A service's rate.
#[inline(always)]
fn rate(service: u32, limit: Limit) -> Rate {
    RATES.get(Rate::index(service, limit)).copied().unwrap_or(Rate::NONE)
}

/// Takes tokens from a bucket in a map; false when there are none left.
#[inline(always)]
fn take(rate: Rate, bucket: *mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    // SAFETY: the pointer is to an aligned word of a map's value, which the kernel keeps for as
    // long as the program runs. Other CPUs write it, too, in the same two ways.
    match rate.take(unsafe { bucket.read_volatile() }, tokens, now) {
        // SAFETY: as above.
        Some(Taken::Full(is)) => unsafe { bucket.write_volatile(is) },
        // SAFETY: as above; the instruction touches nothing else.
        Some(Taken::Partly(more)) => unsafe {
            core::arch::asm!("lock *(u64 *)({bucket} + 0) += {more}", bucket = in(reg) bucket, more = in(reg) more);
        },
        None => return false,
    }
    true
}

/// The buckets of a source that was not seen before. Here, and not on the stack, which has no room
/// to spare.
static FULL: Buckets = Buckets { packets: 0, new_flows: 0 };

/// Takes what a packet asks for from buckets of packets and of new flows.
#[inline(always)]
fn take_both(buckets: *mut Buckets, packets: Rate, new_flows: Rate, asks: &Asks) -> bool {
    // SAFETY: the pointers are to members of the value that `buckets` points to; nothing is read or
    // written.
    let (of_packets, of_new_flows) =
        unsafe { (&raw mut (*buckets).packets, &raw mut (*buckets).new_flows) };
    take(packets, of_packets, asks.packets, asks.now)
        && (!asks.opens || take(new_flows, of_new_flows, 1, asks.now))
}

/// The maps above, as the packet path sees them. Values are copied out at once: a hash map's entry
/// may be given to another key.
pub struct Maps {
    /// Not 0 when a capture watches the packet.
    pub watched: u64,
}

/// The maps before a capture has looked at the packet.
pub const UNWATCHED: Maps = Maps { watched: 0 };

/// A lookup table of [`TABLES`].
pub struct Words<'a>(&'a Table);

impl LookupTable for Words<'_> {
    #[inline(always)]
    fn pair(&self, element: u32) -> Option<u64> {
        self.0.get(element).copied()
    }
}

impl EventTables for Maps {
    #[inline(always)]
    fn watched(&self) -> u64 {
        self.watched
    }

    #[inline(always)]
    fn switch(&self, word: u32) -> u64 {
        EVENT_SWITCH.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn switch_off(&self) {
        let _ = EVENT_SWITCH.set(switch::UNTIL, 0, 0);
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn observer(&self, work: impl FnOnce(&mut Observer)) -> Option<()> {
        // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on it.
        let observer = unsafe { &mut *OBSERVERS.get_ptr_mut(0)? };
        work(observer);
        Some(())
    }

    #[inline(always)]
    fn emit(&self, event: &Event) -> bool {
        EVENTS.output(event, 0).is_ok()
    }
}

impl BalancerTables for Maps {
    type Table<'a> = Words<'a>;

    #[inline(always)]
    fn uses(&self, feature: Features) -> bool {
        FEATURES
            .get(feature.word().trailing_zeros() as usize)
            .is_some_and(|feature| feature.load() != 0)
    }

    #[inline(always)]
    fn hash_key(&self) -> [u64; 2] {
        HASH_KEY.load()
    }

    #[inline(always)]
    fn source(&self, family: Family) -> Address {
        match family {
            Family::V4 => SOURCE_V4.load(),
            Family::V6 => SOURCE_V6.load(),
        }
    }

    #[inline(always)]
    fn source_bits(&self, family: Family) -> u32 {
        match family {
            Family::V4 => SOURCE_BITS_V4.load(),
            Family::V6 => SOURCE_BITS_V6.load(),
        }
    }

    #[inline(always)]
    fn gue_port(&self) -> Port {
        GUE_PORT.load()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn take_error(&self) -> bool {
        let rate = ERROR_RATE.load();
        if !rate.is_limit() {
            return true;
        }
        let Some(bucket) = ERRORS.get_ptr_mut(0) else { return false };
        // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on it.
        let bucket = unsafe { &mut *bucket };
        let Some(taken) = rate.take(*bucket, 1, self.now()) else { return false };
        *bucket = taken.of(*bucket);
        true
    }

    #[inline(always)]
    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIP_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        // The trie's key type is packed, a prefix key is the same bytes.
        VIP_PREFIXES.get(&Key::new(key.length, key.words())).copied()
    }

    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<Vip> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIPS.get(key) }.copied()
    }

    #[inline(always)]
    fn route(&self, key: &RouteKey) -> Option<Vip> {
        ROUTES.get(&Key::new(key.length, key.words())).copied()
    }

    #[inline(always)]
    fn listing(&self, list: u32, source: &PrefixKey) -> Option<Listing> {
        let key = Key::new(source.length, source.words());
        LISTS
            .get(list)
            .map(|list| list.get(&key).map_or(Listing::ALLOWED, |word| Listing::from_word(*word)))
    }

    #[inline(always)]
    fn quic_lengths(&self, service: u32) -> IdLengths {
        QUIC_LENGTHS.get(service).copied().unwrap_or(IdLengths::NONE)
    }

    #[inline(always)]
    fn quic_server(&self, key: &ServerKey) -> Option<Connection> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { QUIC_SERVERS.get(key) }.copied()
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
    fn take_from_source(&self, key: &SourceKey, asks: &Asks) -> bool {
        let packets = rate(asks.service, Limit::SourcePackets);
        let new_flows = rate(asks.service, Limit::SourceNewFlows);
        if !packets.is_limit() && !new_flows.is_limit() {
            return true;
        }
        let mut buckets = SOURCES.get_ptr_mut(key);
        if buckets.is_none() {
            // Another CPU may have put it there meanwhile; its takings stay.
            let full: &Buckets = &FULL;
            let _ = SOURCES.insert(key, full, u64::from(BPF_NOEXIST));
            buckets = SOURCES.get_ptr_mut(key);
        }
        // Without room for one more source, it goes unlimited.
        buckets.is_none_or(|buckets| take_both(buckets, packets, new_flows, asks))
    }

    #[inline(always)]
    fn take_from_service(&self, asks: &Asks) -> bool {
        let (packets, new_flows) =
            (rate(asks.service, Limit::Packets), rate(asks.service, Limit::NewFlows));
        BUCKETS
            .get_ptr_mut(asks.service)
            .is_none_or(|buckets| take_both(buckets, packets, new_flows, asks))
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &Forwarded) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
            // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on
            // it.
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
            counters.new_flows = counters.new_flows.wrapping_add(forwarded.new_flows);
        }
    }

    #[inline(always)]
    fn count_dropped(&self, service: u32, drop_index: u32) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
            // SAFETY: as above.
            let counters = unsafe { &mut *counters };
            // It is less than that many. Old verifiers learn it from arithmetic, and not where the
            // compiler checked another copy of the number.
            let index = core::hint::black_box(drop_index) as usize & (Reason::DROPS - 1);
            if let Some(counter) = counters.drops.get_mut(index) {
                *counter = counter.wrapping_add(1);
            }
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

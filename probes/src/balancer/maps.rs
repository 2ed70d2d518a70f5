//! The balancer's maps, and how the packet path sees them.
#![expect(unsafe_code, reason = "raw pointers to map values, and exported constants")]

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use sluice_datapath::abi::capture::control;
use sluice_datapath::abi::{
    AclVerdict, Backend, BackendCounters, BackendRecord, BucketUpdate, Buckets, CaptureEvent,
    CaptureState, ClientKey, Connection, Features, Fragment, FragmentKey, InstanceRecord,
    Neighbour, NextHop, PATH_MTU_ERRORS as OUTCOMES, PathMtuRecord, Port, PrefixKey, QuicIdLengths,
    QuicServerKey, Rate, RateKind, RouteKey, ServiceCounters, ServiceRecord, ServiceRef,
    TokenRequest, VipAddress, VipKey,
};
use sluice_datapath::balance::{BalancerTables, CaptureTables, ForwardedCounts, LookupTable};
use sluice_datapath::{Address, Family, Flow, Reason};

// Every capacity but those of REASONS and of the maps of captures is set by the loader; the numbers
// here are the smallest that the kernel accepts.

/// Inner maps of any length (`INNER_MAP`) that the loader fills through memory (`MMAPABLE`).
type Table = Array<u64, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

/// Inner maps of as many prefixes as each needs. Their value is a [`AclVerdict`] as a plain number:
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
static ICMP_ERROR_RATE: Global<Rate> = Global::new(Rate::NONE);

/// VIP addresses: one look-up sends everybody else's packets on their way.
#[btf_map]
static VIP_ADDRESSES: HashMap<Address, VipAddress, 1> = HashMap::new();
/// VIP prefixes.
#[btf_map]
static VIP_PREFIXES: LpmTrie<[u32; 4], VipAddress, 1> = LpmTrie::new();
/// VIPs: address, port and protocol to service.
#[btf_map]
static VIPS: HashMap<VipKey, ServiceRef, 1> = HashMap::new();
/// Routes: service and client to service.
#[btf_map]
static ROUTES: LpmTrie<[u32; 5], ServiceRef, 1> = LpmTrie::new();
/// How long QUIC server IDs are, by service.
#[btf_map]
static QUIC_ID_LENGTHS: Array<QuicIdLengths, 1> = Array::new();
/// QUIC server IDs: service and ID to backend. Not preallocated: there are as many as servers have
/// IDs, and for most services none.
#[btf_map]
static QUIC_SERVERS: HashMap<QuicServerKey, Connection, 1, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Lists of sources: at index 0 the one for all VIPs, else by service.
#[btf_map]
static ACLS: ArrayOfMaps<List, 1> = ArrayOfMaps::new();
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
static SERVICE_BUCKETS: Array<Buckets, 1> = Array::new();
/// Token buckets, by source and service.
#[btf_map]
static CLIENT_BUCKETS: LruHashMap<ClientKey, Buckets, 1> = LruHashMap::new();
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

// Maps of captures. See `sluice_datapath::balance::capture`.

/// Whether a capture is on, and what it wants.
#[btf_map]
static CAPTURE_CONTROL: Array<u64, { control::WORDS as usize }> = Array::new();
/// Each CPU's share of a capture.
#[btf_map]
static CAPTURE_STATE: PerCpuArray<CaptureState, 1> = PerCpuArray::new();
/// What captures read; some three thousand events.
#[btf_map]
static CAPTURE_EVENTS: RingBuf<CaptureEvent, { 512 << 10 }> = RingBuf::new();

/// Each CPU's bucket of ICMP errors. Not pinned: it starts full with each program.
#[btf_map]
static ICMP_ERROR_BUCKET: PerCpuArray<u64, 1> = PerCpuArray::new();

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
static PATH_MTU_ERRORS: Array<u64, { OUTCOMES as usize }> = Array::new();
/// What was applied last.
#[btf_map]
static INSTANCE: Array<InstanceRecord, 1> = Array::new();

/// A service's rate.
#[inline(always)]
fn rate(service: u32, limit: RateKind) -> Rate {
    RATES.get(Rate::index(service, limit)).copied().unwrap_or(Rate::NONE)
}

/// Takes tokens from a bucket in a map; false when there are none left.
#[inline(always)]
fn consume(rate: Rate, bucket: *mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    // SAFETY: the pointer is to an aligned word of a map's value, which the kernel keeps for as
    // long as the program runs. Other CPUs write it, too, in the same two ways.
    match rate.consume(unsafe { bucket.read_volatile() }, tokens, now) {
        // SAFETY: as above.
        Some(BucketUpdate::Set(is)) => unsafe { bucket.write_volatile(is) },
        // SAFETY: as above; the instruction touches nothing else.
        Some(BucketUpdate::Add(more)) => unsafe {
            core::arch::asm!("lock *(u64 *)({bucket} + 0) += {more}", bucket = in(reg) bucket, more = in(reg) more);
        },
        None => return false,
    }
    true
}

/// The buckets of a source that was not seen before. Here, and not on the stack, which has no room
/// to spare.
static FULL: Buckets = Buckets { packets: 0, new_connections: 0 };

/// Takes what a packet request for from buckets of packets and of new flows.
#[inline(always)]
fn consume_both(
    buckets: *mut Buckets,
    packets: Rate,
    new_connections: Rate,
    request: &TokenRequest,
) -> bool {
    // SAFETY: the pointers are to members of the value that `buckets` points to; nothing is read or
    // written.
    let (of_packets, of_new_flows) =
        unsafe { (&raw mut (*buckets).packets, &raw mut (*buckets).new_connections) };
    consume(packets, of_packets, request.packets, request.now)
        && (!request.is_syn || consume(new_connections, of_new_flows, 1, request.now))
}

/// The maps above, as the packet path sees them. Values are copied out at once: a hash map's entry
/// may be given to another key.
pub struct Maps {
    /// Not 0 when a capture watches the packet.
    pub capture_enabled: u64,
}

/// The maps before a capture has looked at the packet.
pub const UNCAPTURED: Maps = Maps { capture_enabled: 0 };

/// A lookup table of [`TABLES`].
pub struct TableWords<'a>(&'a Table);

impl LookupTable for TableWords<'_> {
    #[inline(always)]
    fn pair(&self, element: u32) -> Option<u64> {
        self.0.get(element).copied()
    }
}

impl CaptureTables for Maps {
    #[inline(always)]
    fn capture_enabled(&self) -> u64 {
        self.capture_enabled
    }

    #[inline(always)]
    fn control(&self, word: u32) -> u64 {
        CAPTURE_CONTROL.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn stop_capture(&self) {
        let _ = CAPTURE_CONTROL.set(control::UNTIL, 0, 0);
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()> {
        // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on it.
        let observer = unsafe { &mut *CAPTURE_STATE.get_ptr_mut(0)? };
        work(observer);
        Some(())
    }

    #[inline(always)]
    fn output_event(&self, event: &CaptureEvent) -> bool {
        CAPTURE_EVENTS.output(event, 0).is_ok()
    }
}

impl BalancerTables for Maps {
    type Table<'a> = TableWords<'a>;

    #[inline(always)]
    fn uses(&self, feature: Features) -> bool {
        FEATURES
            .get(feature.bits().trailing_zeros() as usize)
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
    fn consume_icmp_error_token(&self) -> bool {
        let rate = ICMP_ERROR_RATE.load();
        if !rate.is_limit() {
            return true;
        }
        let Some(bucket) = ICMP_ERROR_BUCKET.get_ptr_mut(0) else { return false };
        // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on it.
        let bucket = unsafe { &mut *bucket };
        let Some(taken) = rate.consume(*bucket, 1, self.now()) else { return false };
        *bucket = taken.apply(*bucket);
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
    fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIPS.get(key) }.copied()
    }

    #[inline(always)]
    fn route(&self, key: &RouteKey) -> Option<ServiceRef> {
        ROUTES.get(&Key::new(key.length, key.words())).copied()
    }

    #[inline(always)]
    fn acl_verdict(&self, list: u32, source: &PrefixKey) -> Option<AclVerdict> {
        let key = Key::new(source.length, source.words());
        ACLS.get(list).map(|list| {
            list.get(&key).map_or(AclVerdict::ALLOWED, |word| AclVerdict::from_bits(*word))
        })
    }

    #[inline(always)]
    fn quic_lengths(&self, service: u32) -> QuicIdLengths {
        QUIC_ID_LENGTHS.get(service).copied().unwrap_or(QuicIdLengths::NONE)
    }

    #[inline(always)]
    fn quic_server(&self, key: &QuicServerKey) -> Option<Connection> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { QUIC_SERVERS.get(key) }.copied()
    }

    #[inline(always)]
    fn table(&self, service: u32) -> Option<TableWords<'_>> {
        TABLES.get(service).map(TableWords)
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
    fn insert_connection(&self, flow: &Flow, connection: &Connection) {
        let _ = CONNECTIONS.insert(flow, connection, 0);
    }

    #[inline(always)]
    fn consume_source_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool {
        let packets = rate(request.service, RateKind::SourcePackets);
        let new_connections = rate(request.service, RateKind::SourceNewConnections);
        if !packets.is_limit() && !new_connections.is_limit() {
            return true;
        }
        let mut buckets = CLIENT_BUCKETS.get_ptr_mut(key);
        if buckets.is_none() {
            // Another CPU may have put it there meanwhile; its takings stay.
            let full: &Buckets = &FULL;
            let _ = CLIENT_BUCKETS.insert(key, full, u64::from(BPF_NOEXIST));
            buckets = CLIENT_BUCKETS.get_ptr_mut(key);
        }
        // Without room for one more source, it goes unlimited.
        buckets.is_none_or(|buckets| consume_both(buckets, packets, new_connections, request))
    }

    #[inline(always)]
    fn consume_service_tokens(&self, request: &TokenRequest) -> bool {
        let (packets, new_connections) = (
            rate(request.service, RateKind::Packets),
            rate(request.service, RateKind::NewConnections),
        );
        SERVICE_BUCKETS
            .get_ptr_mut(request.service)
            .is_none_or(|buckets| consume_both(buckets, packets, new_connections, request))
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts) {
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) {
            // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on
            // it.
            let counters = unsafe { &mut *counters };
            counters.packets = counters.packets.wrapping_add(forwarded.packets);
            counters.bytes = counters.bytes.wrapping_add(forwarded.bytes);
            counters.new_connections =
                counters.new_connections.wrapping_add(forwarded.new_connections);
        }
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(u32::from(backend)) {
            // SAFETY: as above.
            let counters = unsafe { &mut *counters };
            counters.packets = counters.packets.wrapping_add(forwarded.packets);
            counters.bytes = counters.bytes.wrapping_add(forwarded.bytes);
            counters.new_connections =
                counters.new_connections.wrapping_add(forwarded.new_connections);
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

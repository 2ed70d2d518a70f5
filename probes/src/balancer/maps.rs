//! The balancer's maps, as the packet path accesses them.
#![expect(unsafe_code, reason = "raw pointers to map values, and exported constants")]

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use sluice_datapath::abi::capture::control;
use sluice_datapath::abi::*;
use sluice_datapath::balance::{
    BalancerMaps, CaptureMaps, ForwardedCounts, LookupTable, SelectionMaps,
};
use sluice_probes::maps::InnerArray;
use sluice_probes::statics;

// Load-time constants ([`Settings`]), one static each: the verifier follows their values and
// removes the code of unused features, and nothing is copied to the small stack.

/// The features in use: one byte for each bit of [`Features`]. A test of a byte takes two
/// instructions and a test of a bit three, and they remain where the verifier removes the code of
/// the feature.
#[unsafe(no_mangle)]
static FEATURES: [Global<u8>; Features::BITS] = [const { Global::new(0) }; Features::BITS];
/// Key of the flow hash.
#[unsafe(no_mangle)]
static HASH_KEY: Global<[u64; 2]> = Global::new([0; 2]);
/// Source addresses of outer headers.
#[unsafe(no_mangle)]
static SOURCE_V4: Global<Address> = Global::new(Address::NONE);
#[unsafe(no_mangle)]
static SOURCE_V6: Global<Address> = Global::new(Address::NONE);
/// Bits of the source addresses that the flow hash fills in.
#[unsafe(no_mangle)]
static SOURCE_BITS_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_BITS_V6: Global<u32> = Global::new(0);

/// Destination port of GUE.
#[unsafe(no_mangle)]
static GUE_PORT: Global<Port> = Global::new(Port::new(0));

/// Blocks of the VIP addresses from which packets to VIPs are dropped.
#[unsafe(no_mangle)]
static VIP_SOURCES: Global<u64> = Global::new(0);

/// Rate limit of ICMP errors, for each CPU.
#[unsafe(no_mangle)]
static ICMP_ERROR_RATE: Global<Rate> = Global::new(Rate::NONE);

sluice_datapath::balancer_maps!(statics);

/// A service's rate.
#[inline(always)]
fn rate(service: u32, limit: RateKind) -> Rate {
    RATES.get(Rate::index(service, limit)).copied().unwrap_or(Rate::NONE)
}

/// Consumes tokens of a bucket in a map; false when it is empty.
#[inline(always)]
fn consume(rate: Rate, bucket: *mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    // SAFETY: the pointer is to an aligned word of a map's value, which the kernel keeps while the
    // program runs. Other CPUs write it in the same two ways.
    match rate.consume(unsafe { bucket.read_volatile() }, tokens, now) {
        // SAFETY: as above.
        Some(BucketUpdate::Set(value)) => unsafe { bucket.write_volatile(value) },
        // SAFETY: as above; the instruction touches nothing else.
        Some(BucketUpdate::Add(more)) => unsafe {
            core::arch::asm!("lock *(u64 *)({bucket} + 0) += {more}", bucket = in(reg) bucket, more = in(reg) more);
        },
        None => return false,
    }
    true
}

/// The buckets of a new client: a bucket stores the time at which it is full again, so 0 is full. A
/// static, because the stack has no room.
static FULL: Buckets = Buckets { packets: 0, new_connections: 0, fragments: 0 };

/// Consumes the requested tokens of the buckets of packets and of new connections.
#[inline(always)]
fn consume_both(
    buckets: *mut Buckets,
    packets: Rate,
    new_connections: Rate,
    request: &TokenRequest,
) -> bool {
    // SAFETY: the pointers are to members of the value that `buckets` points to; nothing is read or
    // written.
    let (packet_bucket, connection_bucket) =
        unsafe { (&raw mut (*buckets).packets, &raw mut (*buckets).new_connections) };
    consume(packets, packet_bucket, request.packets, request.now)
        && (!request.is_syn || consume(new_connections, connection_bucket, 1, request.now))
}

/// The maps above. Values are copied at once: an entry of a hash map may be reused for another key.
pub struct Maps {
    /// Not 0 while a capture is enabled for the packet.
    pub capture_enabled: u64,
}

/// The maps without a capture.
pub const UNCAPTURED: Maps = Maps { capture_enabled: 0 };

/// A lookup table of [`TABLES`].
pub struct TableWords<'a>(&'a InnerArray<u64>);

impl LookupTable for TableWords<'_> {
    #[inline(always)]
    fn pair(&self, element: u32) -> Option<u64> {
        self.0.get(element).copied()
    }
}

impl CaptureMaps for Maps {
    #[inline(always)]
    fn capture_enabled(&self) -> u64 {
        self.capture_enabled
    }

    #[inline(always)]
    fn capture_control(&self, word: u32) -> u64 {
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
        let state = unsafe { &mut *CAPTURE_STATE.get_ptr_mut(0)? };
        work(state);
        Some(())
    }

    #[inline(always)]
    fn output_event(&self, event: &CaptureEvent) -> bool {
        CAPTURE_EVENTS.output(event, 0).is_ok()
    }
}

impl SelectionMaps for Maps {
    type LookupTable<'a> = TableWords<'a>;

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
    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { VIP_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        // aya's key type is packed; a prefix key has the same bytes.
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
    fn lookup_table(&self, service: u32) -> Option<TableWords<'_>> {
        TABLES.get(service).map(TableWords)
    }

    #[inline(always)]
    fn backend(&self, index: u16) -> Option<Backend> {
        BACKENDS.get(u32::from(index)).copied()
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
}

impl BalancerMaps for Maps {
    #[inline(always)]
    fn outer_source(&self, family: Family) -> Address {
        match family {
            Family::V4 => SOURCE_V4.load(),
            Family::V6 => SOURCE_V6.load(),
        }
    }

    #[inline(always)]
    fn outer_source_bits(&self, family: Family) -> u32 {
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
    fn vip_sources(&self) -> VipSources {
        VipSources::from_bits(VIP_SOURCES.load())
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
    fn next_hop(&self, index: u32) -> Option<NextHop> {
        NEXT_HOPS.get(index).copied()
    }

    #[inline(always)]
    fn neighbour(&self, index: u32) -> Option<&Neighbour> {
        NEIGHBOURS.get(index)
    }

    #[inline(always)]
    fn consume_client_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool {
        let packets = rate(request.service, RateKind::SourcePackets);
        let new_connections = rate(request.service, RateKind::SourceNewConnections);
        if !packets.is_limit() && !new_connections.is_limit() {
            return true;
        }
        let mut buckets = CLIENT_BUCKETS.get_ptr_mut(key);
        if buckets.is_none() {
            // Another CPU may have inserted the entry meanwhile; its updates are kept.
            let full: &Buckets = &FULL;
            let _ = CLIENT_BUCKETS.insert(key, full, u64::from(BPF_NOEXIST));
            buckets = CLIENT_BUCKETS.get_ptr_mut(key);
        }
        // If the map refuses the entry, the client is not limited.
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
    fn consume_fragment_token(&self, service: u32) -> bool {
        let rate = rate(service, RateKind::Fragments);
        if !rate.is_limit() {
            return true;
        }
        let Some(buckets) = SERVICE_BUCKETS.get_ptr_mut(service) else { return true };
        // SAFETY: the pointer is to a member of the value; nothing is read or written.
        let bucket = unsafe { &raw mut (*buckets).fragments };
        consume(rate, bucket, 1, self.now())
    }

    #[inline(always)]
    fn first_fragment(&self, key: &FragmentKey) -> Option<FirstFragment> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_first_fragment(&self, key: &FragmentKey, fragment: &FirstFragment) {
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
            // The index is below `DROPS`. Old verifiers derive that from arithmetic only, and not
            // if the compiler compared another copy of the number.
            let index = core::hint::black_box(drop_index) as usize & (Reason::DROPS - 1);
            if let Some(counter) = counters.drops.get_mut(index) {
                *counter = counter.wrapping_add(1);
            }
        }
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        if let Some(counter) = REASONS.get_ptr_mut(reason.index()) {
            // SAFETY: as above.
            let counter = unsafe { &mut *counter };
            *counter = counter.wrapping_add(1);
        }
    }
}

//! The balancer's maps in plain memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use crate::abi::capture::control;
use crate::abi::{
    AclVerdict, Address, Backend, BackendCounters, Buckets, CaptureEvent, CaptureState, ClientKey,
    Connection, Family, Features, Flow, Fragment, FragmentKey, Neighbour, NextHop, Port, PrefixKey,
    QuicIdLengths, QuicServerKey, Rate, RateKind, Reason, RouteKey, ServiceCounters, ServiceRef,
    Settings, Slot, TableHead, TokenRequest, VipAddress, VipKey,
};
use crate::balance::{BalancerTables, CaptureTables, ForwardedCounts, LookupTable};

/// The words of a lookup table.
#[derive(Debug, Clone)]
pub struct TableWords(pub Vec<u32>);

impl TableWords {
    /// The words of a table's inner map: head, generation, digest, slots.
    pub fn new(
        head: TableHead,
        generation: u32,
        digest: u64,
        slots: impl IntoIterator<Item = Slot>,
    ) -> Self {
        let mut words = vec![head.encode(), generation, digest as u32, (digest >> 32) as u32];
        words.extend(slots.into_iter().map(Slot::encode));
        Self(words)
    }
}

impl LookupTable for &TableWords {
    fn pair(&self, element: u32) -> Option<u64> {
        let words = self.0.get(element as usize * 2..)?;
        let (low, high) = (*words.first()?, words.get(1).copied().unwrap_or(0));
        Some(u64::from(low) | (u64::from(high) << 32))
    }
}

/// The balancer's maps in plain memory.
#[derive(Debug)]
pub struct MemoryBalancer {
    /// Constants of the program.
    pub settings: Settings,
    /// The time, in nanoseconds of `CLOCK_MONOTONIC`.
    pub now: Cell<u64>,
    /// The map `VIP_ADDRESSES`.
    pub vip_addresses: HashMap<Address, VipAddress>,
    /// The map `VIP_PREFIXES`.
    pub vip_prefixes: BTreeMap<PrefixKey, VipAddress>,
    /// The map `VIPS`.
    pub vips: HashMap<VipKey, ServiceRef>,
    /// The map `ROUTES`, by service.
    pub routes: BTreeMap<u32, BTreeMap<PrefixKey, ServiceRef>>,
    /// The map `QUIC_ID_LENGTHS`.
    pub quic_id_lengths: BTreeMap<u32, QuicIdLengths>,
    /// The map `QUIC_SERVERS`.
    pub quic_servers: BTreeMap<QuicServerKey, Connection>,
    /// The map `ACLS`.
    pub acls: BTreeMap<u32, BTreeMap<PrefixKey, AclVerdict>>,
    /// The map `TABLES`.
    pub tables: BTreeMap<u32, TableWords>,
    /// The map `BACKENDS`.
    pub backends: BTreeMap<u16, Backend>,
    /// The map `NEXT_HOPS`.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// The map `CONNECTIONS`, unbounded.
    pub connections: RefCell<HashMap<Flow, Connection>>,
    /// The map `RATES`.
    pub rates: BTreeMap<u32, Rate>,
    /// The map `SERVICE_BUCKETS`.
    pub service_buckets: RefCell<BTreeMap<u32, Buckets>>,
    /// The map `CLIENT_BUCKETS`, unbounded.
    pub client_buckets: RefCell<HashMap<ClientKey, Buckets>>,
    /// The map `FRAGMENTS`, unbounded.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// The map `SERVICE_COUNTERS`.
    pub service_counters: RefCell<BTreeMap<u32, ServiceCounters>>,
    /// The map `BACKEND_COUNTERS`.
    pub backend_counters: RefCell<BTreeMap<u16, BackendCounters>>,
    /// The map `REASONS`.
    pub reasons: RefCell<BTreeMap<Reason, u64>>,
    /// Result of [`CaptureTables::capture_enabled`].
    pub capture_enabled: Cell<u64>,
    /// The map `CAPTURE_CONTROL`.
    pub capture_control: [Cell<u64>; control::WORDS as usize],
    /// The map `CAPTURE_STATE`, for one CPU.
    pub capture_state: RefCell<CaptureState>,
    /// The ring buffer `CAPTURE_EVENTS`.
    pub capture_events: RefCell<Vec<CaptureEvent>>,
    /// Capacity of the ring buffer in events.
    pub max_capture_events: usize,
    /// The map `ICMP_ERROR_BUCKET`.
    pub icmp_error_bucket: Cell<u64>,
}

impl MemoryBalancer {
    /// Empty maps.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: Cell::default(),
            vip_addresses: HashMap::default(),
            vip_prefixes: BTreeMap::default(),
            vips: HashMap::default(),
            routes: BTreeMap::default(),
            quic_id_lengths: BTreeMap::default(),
            quic_servers: BTreeMap::default(),
            acls: BTreeMap::default(),
            tables: BTreeMap::default(),
            backends: BTreeMap::default(),
            next_hops: BTreeMap::default(),
            connections: RefCell::default(),
            rates: BTreeMap::default(),
            service_buckets: RefCell::default(),
            client_buckets: RefCell::default(),
            fragments: RefCell::default(),
            service_counters: RefCell::default(),
            backend_counters: RefCell::default(),
            reasons: RefCell::default(),
            capture_enabled: Cell::default(),
            capture_control: Default::default(),
            capture_state: RefCell::default(),
            capture_events: RefCell::default(),
            max_capture_events: usize::MAX,
            icmp_error_bucket: Cell::default(),
        }
    }
}

impl CaptureTables for MemoryBalancer {
    fn capture_enabled(&self) -> u64 {
        self.capture_enabled.get()
    }

    fn control(&self, word: u32) -> u64 {
        self.capture_control[word as usize].get()
    }

    fn stop_capture(&self) {
        self.capture_control[control::UNTIL as usize].set(0);
    }

    /// A constant: the middle of the range.
    fn random(&self) -> u32 {
        1 << 31
    }

    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()> {
        work(&mut self.capture_state.borrow_mut());
        Some(())
    }

    fn output_event(&self, event: &CaptureEvent) -> bool {
        let mut events = self.capture_events.borrow_mut();
        let fits = events.len() < self.max_capture_events;
        if fits {
            events.push(*event);
        }
        fits
    }
}

impl BalancerTables for MemoryBalancer {
    type Table<'a> = &'a TableWords;

    fn uses(&self, feature: Features) -> bool {
        self.settings.features.has(feature)
    }

    fn hash_key(&self) -> [u64; 2] {
        self.settings.hash_key
    }

    fn source(&self, family: Family) -> Address {
        match family {
            Family::V4 => self.settings.source_v4,
            Family::V6 => self.settings.source_v6,
        }
    }

    fn gue_port(&self) -> Port {
        self.settings.gue_port
    }

    fn source_bits(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.settings.source_bits_v4,
            Family::V6 => self.settings.source_bits_v6,
        }
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn consume_icmp_error_token(&self) -> bool {
        let mut bucket = self.icmp_error_bucket.get();
        let granted = consume_one(self.settings.errors, &mut bucket, 1, self.now.get());
        self.icmp_error_bucket.set(bucket);
        granted
    }

    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        self.vip_addresses.get(address).copied()
    }

    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        longest_match(&self.vip_prefixes, key)
    }

    fn route(&self, key: &RouteKey) -> Option<ServiceRef> {
        longest_match(self.routes.get(&key.service)?, &key.clients())
    }

    fn acl_verdict(&self, acl: u32, source: &PrefixKey) -> Option<AclVerdict> {
        self.acls.get(&acl).map(|acl| longest_match(acl, source).unwrap_or(AclVerdict::ALLOWED))
    }

    fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        self.vips.get(key).copied()
    }

    fn quic_lengths(&self, service: u32) -> QuicIdLengths {
        self.quic_id_lengths.get(&service).copied().unwrap_or(QuicIdLengths::NONE)
    }

    fn quic_server(&self, key: &QuicServerKey) -> Option<Connection> {
        self.quic_servers.get(key).copied()
    }

    fn table(&self, service: u32) -> Option<Self::Table<'_>> {
        self.tables.get(&service)
    }

    fn backend(&self, index: u16) -> Option<Backend> {
        self.backends.get(&index).copied()
    }

    fn next_hop(&self, index: u32) -> Option<NextHop> {
        self.next_hops.get(&index).copied()
    }

    /// In memory, packets have no next hop.
    fn neighbour(&self, _: u32) -> Option<&Neighbour> {
        None
    }

    fn connection(&self, flow: &Flow) -> Option<Connection> {
        self.connections.borrow().get(flow).copied()
    }

    fn insert_connection(&self, flow: &Flow, connection: &Connection) {
        self.connections.borrow_mut().insert(*flow, *connection);
    }

    fn consume_source_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool {
        let rates = [RateKind::SourcePackets, RateKind::SourceNewConnections]
            .map(|kind| self.rate(request.service, kind));
        rates.iter().all(|rate| !rate.is_limit())
            || consume_both(
                self.client_buckets.borrow_mut().entry(*key).or_default(),
                rates,
                request,
            )
    }

    fn consume_service_tokens(&self, request: &TokenRequest) -> bool {
        let rates = [RateKind::Packets, RateKind::NewConnections]
            .map(|kind| self.rate(request.service, kind));
        consume_both(
            self.service_buckets.borrow_mut().entry(request.service).or_default(),
            rates,
            request,
        )
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts) {
        let mut services = self.service_counters.borrow_mut();
        let counters = services.entry(service).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_connections += forwarded.new_connections;
        let mut backends = self.backend_counters.borrow_mut();
        let counters = backends.entry(backend).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_connections += forwarded.new_connections;
    }

    fn count_dropped(&self, service: u32, drop_index: u32) {
        self.service_counters.borrow_mut().entry(service).or_default().drops
            [drop_index as usize] += 1;
    }

    fn count_refused(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
}

impl MemoryBalancer {
    fn rate(&self, service: u32, kind: RateKind) -> Rate {
        self.rates.get(&Rate::index(service, kind)).copied().unwrap_or(Rate::NONE)
    }
}

/// Consumes the requested tokens from the buckets of packets and of new connections, with the rates
/// in this order.
fn consume_both(
    buckets: &mut Buckets,
    [packets, new_connections]: [Rate; 2],
    request: &TokenRequest,
) -> bool {
    consume_one(packets, &mut buckets.packets, request.packets, request.now)
        && (!request.is_syn
            || consume_one(new_connections, &mut buckets.new_connections, 1, request.now))
}

/// Consumes tokens from one bucket; false if the bucket is empty. Without a limit nothing is
/// consumed.
fn consume_one(rate: Rate, bucket: &mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    let update = rate.consume(*bucket, tokens, now);
    *bucket = update.map_or(*bucket, |update| update.apply(*bucket));
    update.is_some()
}

/// The value of the longest prefix that matches a key.
fn longest_match<V: Copy>(trie: &BTreeMap<PrefixKey, V>, key: &PrefixKey) -> Option<V> {
    let holds = trie.iter().filter(|(prefix, _)| prefix.holds(key));
    holds.max_by_key(|(prefix, _)| prefix.length).map(|(_, value)| *value)
}

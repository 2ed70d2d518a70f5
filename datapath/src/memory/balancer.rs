//! The balancer's maps in plain memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use crate::abi::capture::control;
use crate::abi::{
    AclVerdict, Address, Backend, BackendCounters, Buckets, CaptureEvent, CaptureState, ClientKey,
    Connection, Family, Features, Flow, Fragment, FragmentKey, NextHop, Port, PrefixKey,
    QuicIdLengths, QuicServerKey, Rate, RateKind, Reason, RouteKey, ServiceCounters, ServiceRef,
    Settings, Slot, TableHead, TokenRequest, VipAddress, VipKey,
};
use crate::balance::{BalancerTables, CaptureTables, ForwardedCounts, LookupTable};

/// A lookup table as its words.
#[derive(Debug, Clone)]
pub struct TableWords(pub Vec<u32>);

impl TableWords {
    /// The inner map's content for a table: head, generation, digest, slots.
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
        Some(u64::from(low) | u64::from(high) << 32)
    }
}

/// The balancer's maps in plain memory.
#[derive(Debug)]
pub struct MemoryBalancer {
    /// What is fixed at loading.
    pub settings: Settings,
    /// Nanoseconds of the clock.
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
    pub quic_lengths: BTreeMap<u32, QuicIdLengths>,
    /// The map `QUIC_SERVERS`.
    pub quic_servers: BTreeMap<QuicServerKey, Connection>,
    /// The map `ACLS`.
    pub lists: BTreeMap<u32, BTreeMap<PrefixKey, AclVerdict>>,
    /// The map `TABLES`.
    pub tables: BTreeMap<u32, TableWords>,
    /// The map `BACKENDS`.
    pub backends: BTreeMap<u16, Backend>,
    /// The map `NEXT_HOPS`.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// The map `CONNECTIONS`, without a bound.
    pub connections: RefCell<HashMap<Flow, Connection>>,
    /// The map `RATES`.
    pub rates: BTreeMap<u32, Rate>,
    /// The map `SERVICE_BUCKETS`.
    pub buckets: RefCell<BTreeMap<u32, Buckets>>,
    /// The map `CLIENT_BUCKETS`, without a bound.
    pub sources: RefCell<HashMap<ClientKey, Buckets>>,
    /// The map `FRAGMENTS`, without a bound.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// The map `SERVICE_COUNTERS`.
    pub services: RefCell<BTreeMap<u32, ServiceCounters>>,
    /// The map `BACKEND_COUNTERS`.
    pub backend_counters: RefCell<BTreeMap<u16, BackendCounters>>,
    /// The map `REASONS`.
    pub reasons: RefCell<BTreeMap<Reason, u64>>,
    /// [`CaptureTables::capture_enabled`].
    pub watched: Cell<u64>,
    /// The map `CAPTURE_CONTROL`.
    pub switch: [Cell<u64>; control::WORDS as usize],
    /// The map `CAPTURE_STATE` of a machine with one CPU.
    pub capture_state: RefCell<CaptureState>,
    /// The ring buffer `CAPTURE_EVENTS`.
    pub events: RefCell<Vec<CaptureEvent>>,
    /// How many events the ring buffer holds.
    pub room: usize,
    /// The map `ICMP_ERROR_BUCKET`.
    pub errors: Cell<u64>,
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
            quic_lengths: BTreeMap::default(),
            quic_servers: BTreeMap::default(),
            lists: BTreeMap::default(),
            tables: BTreeMap::default(),
            backends: BTreeMap::default(),
            next_hops: BTreeMap::default(),
            connections: RefCell::default(),
            rates: BTreeMap::default(),
            buckets: RefCell::default(),
            sources: RefCell::default(),
            fragments: RefCell::default(),
            services: RefCell::default(),
            backend_counters: RefCell::default(),
            reasons: RefCell::default(),
            watched: Cell::default(),
            switch: Default::default(),
            capture_state: RefCell::default(),
            events: RefCell::default(),
            room: usize::MAX,
            errors: Cell::default(),
        }
    }
}

impl CaptureTables for MemoryBalancer {
    fn capture_enabled(&self) -> u64 {
        self.watched.get()
    }

    fn control(&self, word: u32) -> u64 {
        self.switch[word as usize].get()
    }

    fn stop_capture(&self) {
        self.switch[control::UNTIL as usize].set(0);
    }

    /// The middle of what a random number may be.
    fn random(&self) -> u32 {
        1 << 31
    }

    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()> {
        work(&mut self.capture_state.borrow_mut());
        Some(())
    }

    fn output_event(&self, event: &CaptureEvent) -> bool {
        let mut events = self.events.borrow_mut();
        let room = events.len() < self.room;
        if room {
            events.push(*event);
        }
        room
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
        let mut bucket = self.errors.get();
        let taken = take_one(self.settings.errors, &mut bucket, 1, self.now.get());
        self.errors.set(bucket);
        taken
    }

    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        self.vip_addresses.get(address).copied()
    }

    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        longest(&self.vip_prefixes, key)
    }

    fn route(&self, key: &RouteKey) -> Option<ServiceRef> {
        longest(self.routes.get(&key.service)?, &key.clients())
    }

    fn acl_verdict(&self, list: u32, source: &PrefixKey) -> Option<AclVerdict> {
        self.lists.get(&list).map(|list| longest(list, source).unwrap_or(AclVerdict::ALLOWED))
    }

    fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        self.vips.get(key).copied()
    }

    fn quic_lengths(&self, service: u32) -> QuicIdLengths {
        self.quic_lengths.get(&service).copied().unwrap_or(QuicIdLengths::NONE)
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

    fn connection(&self, flow: &Flow) -> Option<Connection> {
        self.connections.borrow().get(flow).copied()
    }

    fn insert_connection(&self, flow: &Flow, connection: &Connection) {
        self.connections.borrow_mut().insert(*flow, *connection);
    }

    fn consume_source_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool {
        let rates = [RateKind::SourcePackets, RateKind::SourceNewConnections]
            .map(|limit| self.rate(request.service, limit));
        rates.iter().all(|rate| !rate.is_limit())
            || take(self.sources.borrow_mut().entry(*key).or_default(), rates, request)
    }

    fn consume_service_tokens(&self, request: &TokenRequest) -> bool {
        let rates = [RateKind::Packets, RateKind::NewConnections]
            .map(|limit| self.rate(request.service, limit));
        take(self.buckets.borrow_mut().entry(request.service).or_default(), rates, request)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts) {
        let mut services = self.services.borrow_mut();
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
        self.services.borrow_mut().entry(service).or_default().drops[drop_index as usize] += 1;
    }

    fn count_refused(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
}

impl MemoryBalancer {
    fn rate(&self, service: u32, limit: RateKind) -> Rate {
        self.rates.get(&Rate::index(service, limit)).copied().unwrap_or(Rate::NONE)
    }
}

/// Takes what is asked for from the buckets of packets and of new flows, by their rates in this
/// order.
fn take(
    buckets: &mut Buckets,
    [packets, new_connections]: [Rate; 2],
    request: &TokenRequest,
) -> bool {
    take_one(packets, &mut buckets.packets, request.packets, request.now)
        && (!request.is_syn
            || take_one(new_connections, &mut buckets.new_connections, 1, request.now))
}

/// Takes tokens from one bucket, if it has a limit; false when there are none left.
fn take_one(rate: Rate, bucket: &mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    let taken = rate.consume(*bucket, tokens, now);
    *bucket = taken.map_or(*bucket, |taken| taken.apply(*bucket));
    taken.is_some()
}

/// The value of the longest prefix that holds a key.
fn longest<V: Copy>(trie: &BTreeMap<PrefixKey, V>, key: &PrefixKey) -> Option<V> {
    let holds = trie.iter().filter(|(prefix, _)| prefix.holds(key));
    holds.max_by_key(|(prefix, _)| prefix.length).map(|(_, value)| *value)
}

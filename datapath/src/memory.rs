//! Packets in byte buffers and tables in plain memory: the third binding, for tests and tools.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::entries::{
    Backend, BackendCounters, Connection, Decapsulated, Fragment, FragmentKey, Listing, NextHop,
    PrefixKey, RouteKey, ServiceCounters, Settings, Slot, TableHead, Vip, VipAddress, VipKey,
};
use crate::flow::Port;
use crate::header::Udp;
use crate::observe::{Event, HEAD, Observer, switch};
use crate::options::Features;
use crate::packet::{ETHERNET, ether_type, is_group};
use crate::quic::{IdLengths, ServerKey};
use crate::rates::{Asks, Buckets, Limit, Rate, SourceKey};
use crate::tables::Forwarded;
use crate::{
    Address, BackendTables, BalancerTables, EventTables, Family, Flow, LookupTable, Packet, Plain,
    Reason, checksum,
};

/// An Ethernet frame in a byte buffer.
#[derive(Debug)]
pub struct Buffer<'a> {
    /// The frame.
    pub bytes: &'a mut Vec<u8>,
    /// [`Packet::segment_size`].
    pub segment_size: usize,
    /// [`Packet::segments`].
    pub segments: u64,
    /// [`Packet::has_vlan`].
    pub vlan: bool,
    /// The opposite of [`Packet::is_for_this_host`].
    pub other_host: bool,
    /// [`Packet::interface`].
    pub interface: u32,
}

impl<'a> Buffer<'a> {
    /// A frame that is neither merged nor tagged.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, segment_size: 0, segments: 1, vlan: false, other_host: false, interface: 1 }
    }
}

impl Packet for Buffer<'_> {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn has_vlan(&self) -> bool {
        self.vlan
    }

    fn is_for_this_host(&self) -> bool {
        !self.other_host
    }

    fn segment_size(&self) -> usize {
        self.segment_size
    }

    fn segments(&self) -> u64 {
        self.segments
    }

    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: the slice holds `size_of::<T>()` bytes, and every bit pattern is a valid `T`.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn load_variable<T: Plain>(&self, offset: usize) -> Option<T> {
        self.load(offset)
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn head(&self, head: &mut [u8; HEAD]) -> u32 {
        let bytes = &self.bytes[..self.bytes.len().min(HEAD)];
        head[..bytes.len()].copy_from_slice(bytes);
        bytes.len() as u32
    }

    fn untag(self, bytes: usize) -> Result<Self, Reason> {
        self.bytes.drain(ETHERNET - 2..ETHERNET - 2 + bytes);
        Ok(Self { vlan: false, ..self })
    }

    fn store<T: Plain>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        let end = offset + size_of::<T>();
        self.bytes.get_mut(offset..end).ok_or(Reason::NoRoom)?.copy_from_slice(bytes_of(header));
        Ok(())
    }

    fn store_summed(&mut self, offset: usize, old: u16, new: u16, at: usize) -> Result<(), Reason> {
        let checksum = checksum::replaced(self.load(at).ok_or(Reason::NoRoom)?, old, new);
        self.store(offset, &new)?;
        self.store(at, &checksum)
    }

    fn turn_back(&mut self) -> Result<(), Reason> {
        let [to, from]: [[u16; 3]; 2] = self.load(0).ok_or(Reason::NoRoom)?;
        if is_group(to) {
            return Err(Reason::OtherHost);
        }
        self.store(0, &[from, to])
    }

    fn cut(self, length: usize) -> Result<Self, Reason> {
        self.bytes.truncate(length);
        Ok(Self { segment_size: 0, segments: 1, ..self })
    }

    fn sum<const N: usize>(&self, offset: usize) -> Option<u32> {
        let words: [u32; 2] =
            self.bytes.get(offset..offset + N)?.chunks(2).fold([0, 0], |[sum, carry], word| {
                let sum = sum + u32::from(u16::from_ne_bytes([word[0], word[1]]));
                [sum & 0xffff, carry + (sum >> 16)]
            });
        Some(words[0] + words[1])
    }

    fn insert<T: Plain>(self, headers: &T) -> Result<(), Reason> {
        self.bytes.splice(ETHERNET..ETHERNET, bytes_of(headers).iter().copied());
        Ok(())
    }

    fn encapsulate<T: Plain>(
        self,
        family: Family,
        _: Family,
        outer: &T,
        _: bool,
        between: u32,
    ) -> Result<Self, Reason> {
        // What is not written over is seen.
        const UNWRITTEN: [u8; Udp::SIZE] = [0xee; Udp::SIZE];

        self.bytes[ETHERNET - 2..ETHERNET].copy_from_slice(&ether_type(family).to_ne_bytes());
        let between = &UNWRITTEN[..between as usize];
        self.bytes.splice(ETHERNET..ETHERNET, bytes_of(outer).iter().chain(between).copied());
        Ok(self)
    }

    fn in_place(self, work: impl FnOnce(Self) -> Result<(), Reason>) -> Result<(), Reason> {
        work(self)
    }

    fn write<T: Plain>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        self.store(offset, header)
    }

    fn decapsulate<T: Plain, H: Plain>(
        self,
        _: Family,
        inner: Family,
        head: &H,
    ) -> Result<(), Reason> {
        self.bytes[ETHERNET - 2..ETHERNET].copy_from_slice(&ether_type(inner).to_ne_bytes());
        self.bytes.drain(ETHERNET..ETHERNET + size_of::<T>());
        self.bytes[ETHERNET..ETHERNET + size_of::<H>()].copy_from_slice(bytes_of(head));
        Ok(())
    }
}

/// The bytes of a plain value.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a plain value has no padding, so all its bytes are initialised; the slice lives as
    // long as the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A lookup table as its words.
#[derive(Debug, Clone)]
pub struct Words(pub Vec<u32>);

impl Words {
    /// The inner map's content for a table: head, generation, digest, slots.
    pub fn new(
        head: TableHead,
        generation: u32,
        digest: u64,
        slots: impl IntoIterator<Item = Slot>,
    ) -> Self {
        let mut words = vec![head.to_word(), generation, digest as u32, (digest >> 32) as u32];
        words.extend(slots.into_iter().map(Slot::to_word));
        Self(words)
    }
}

impl LookupTable for &Words {
    fn pair(&self, element: u32) -> Option<u64> {
        let words = self.0.get(element as usize * 2..)?;
        let (low, high) = (*words.first()?, words.get(1).copied().unwrap_or(0));
        Some(u64::from(low) | u64::from(high) << 32)
    }
}

/// The balancer's maps in plain memory.
#[derive(Debug)]
pub struct Balancer {
    /// What is fixed at loading.
    pub settings: Settings,
    /// Nanoseconds of the clock.
    pub now: Cell<u64>,
    /// The map `VIP_ADDRESSES`.
    pub vip_addresses: HashMap<Address, VipAddress>,
    /// The map `VIP_PREFIXES`.
    pub vip_prefixes: BTreeMap<PrefixKey, VipAddress>,
    /// The map `VIPS`.
    pub vips: HashMap<VipKey, Vip>,
    /// The map `ROUTES`, by service.
    pub routes: BTreeMap<u32, BTreeMap<PrefixKey, Vip>>,
    /// The map `QUIC_LENGTHS`.
    pub quic_lengths: BTreeMap<u32, IdLengths>,
    /// The map `QUIC_SERVERS`.
    pub quic_servers: BTreeMap<ServerKey, Connection>,
    /// The map `LISTS`.
    pub lists: BTreeMap<u32, BTreeMap<PrefixKey, Listing>>,
    /// The map `TABLES`.
    pub tables: BTreeMap<u32, Words>,
    /// The map `BACKENDS`.
    pub backends: BTreeMap<u16, Backend>,
    /// The map `NEXT_HOPS`.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// The map `CONNECTIONS`, without a bound.
    pub connections: RefCell<HashMap<Flow, Connection>>,
    /// The map `RATES`.
    pub rates: BTreeMap<u32, Rate>,
    /// The map `BUCKETS`.
    pub buckets: RefCell<BTreeMap<u32, Buckets>>,
    /// The map `SOURCES`, without a bound.
    pub sources: RefCell<HashMap<SourceKey, Buckets>>,
    /// The map `FRAGMENTS`, without a bound.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// The map `SERVICE_COUNTERS`.
    pub services: RefCell<BTreeMap<u32, ServiceCounters>>,
    /// The map `BACKEND_COUNTERS`.
    pub backend_counters: RefCell<BTreeMap<u16, BackendCounters>>,
    /// The map `REASONS`.
    pub reasons: RefCell<BTreeMap<Reason, u64>>,
    /// [`EventTables::watched`].
    pub watched: Cell<u64>,
    /// The map `EVENT_SWITCH`.
    pub switch: [Cell<u64>; switch::WORDS as usize],
    /// The map `OBSERVERS` of a machine with one CPU.
    pub observer: RefCell<Observer>,
    /// The ring buffer `EVENTS`.
    pub events: RefCell<Vec<Event>>,
    /// How many events the ring buffer holds.
    pub room: usize,
    /// The map `ERRORS`.
    pub errors: Cell<u64>,
}

impl Balancer {
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
            observer: RefCell::default(),
            events: RefCell::default(),
            room: usize::MAX,
            errors: Cell::default(),
        }
    }
}

impl EventTables for Balancer {
    fn watched(&self) -> u64 {
        self.watched.get()
    }

    fn switch(&self, word: u32) -> u64 {
        self.switch[word as usize].get()
    }

    fn switch_off(&self) {
        self.switch[switch::UNTIL as usize].set(0);
    }

    /// The middle of what a random number may be.
    fn random(&self) -> u32 {
        1 << 31
    }

    fn observer(&self, work: impl FnOnce(&mut Observer)) -> Option<()> {
        work(&mut self.observer.borrow_mut());
        Some(())
    }

    fn emit(&self, event: &Event) -> bool {
        let mut events = self.events.borrow_mut();
        let room = events.len() < self.room;
        if room {
            events.push(*event);
        }
        room
    }
}

impl BalancerTables for Balancer {
    type Table<'a> = &'a Words;

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

    fn take_error(&self) -> bool {
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

    fn route(&self, key: &RouteKey) -> Option<Vip> {
        longest(self.routes.get(&key.service)?, &key.clients())
    }

    fn listing(&self, list: u32, source: &PrefixKey) -> Option<Listing> {
        self.lists.get(&list).map(|list| longest(list, source).unwrap_or(Listing::ALLOWED))
    }

    fn vip(&self, key: &VipKey) -> Option<Vip> {
        self.vips.get(key).copied()
    }

    fn quic_lengths(&self, service: u32) -> IdLengths {
        self.quic_lengths.get(&service).copied().unwrap_or(IdLengths::NONE)
    }

    fn quic_server(&self, key: &ServerKey) -> Option<Connection> {
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

    fn remember(&self, flow: &Flow, connection: &Connection) {
        self.connections.borrow_mut().insert(*flow, *connection);
    }

    fn take_from_source(&self, key: &SourceKey, asks: &Asks) -> bool {
        let rates = [Limit::SourcePackets, Limit::SourceNewFlows]
            .map(|limit| self.rate(asks.service, limit));
        rates.iter().all(|rate| !rate.is_limit())
            || take(self.sources.borrow_mut().entry(*key).or_default(), rates, asks)
    }

    fn take_from_service(&self, asks: &Asks) -> bool {
        let rates = [Limit::Packets, Limit::NewFlows].map(|limit| self.rate(asks.service, limit));
        take(self.buckets.borrow_mut().entry(asks.service).or_default(), rates, asks)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &Forwarded) {
        let mut services = self.services.borrow_mut();
        let counters = services.entry(service).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_flows += forwarded.new_flows;
        let mut backends = self.backend_counters.borrow_mut();
        let counters = backends.entry(backend).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_flows += forwarded.new_flows;
    }

    fn count_dropped(&self, service: u32, drop_index: u32) {
        self.services.borrow_mut().entry(service).or_default().drops[drop_index as usize] += 1;
    }

    fn count_refused(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
}

impl Balancer {
    fn rate(&self, service: u32, limit: Limit) -> Rate {
        self.rates.get(&Rate::index(service, limit)).copied().unwrap_or(Rate::NONE)
    }
}

/// Takes what is asked for from the buckets of packets and of new flows, by their rates in this
/// order.
fn take(buckets: &mut Buckets, [packets, new_flows]: [Rate; 2], asks: &Asks) -> bool {
    take_one(packets, &mut buckets.packets, asks.packets, asks.now)
        && (!asks.opens || take_one(new_flows, &mut buckets.new_flows, 1, asks.now))
}

/// Takes tokens from one bucket, if it has a limit; false when there are none left.
fn take_one(rate: Rate, bucket: &mut u64, tokens: u64, now: u64) -> bool {
    if !rate.is_limit() {
        return true;
    }
    let taken = rate.take(*bucket, tokens, now);
    *bucket = taken.map_or(*bucket, |taken| taken.of(*bucket));
    taken.is_some()
}

/// The value of the longest prefix that holds a key.
fn longest<V: Copy>(trie: &BTreeMap<PrefixKey, V>, key: &PrefixKey) -> Option<V> {
    let holds = trie.iter().filter(|(prefix, _)| prefix.holds(key));
    holds.max_by_key(|(prefix, _)| prefix.length).map(|(_, value)| *value)
}

/// The backend's maps in plain memory.
#[derive(Debug, Default)]
pub struct BackendHost {
    /// The map `LOCAL_ADDRESSES`.
    pub local_addresses: HashSet<Address>,
    /// Whether the kernel can cross families.
    pub crosses: bool,
    /// The port of GUE.
    pub gue_port: Port,
    /// The map `VIP_PREFIXES`.
    pub vip_prefixes: HashSet<PrefixKey>,
    /// The map `LARGEST_SEGMENTS`, by [`Family::index`].
    pub largest_segments: [u32; 2],
    /// The map `CLAMPED`.
    pub clamped: Cell<u64>,
    /// The map `DECAPSULATED`.
    pub decapsulated: Cell<Decapsulated>,
    /// The map `REASONS`.
    pub reasons: RefCell<BTreeMap<Reason, u64>>,
}

impl BackendTables for BackendHost {
    fn is_local(&self, address: &Address) -> bool {
        self.local_addresses.contains(address)
    }

    fn crosses(&self) -> bool {
        self.crosses
    }

    fn gue_port(&self) -> Port {
        self.gue_port
    }

    fn is_vip(&self, key: &PrefixKey) -> bool {
        self.vip_prefixes.iter().any(|prefix| prefix.holds(key))
    }

    fn largest_segment(&self, family: Family) -> u32 {
        self.largest_segments[family.index() as usize]
    }

    fn count_clamped(&self) {
        self.clamped.set(self.clamped.get() + 1);
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

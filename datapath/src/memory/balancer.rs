//! The balancer's maps in plain memory.

use std::cell::Cell;

use super::maps::MemoryBalancerMaps;
use super::table::TableWords;
use crate::abi::capture::control;
use crate::abi::{
    AclVerdict, Address, Backend, Buckets, CaptureEvent, CaptureState, ClientKey, Connection,
    Family, Features, FirstFragment, Flow, FragmentKey, Neighbour, NextHop, Port, PrefixKey,
    QuicIdLengths, QuicServerKey, Rate, RateKind, Reason, RouteKey, ServiceRef, Settings,
    TokenRequest, VipAddress, VipKey, VipSources,
};
use crate::balance::{BalancerMaps, CaptureMaps, ForwardedCounts, SelectionMaps};

/// The balancer's maps in plain memory.
#[derive(Debug)]
pub struct MemoryBalancer {
    /// Constants of the program.
    pub settings: Settings,
    /// The time, in nanoseconds of `CLOCK_MONOTONIC`.
    pub now: Cell<u64>,
    /// Result of [`CaptureMaps::capture_enabled`].
    pub capture_enabled: Cell<u64>,
    /// Capacity of the ring buffer in events.
    pub max_capture_events: usize,
    /// The maps.
    pub maps: MemoryBalancerMaps,
}

impl MemoryBalancer {
    /// Empty maps.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: Cell::default(),
            capture_enabled: Cell::default(),
            max_capture_events: usize::MAX,
            maps: MemoryBalancerMaps::default(),
        }
    }
}

impl CaptureMaps for MemoryBalancer {
    fn capture_enabled(&self) -> u64 {
        self.capture_enabled.get()
    }

    fn capture_control(&self, word: u32) -> u64 {
        self.maps.capture_control.borrow().get(&word).copied().unwrap_or(0)
    }

    fn stop_capture(&self) {
        self.maps.capture_control.borrow_mut().insert(control::UNTIL, 0);
    }

    /// A constant: the middle of the range.
    fn random(&self) -> u32 {
        1 << 31
    }

    fn with_capture_state(&self, work: impl FnOnce(&mut CaptureState)) -> Option<()> {
        work(self.maps.capture_state.borrow_mut().entry(0).or_default());
        Some(())
    }

    fn output_event(&self, event: &CaptureEvent) -> bool {
        let mut events = self.maps.capture_events.borrow_mut();
        let fits = events.len() < self.max_capture_events;
        if fits {
            events.push(*event);
        }
        fits
    }
}

impl SelectionMaps for MemoryBalancer {
    type LookupTable<'a> = &'a TableWords;

    fn uses(&self, feature: Features) -> bool {
        self.settings.features.has(feature)
    }

    fn hash_key(&self) -> [u64; 2] {
        self.settings.hash_key
    }

    fn vip_address(&self, address: &Address) -> Option<VipAddress> {
        self.maps.vip_addresses.borrow().get(address).copied()
    }

    fn vip_prefix(&self, key: &PrefixKey) -> Option<VipAddress> {
        let prefixes = self.maps.vip_prefixes.borrow();
        longest_match(prefixes.iter().map(|(prefix, entry)| (*prefix, *entry)), key)
    }

    fn vip(&self, key: &VipKey) -> Option<ServiceRef> {
        self.maps.vips.borrow().get(key).copied()
    }

    fn route(&self, key: &RouteKey) -> Option<ServiceRef> {
        let routes = self.maps.routes.borrow();
        let of_service = routes.iter().filter(|(route, _)| route.service == key.service);
        longest_match(of_service.map(|(route, target)| (route.clients(), *target)), &key.clients())
    }

    fn lookup_table(&self, service: u32) -> Option<Self::LookupTable<'_>> {
        self.maps.tables.get(&service)
    }

    fn backend(&self, index: u16) -> Option<Backend> {
        self.maps.backends.borrow().get(&index.into()).copied()
    }

    fn connection(&self, flow: &Flow) -> Option<Connection> {
        self.maps.connections.borrow().get(flow).copied()
    }

    fn insert_connection(&self, flow: &Flow, connection: &Connection) {
        self.maps.connections.borrow_mut().insert(*flow, *connection);
    }
}

impl BalancerMaps for MemoryBalancer {
    fn outer_source(&self, family: Family) -> Address {
        match family {
            Family::V4 => self.settings.source_v4,
            Family::V6 => self.settings.source_v6,
        }
    }

    fn gue_port(&self) -> Port {
        self.settings.gue_port
    }

    fn vip_sources(&self) -> VipSources {
        self.settings.vip_sources
    }

    fn outer_source_bits(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.settings.source_bits_v4,
            Family::V6 => self.settings.source_bits_v6,
        }
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn consume_icmp_error_token(&self) -> bool {
        let mut bucket = self.maps.icmp_error_bucket.borrow_mut();
        let bucket = bucket.entry(0).or_default();
        consume_one(self.settings.errors, bucket, 1, self.now.get())
    }

    fn acl_verdict(&self, acl: u32, source: &PrefixKey) -> Option<AclVerdict> {
        let acl = self.maps.acls.get(&acl)?.iter().map(|(prefix, verdict)| (*prefix, *verdict));
        Some(longest_match(acl, source).unwrap_or(AclVerdict::ALLOWED))
    }

    fn quic_lengths(&self, service: u32) -> QuicIdLengths {
        self.maps.quic_id_lengths.borrow().get(&service).copied().unwrap_or(QuicIdLengths::NONE)
    }

    fn quic_server(&self, key: &QuicServerKey) -> Option<Connection> {
        self.maps.quic_servers.borrow().get(key).copied()
    }

    fn next_hop(&self, index: u32) -> Option<NextHop> {
        self.maps.next_hops.borrow().get(&index).copied()
    }

    /// In memory, packets have no next hop.
    fn neighbour(&self, _: u32) -> Option<&Neighbour> {
        None
    }

    fn consume_client_tokens(&self, key: &ClientKey, request: &TokenRequest) -> bool {
        let rates = [RateKind::SourcePackets, RateKind::SourceNewConnections]
            .map(|kind| self.rate(request.service, kind));
        rates.iter().all(|rate| !rate.is_limit())
            || consume_both(
                self.maps.client_buckets.borrow_mut().entry(*key).or_default(),
                rates,
                request,
            )
    }

    fn consume_service_tokens(&self, request: &TokenRequest) -> bool {
        let rates = [RateKind::Packets, RateKind::NewConnections]
            .map(|kind| self.rate(request.service, kind));
        consume_both(
            self.maps.service_buckets.borrow_mut().entry(request.service).or_default(),
            rates,
            request,
        )
    }

    fn consume_fragment_token(&self, service: u32) -> bool {
        let rate = self.rate(service, RateKind::Fragments);
        let mut buckets = self.maps.service_buckets.borrow_mut();
        consume_one(rate, &mut buckets.entry(service).or_default().fragments, 1, self.now.get())
    }

    fn first_fragment(&self, key: &FragmentKey) -> Option<FirstFragment> {
        self.maps.fragments.borrow().get(key).copied()
    }

    fn insert_first_fragment(&self, key: &FragmentKey, fragment: &FirstFragment) {
        self.maps.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn count_forwarded(&self, service: u32, backend: u16, forwarded: &ForwardedCounts) {
        let mut services = self.maps.service_counters.borrow_mut();
        let counters = services.entry(service).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_connections += forwarded.new_connections;
        let mut backends = self.maps.backend_counters.borrow_mut();
        let counters = backends.entry(backend.into()).or_default();
        counters.packets += forwarded.packets;
        counters.bytes += forwarded.bytes;
        counters.new_connections += forwarded.new_connections;
    }

    fn count_dropped(&self, service: u32, drop_index: u32) {
        self.maps.service_counters.borrow_mut().entry(service).or_default().drops
            [drop_index as usize] += 1;
    }

    fn count_reason(&self, reason: Reason) {
        *self.maps.reasons.borrow_mut().entry(reason.index()).or_default() += 1;
    }
}

impl MemoryBalancer {
    fn rate(&self, service: u32, kind: RateKind) -> Rate {
        self.maps.rates.borrow().get(&Rate::index(service, kind)).copied().unwrap_or(Rate::NONE)
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
fn longest_match<V>(trie: impl Iterator<Item = (PrefixKey, V)>, key: &PrefixKey) -> Option<V> {
    let holds = trie.filter(|(prefix, _)| prefix.holds(key));
    holds.max_by_key(|(prefix, _)| prefix.length).map(|(_, value)| value)
}

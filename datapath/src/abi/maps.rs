//! The list of all maps: one row per map. The items below are generated from, or checked against,
//! the rows.
//!
//! | from a row | where |
//! | --- | --- |
//! | the eBPF static | `probes`, macro `sluice_probes::statics!` |
//! | size, key and value size, how a resize copies it | [`MapSpec`] in [`BALANCER`], [`BACKEND`] |
//! | a typed name for reads and writes by userspace | [`MapId`] in [`balancer`], [`backend`] |
//! | the field of the in-memory binding | `memory::MemoryBalancerMaps`, `memory::MemoryBackendMaps` |
//! | the row of the table in `docs/decisions/0003-map-layout.md` | `tests/map_table.rs` |
//!
//! The lookups of the packet path (`BalancerMaps`, `BackendMaps`) are written by hand.

use core::marker::PhantomData;

use crate::abi::acl::AclVerdict;
use crate::abi::address::Address;
use crate::abi::backend::{Backend, Neighbour, NextHop};
use crate::abi::capture::{CaptureEvent, CaptureState};
use crate::abi::connection::{Connection, FirstFragment, FragmentKey};
use crate::abi::counters::{BackendCounters, ServiceCounters};
use crate::abi::decapsulation::{AcceptedSource, Decapsulated, LocalAddress};
use crate::abi::flow::Flow;
use crate::abi::pod::Pod;
use crate::abi::prefix::{PrefixKey, RouteKey};
use crate::abi::quic::{QuicIdLengths, QuicServerKey};
use crate::abi::rate::{Buckets, ClientKey, Rate};
use crate::abi::reason::Reason;
use crate::abi::records::{BackendRecord, InstanceRecord, PathMtuRecord, ServiceRecord};
use crate::abi::vip::{ServiceRef, VipAddress, VipKey};

/// Calls a macro with the rows of the balancer's maps.
///
/// A row reads `field NAME: Kind<types>, size, writer;`. Kinds are the types of this module, sizes
/// the variants of [`MapSize`], writers those of [`Writer`]. A row that ends in `unpinned` declares
/// a map that is created with each program and removed with it. Key and value types resolve where
/// the macro is called, which therefore imports `sluice_datapath::abi::*`.
#[macro_export]
macro_rules! balancer_maps {
    ($callback:ident $($argument:tt)*) => {
        $callback! {
            $($argument)*
            /// VIP addresses. Non-VIP traffic costs only this lookup.
            vip_addresses VIP_ADDRESSES: Hash<Address, VipAddress>, Per(Vips), Daemon;
            /// VIP prefixes; read only if the configuration has any.
            vip_prefixes VIP_PREFIXES: LpmTrie<PrefixKey, VipAddress>, Per(Vips), Daemon;
            /// VIPs: (address ID, port, protocol) to service and its options.
            vips VIPS: Hash<VipKey, ServiceRef>, Per(Vips), Daemon;
            /// Routes: (service, client prefix) to service and its options. Twice as many as a
            /// configuration may have, so that new ones are there before old ones are removed.
            routes ROUTES: LpmTrie<RouteKey, ServiceRef>, Exactly(131_072), Daemon;
            /// Lengths of the QUIC server IDs, by service.
            quic_id_lengths QUIC_ID_LENGTHS: Array<QuicIdLengths>, Indexed(Services, 1), Daemon;
            /// QUIC server IDs: (service, ID) to backend and its epoch. Twice as many as a
            /// configuration may have, as for `ROUTES`. Not preallocated, because most services
            /// have none.
            quic_servers QUIC_SERVERS:
                SparseHash<QuicServerKey, Connection>, Indexed(Backends, 2), Daemon;
            /// Source ACLs, by service; the global one is at index 0. Swapped whole; a few prefixes
            /// change in place.
            acls ACLS: ArrayOfTries<PrefixKey, AclVerdict>, Indexed(Services, 1), Daemon;
            /// Lookup tables, by service. Swapped whole.
            tables TABLES: ArrayOfArrays<u64>, Indexed(Services, 1), Daemon;
            /// Addresses and epoch of a backend. Written only while no other entry refers to the
            /// index.
            backends BACKENDS: Array<Backend>, Indexed(Backends, 1), Daemon;
            /// Interface, MTU and active neighbour, at 2 × backend + family. Rewritten under
            /// traffic.
            next_hops NEXT_HOPS: Array<NextHop>, Indexed(Backends, 2), Daemon;
            /// Address of the next hop on the link, two entries per next hop. Only the inactive one
            /// is written.
            neighbours NEIGHBOURS: Array<Neighbour>, Indexed(Backends, 4), Daemon;
            /// The connection table, of tracked services.
            connections CONNECTIONS: LruHash<Flow, Connection>, Per(Connections), Program;
            /// Time between tokens and burst, at 5 × service + kind of rate. Rewritten under
            /// traffic.
            rates RATES: Array<Rate>, Indexed(Services, 5), Daemon;
            /// Token buckets of a service. Writes during a resize may be lost, which costs a bucket
            /// a packet or two.
            service_buckets SERVICE_BUCKETS: Array<Buckets>, Indexed(Services, 1), Program;
            /// Token buckets of (client prefix, service). An evicted entry is a full bucket again.
            client_buckets CLIENT_BUCKETS: LruHash<ClientKey, Buckets>, Exactly(16_384), Program;
            /// Where the first fragment of a packet went. Room for a second of fragmented packets
            /// at a rate that no healthy network has.
            fragments FRAGMENTS: LruHash<FragmentKey, FirstFragment>, Exactly(8_192), Program;
            /// Packets, bytes, new connections and drops, by service.
            service_counters SERVICE_COUNTERS:
                Counters<ServiceCounters>, Indexed(Services, 1), Program;
            /// Packets, bytes and new connections, by backend.
            backend_counters BACKEND_COUNTERS:
                Counters<BackendCounters>, Indexed(Backends, 1), Program;
            /// Packets that were not forwarded, by reason.
            reasons REASONS: Counters<u64>, Fixed(Reason::COUNTERS), Program;
            /// Until when a capture is enabled, and its filter, sampling and rate limit.
            capture_control CAPTURE_CONTROL:
                Array<u64>, Fixed($crate::abi::capture::control::WORDS), Capture;
            /// Per CPU: the packet that a capture follows, its rate limit, and its losses.
            capture_state CAPTURE_STATE: PerCpuArray<CaptureState>, Fixed(1), Capture;
            /// Captured packets, about three thousand.
            capture_events CAPTURE_EVENTS: RingBuffer<CaptureEvent>, Fixed(512 << 10), Program;
            /// Per CPU: token bucket of the ICMP errors that the program sends. Full when the
            /// program is loaded.
            icmp_error_bucket ICMP_ERROR_BUCKET: PerCpuArray<u64>, Fixed(1), Program, unpinned;
            /// Name, draining, epoch and quarantine of a backend index, for the next daemon.
            backend_records BACKEND_RECORDS: Array<BackendRecord>, Indexed(Backends, 1), Daemon;
            /// Name and quarantine of a service index, for the next daemon.
            service_records SERVICE_RECORDS: Array<ServiceRecord>, Indexed(Services, 1), Daemon;
            /// Path MTUs that routers reported, with expiry and epoch, at 2 × backend + family. For
            /// the next daemon and `sluice status`.
            path_mtus PATH_MTUS: Array<PathMtuRecord>, Indexed(Backends, 2), Daemon;
            /// ICMP errors about encapsulated packets, by outcome.
            path_mtu_errors PATH_MTU_ERRORS: Array<u64>, Fixed($crate::abi::PATH_MTU_ERRORS), Daemon;
            /// Digest of the applied configuration, and what the program was loaded with.
            instance INSTANCE: Array<InstanceRecord>, Fixed(1), Daemon;
        }
    };
}

/// Calls a macro with the rows of the backend's maps; see [`balancer_maps!`].
#[macro_export]
macro_rules! backend_maps {
    ($callback:ident $($argument:tt)*) => {
        $callback! {
            $($argument)*
            /// Addresses of this host to which encapsulated packets are sent.
            local_addresses LOCAL_ADDRESSES: Hash<Address, LocalAddress>, AtCreation, Daemon;
            /// Prefixes of the sources of outer headers that are accepted; `::/0` for all. Twice as
            /// many as a configuration may have.
            balancers BALANCERS: LpmTrie<PrefixKey, AcceptedSource>, Exactly(2_048), Daemon;
            /// VIP addresses and prefixes that this backend serves.
            vip_prefixes VIP_PREFIXES: LpmTrie<PrefixKey, VipAddress>, Per(Vips), Daemon;
            /// Packets and bytes that were decapsulated.
            decapsulated DECAPSULATED: Counters<Decapsulated>, Fixed(1), Program;
            /// Largest TCP maximum segment size (MSS) that a VIP may announce, by family; 0 for no
            /// limit.
            max_segment_sizes MAX_SEGMENT_SIZES: Array<u32>, Fixed(2), Daemon;
            /// TCP segments whose MSS option was lowered.
            mss_clamped MSS_CLAMPED: Counters<u64>, Fixed(1), Program;
            /// Packets that were not decapsulated, by reason.
            reasons REASONS: Counters<u64>, Fixed(Reason::COUNTERS), Program;
        }
    };
}

/// A field of `limits` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `services`.
    Services,
    /// `backends`.
    Backends,
    /// `vips`: VIPs, and VIP addresses.
    Vips,
    /// `connections`: entries of the connection table.
    Connections,
}

/// Number of entries of a map; of a ring buffer, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapSize {
    /// This many, declared in the program's object.
    Fixed(u32),
    /// This many, set when the object is loaded.
    Exactly(u32),
    /// The loader's choice when it creates the map. The map is not resized later.
    AtCreation,
    /// The limit's value.
    Per(Limit),
    /// This many for each index from 0, which means none, up to the limit.
    Indexed(Limit, u32),
}

impl Limit {
    /// The field's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Vips => "vips",
            Self::Connections => "connections",
        }
    }
}

impl MapSize {
    /// The limit that sizes the map.
    pub const fn limit(self) -> Option<Limit> {
        match self {
            Self::Fixed(_) | Self::Exactly(_) | Self::AtCreation => None,
            Self::Per(limit) | Self::Indexed(limit, _) => Some(limit),
        }
    }

    /// Entries of the map for these values of the limits; `None` if the object or the creation of
    /// the map sets the number.
    pub fn entries(self, value: impl Fn(Limit) -> u32) -> Option<u32> {
        match self {
            Self::Fixed(_) | Self::AtCreation => None,
            Self::Exactly(entries) => Some(entries),
            Self::Per(limit) => Some(value(limit)),
            Self::Indexed(limit, each) => Some((value(limit) + 1) * each),
        }
    }

    /// The limit that sizes the map, and its largest value that fits in a map with this many
    /// entries.
    pub fn capacity(self, entries: u32) -> Option<(Limit, u32)> {
        match self {
            Self::Fixed(_) | Self::Exactly(_) | Self::AtCreation => None,
            Self::Per(limit) => Some((limit, entries)),
            Self::Indexed(limit, each) => Some((limit, (entries / each).saturating_sub(1))),
        }
    }
}

/// Which program writes a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The daemon.
    Daemon,
    /// The eBPF program, for each packet.
    Program,
    /// `sluice capture`, and the eBPF program while a capture runs.
    Capture,
}

/// Type of a map in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash,
    /// `BPF_MAP_TYPE_HASH` with `BPF_F_NO_PREALLOC`.
    SparseHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY` of 64-bit counters.
    Counters,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    ArrayOfMaps,
    /// `BPF_MAP_TYPE_RINGBUF`.
    RingBuffer,
}

impl MapKind {
    /// The kind's name in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::SparseHash => "hash, not preallocated",
            Self::LpmTrie => "LPM trie",
            Self::LruHash => "LRU hash",
            Self::Array => "array",
            Self::PerCpuArray | Self::Counters => "per-CPU array",
            Self::ArrayOfMaps => "array of maps",
            Self::RingBuffer => "ring buffer",
        }
    }
}

/// The type of a map: its kind, keys and values.
pub trait MapType {
    /// The key type.
    type Key;
    /// The value type. In an array of maps it is the ID of the inner map, in a ring buffer a
    /// record.
    type Value;
    /// The kind.
    const KIND: MapKind;
}

/// Declares a kind: a type without values, and its type in the kernel.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident<$($parameter:ident),+>: $key:ty, $value:ty, $kind:ident;)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name<$($parameter),+>(PhantomData<fn() -> ($($parameter,)+)>);

            impl<$($parameter),+> MapType for $name<$($parameter),+> {
                type Key = $key;
                type Value = $value;
                const KIND: MapKind = MapKind::$kind;
            }
        )+
    };
}

kinds! {
    /// A hash map.
    Hash<K, V>: K, V, Hash;
    /// A hash map that allocates entries on insertion.
    SparseHash<K, V>: K, V, SparseHash;
    /// A longest-prefix-match trie.
    LpmTrie<K, V>: K, V, LpmTrie;
    /// A hash map that evicts the least recently used entries.
    LruHash<K, V>: K, V, LruHash;
    /// An array.
    Array<V>: u32, V, Array;
    /// An array with values for each CPU.
    PerCpuArray<V>: u32, V, PerCpuArray;
    /// An array with 64-bit counters for each CPU.
    Counters<V>: u32, V, Counters;
    /// An array of arrays.
    ArrayOfArrays<V>: u32, u32, ArrayOfMaps;
    /// An array of longest-prefix-match tries.
    ArrayOfTries<K, V>: u32, u32, ArrayOfMaps;
    /// A ring buffer.
    RingBuffer<E>: (), E, RingBuffer;
}

/// An array whose elements are maps.
pub trait Nested: MapType<Key = u32, Value = u32> {}

impl<V> Nested for ArrayOfArrays<V> {}
impl<K, V> Nested for ArrayOfTries<K, V> {}

/// A map whose entries userspace reads and writes by key.
pub trait Keyed: MapType<Key: Pod + Ord, Value: Pod> {}

impl<K: Pod + Ord, V: Pod> Keyed for Hash<K, V> {}
impl<K: Pod + Ord, V: Pod> Keyed for SparseHash<K, V> {}
impl<K: Pod + Ord, V: Pod> Keyed for LpmTrie<K, V> {}
impl<K: Pod + Ord, V: Pod> Keyed for LruHash<K, V> {}

/// A map whose elements userspace reads and writes by index.
pub trait Indexed: MapType<Key = u32, Value: Pod> {}

impl<V: Pod> Indexed for Array<V> {}

/// A map of counters, which userspace reads as the sum over all CPUs.
pub trait Counting: MapType<Key = u32, Value: Pod> {}

impl<V: Pod> Counting for Counters<V> {}

/// Key of an LPM trie: a 32-bit prefix length, followed by the data that it applies to.
pub trait TrieKey {
    /// The data after the length.
    type Data;
}

impl TrieKey for PrefixKey {
    type Data = [u32; 4];
}

impl TrieKey for RouteKey {
    type Data = [u32; 5];
}

/// Value of an inner trie of [`ArrayOfTries`]: one word.
pub trait TrieValue {
    /// The word's type, which a program's prototype of the inner trie declares in place of the
    /// value's type. Before Linux 6.2, the kernel accepts an inner map without BTF only if the
    /// prototype's value is not a structure.
    type Word;
}

impl TrieValue for AclVerdict {
    type Word = u32;
}

/// A map of a program: a row of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSpec {
    /// Name of the map in the object, and of its pin.
    pub name: &'static str,
    /// The kind.
    pub kind: MapKind,
    /// Rust types of key and value, or of the value only.
    pub types: &'static [&'static str],
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The number of entries.
    pub size: MapSize,
    /// The writer.
    pub writer: Writer,
    /// Whether the map is pinned. Otherwise each loaded program has its own.
    pub pinned: bool,
    /// Description of the content.
    pub doc: &'static str,
}

/// The maps of an object, as a type.
pub trait MapList {
    /// The rows.
    const SPECS: &'static [MapSpec];
}

/// The maps of the balancer's programs: [`BALANCER`].
#[derive(Debug)]
pub enum BalancerList {}

impl MapList for BalancerList {
    const SPECS: &'static [MapSpec] = BALANCER;
}

/// The maps of the backend's programs: [`BACKEND`].
#[derive(Debug)]
pub enum BackendList {}

impl MapList for BackendList {
    const SPECS: &'static [MapSpec] = BACKEND;
}

/// A map of the list `L`, with the types of its keys and values.
#[derive(Debug)]
pub struct MapId<L, T> {
    index: usize,
    types: PhantomData<fn() -> (L, T)>,
}

impl<L, T> Clone for MapId<L, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L, T> Copy for MapId<L, T> {}

impl<L: MapList, T: MapType> MapId<L, T> {
    /// The map with this name.
    const fn new(name: &str) -> Self {
        let mut index = 0;
        while !equal(L::SPECS[index].name, name) {
            index += 1;
        }
        Self { index, types: PhantomData }
    }

    /// Position of the row in the list.
    pub const fn index(self) -> usize {
        self.index
    }

    /// The row.
    pub const fn spec(self) -> &'static MapSpec {
        &L::SPECS[self.index]
    }
}

/// Whether two names are equal, in a constant.
const fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// Whether a row's map is pinned.
macro_rules! pinned {
    () => {
        true
    };
    (unpinned) => {
        false
    };
}

/// Declares the [`MapSpec`]s and [`MapId`]s of a list.
macro_rules! specs {
    (
        [$specs:ident $list:ident $ids:ident $of:literal]
        $(
            $(#[doc = $doc:literal])+
            $field:ident $name:ident: $kind:ident<$($type:ty),+>,
            $size:ident $(($($argument:expr),+))?, $writer:ident $(, $unpinned:ident)?;
        )+
    ) => {
        #[doc = concat!("The maps of the ", $of, "'s programs.")]
        pub const $specs: &[MapSpec] = {
            #[allow(unused_imports, reason = "not every list has a map for each limit")]
            use Limit::{Backends, Connections, Services, Vips};

            &[$(MapSpec {
                name: stringify!($name),
                kind: <$kind<$($type),+> as MapType>::KIND,
                types: &[$(stringify!($type)),+],
                key_size: size_of::<<$kind<$($type),+> as MapType>::Key>() as u32,
                value_size: size_of::<<$kind<$($type),+> as MapType>::Value>() as u32,
                size: MapSize::$size $(($($argument),+))?,
                writer: Writer::$writer,
                pinned: pinned!($($unpinned)?),
                doc: concat!($($doc),+),
            }),+]
        };

        #[doc = concat!("The maps of the ", $of, "'s programs, with the types of their entries.")]
        pub mod $ids {
            use super::*;

            $(
                $(#[doc = $doc])+
                pub const $name: MapId<$list, $kind<$($type),+>> = MapId::new(stringify!($name));
            )+
        }
    };
}

crate::balancer_maps!(specs [BALANCER BalancerList balancer "balancer"]);
crate::backend_maps!(specs [BACKEND BackendList backend "backend"]);

//! All types that cross the kernel boundary: keys and values of maps, load-time constants, the flow
//! hash, and counter names.
//!
//! An array entry larger than 8 bytes is never rewritten while a packet may read it, because a
//! reader on another CPU could read a partially written entry. Such an entry is written while no
//! other entry refers to its index. Index 0 means "none" in every array, since the kernel zeroes
//! new arrays.

pub(crate) mod acl;
pub(crate) mod address;
pub(crate) mod backend;
pub mod capture;
pub(crate) mod connection;
pub(crate) mod counters;
pub(crate) mod decapsulation;
pub(crate) mod flow;
pub mod maps;
pub(crate) mod options;
pub(crate) mod pod;
pub(crate) mod prefix;
pub(crate) mod quic;
pub(crate) mod rate;
pub(crate) mod reason;
pub(crate) mod records;
pub(crate) mod settings;
pub(crate) mod siphash;
pub(crate) mod table;
pub(crate) mod vip;
pub(crate) mod vip_sources;

pub use acl::AclVerdict;
pub use address::{Address, Family};
pub use backend::{Backend, Neighbour, NextHop};
pub use capture::{CAPTURE_BURST, CAPTURE_LEN, CaptureEvent, CaptureState};
pub use connection::{Connection, FirstFragment, FragmentKey};
pub use counters::{BackendCounters, ServiceCounters};
pub use decapsulation::{AcceptedSource, Decapsulated, LocalAddress};
pub use flow::{Flow, ICMP, ICMPV6, IPV4_IN_IP, IPV6_IN_IP, Port, TCP, UDP, slot_index};
pub use options::{AddressOptions, Features, VipOptions};
pub use pod::Pod;
pub(crate) use pod::pod;
pub use prefix::{PrefixKey, RouteKey};
pub use quic::{QuicIdLengths, QuicServerKey};
pub use rate::{BucketUpdate, Buckets, ClientKey, Rate, RateKind, TokenRequest};
pub use reason::{Reason, Verdict};
pub use records::{
    BackendRecord, InstanceRecord, MAX_NAME_LEN, Name, PATH_MTU_ERRORS, PathMtuRecord,
    ServiceRecord,
};
pub use settings::Settings;
pub use siphash::siphash;
pub use table::{Slot, TableHead};
pub use vip::{CachedVip, ServiceRef, VipAddress, VipKey};
pub use vip_sources::VipSources;

/// Version of the layout of pinned maps: names, keys, values and their meaning.
///
/// It is a directory name under the instance's pins, and is incremented whenever a map changes in a
/// way that a program or daemon of another version would misread.
pub const LAYOUT_VERSION: u32 = 8;

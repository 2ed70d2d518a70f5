//! The configuration document: the JSON text as plain data. Types and ranges of single values are
//! checked here; conditions on several values are checked by `validate`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_datapath::abi::QuicIdLengths;
use sluice_maglev::TableSize;

use super::limits::{
    MAX_BACKENDS, MAX_BURST, MAX_CONNECTIONS, MAX_MTU, MAX_PRIORITY, MAX_RATE, MAX_SERVICES,
    MAX_VIPS, MAX_WEIGHT, MIN_CONNECTIONS, MIN_MTU, MIN_PATH_MTU,
};
use super::options::{
    FragmentPolicy, HashInput, PingPolicy, TooBigPolicy, Tracking, UnlistedPolicy,
};
use super::prefix::AddressOrPrefix;
use super::syntax::{Bounded, JsonObject, ObjectSyntax, ScalarOrObject, Text, TextSyntax, keyword};
use super::vip::Vip;

/// The only supported version of the document.
pub const VERSION: u32 = 1;

/// The largest number of a QUIC-LB configuration. The next number marks connection IDs without a
/// server ID.
const MAX_ROTATION: u32 = QuicIdLengths::ROTATIONS as u32 - 1;
/// The longest server ID, in octets.
const MAX_SERVER_ID_LENGTH: u32 = QuicIdLengths::MAX_LEN as u32;

/// The version of a document. It is read before the other fields, which may differ in another
/// version.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) version: Option<Value>,
}

impl Header {
    /// Refuses all versions except [`VERSION`].
    pub(super) fn check_version(&self) -> Result<(), String> {
        match &self.version {
            Some(version) if version.as_u64() == Some(VERSION.into()) => Ok(()),
            Some(version) => Err(format!(
                "{version} is not a version that this sluice reads; write \"version\": {VERSION}, or use the sluice that the file was written for"
            )),
            None => Err(format!("missing; write \"version\": {VERSION}")),
        }
    }
}

impl ObjectSyntax for Header {
    const EXPECTED: &'static str = Document::EXPECTED;
    const IGNORES_UNKNOWN_FIELDS: bool = true;
}

/// The configuration of an instance of Sluice, for its balancers and its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Sluice configuration")]
pub struct Document {
    /// Version of the document's format: 1.
    pub version: Bounded<VERSION, VERSION>,
    /// Name of the instance, part of the path of its pins and of its state on the host: 1 to 32
    /// characters of `a-z`, `0-9` and `-`. Default: `edge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[a-z0-9-]{1,32}$", "default" = "edge"))]
    pub instance: Option<String>,
    /// Interfaces on which VIP traffic arrives, each with a name of 1 to 15 bytes, none twice.
    #[schemars(length(min = 1))]
    pub interfaces: Vec<String>,
    /// Priorities of the instance's filters at TC. Default: 100 and 101.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<JsonObject<RawPriority>>,
    /// The network between balancers and backends.
    pub underlay: JsonObject<RawUnderlay>,
    /// Whether backends lower the maximum segment size (MSS) of TCP SYN and SYN-ACK segments, so
    /// that clients' segments fit with an outer header. Default: true.
    #[serde(default = "enabled")]
    pub clamp_mss: bool,
    /// Path of the file with the hash key. A relative path starts at the directory of the
    /// configuration.
    #[schemars(length(min = 1))]
    pub hash_key_file: PathBuf,
    /// Capacities of the kernel's maps. Default: 256 services, 4096 backends, 1024 VIPs, 65536
    /// connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<JsonObject<RawLimits>>,
    /// Path of the file of client prefixes that are denied at all VIPs. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub deny_file: Option<PathBuf>,
    /// Path of the file of client prefixes that are allowed at all VIPs. Others are denied.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub allow_file: Option<PathBuf>,
    /// Hosts that receive encapsulated packets.
    pub backends: Vec<JsonObject<RawBackend>>,
    /// Services.
    pub services: Vec<JsonObject<RawService>>,
    /// Policies for packets to VIP addresses that belong to no service, and for packets from VIP
    /// addresses. Default: the default policy for each VIP address.
    #[serde(default)]
    pub addresses: Vec<JsonObject<RawAddress>>,
}

/// Priorities of filters at TC. Filters of an interface run in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Priority")]
pub struct RawPriority {
    /// Priority of the balancer's filter. Default: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 100))]
    pub lb: Option<Bounded<1, { MAX_PRIORITY }>>,
    /// Priority of a backend's filters, larger than the balancer's. Default: that of the balancer
    /// plus 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Bounded<1, { MAX_PRIORITY }>>,
}

/// The network between balancers and backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Underlay")]
pub struct RawUnderlay {
    /// The balancer's IPv4 address, the source of IPv4 outer headers. At least one of `v4` and `v6`
    /// is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// The balancer's IPv6 address, the source of IPv6 outer headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
    /// Destination UDP port of GUE. Default: 6080.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 6080))]
    pub gue_port: Option<Bounded<1, { u16::MAX as u32 }>>,
    /// MTU of the underlay in bytes, outer header included. Default: the MTU of interfaces and
    /// routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Bounded<{ MIN_MTU }, { MAX_MTU }>>,
    /// The smallest path MTU to a backend that an ICMP error can report, outer header included.
    /// Default: 1280 plus the outer header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_path_mtu: Option<Bounded<{ MIN_PATH_MTU }, { MAX_MTU }>>,
    /// Addresses or prefixes of the routers whose ICMP errors about path MTUs are accepted.
    /// Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub path_mtu_routers: Option<Vec<Text<AddressOrPrefix>>>,
    /// Addresses or prefixes of all balancers' outer headers. Backends drop encapsulated packets
    /// from other sources. Default: any source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub balancers: Option<Vec<Text<AddressOrPrefix>>>,
    /// Prefix from which each flow gets its source address of IPv4 outer headers. Default: `v4` for
    /// all flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4_sources: Option<Text<Ipv4Net>>,
    /// Prefix from which each flow gets its source address of IPv6 outer headers. Default: `v6` for
    /// all flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6_sources: Option<Text<Ipv6Net>>,
}

/// Capacities of the kernel's maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Limits")]
pub struct RawLimits {
    /// Services. Default: 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 256))]
    pub services: Option<Bounded<1, { MAX_SERVICES }>>,
    /// Backends, and QUIC server IDs. Default: 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 4096))]
    pub backends: Option<Bounded<1, { MAX_BACKENDS }>>,
    /// VIPs of all services, plus VIP addresses with `"ping": "forward"`. Default: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 1024))]
    pub vips: Option<Bounded<1, { MAX_VIPS }>>,
    /// Flows in the connection table. Default: 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 65536))]
    pub connections: Option<Bounded<{ MIN_CONNECTIONS }, { MAX_CONNECTIONS }>>,
}

/// A host that receives encapsulated packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Backend")]
pub struct RawBackend {
    /// Unique name: 1 to 63 characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,63}$"))]
    pub name: String,
    /// Unicast address, or one address of each family.
    pub address: ScalarOrObject<IpAddr, AddressPair>,
    /// Whether the backend keeps existing connections and takes no new ones. Default: false.
    #[serde(default)]
    pub draining: bool,
}

/// An address of each family, at least one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct AddressPair {
    /// Destination of IPv4 outer headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// Destination of IPv6 outer headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// VIPs and the backends that serve them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Service")]
pub struct RawService {
    /// Unique name: 1 to 63 characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,63}$"))]
    pub name: String,
    /// VIPs as `address:port/protocol`, none in two services. Port 0 is any port; a prefix in place
    /// of the address is all its addresses. May be empty for the target of a route.
    pub vips: Vec<Text<Vip>>,
    /// Slots of the lookup table: a prime, about 100 for each backend. Default: 65537.
    #[serde(default = "default_table_size")]
    #[schemars(extend("minimum" = 251, "maximum" = 5_000_011))]
    pub table_size: Bounded<0, { u32::MAX }>,
    /// Whether flows are kept in the connection table. Default: `never`.
    #[serde(default, deserialize_with = "keyword")]
    pub tracking: Tracking,
    /// The part of the 5-tuple that selects the slot. Default: `flow`.
    #[serde(default, deserialize_with = "keyword")]
    pub hash: HashInput,
    /// Encapsulation of packets to the service's backends. Default: `ipip`.
    #[serde(default, deserialize_with = "keyword")]
    pub encapsulation: RawEncapsulation,
    /// With `"encapsulation": "gue"`: whether the backends accept UDP over IPv6 without a checksum
    /// (RFC 6935). Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_zero_checksum: Option<bool>,
    /// Rate limits. Default: no limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<JsonObject<RawRates>>,
    /// Treatment of packets that exceed the path MTU with the outer header. Default: `reject`.
    #[serde(default, deserialize_with = "keyword")]
    pub too_big: TooBigPolicy,
    /// Treatment of fragments. Default: `forward`.
    #[serde(default, deserialize_with = "keyword")]
    pub fragments: FragmentPolicy,
    /// Client prefixes that another service's backends serve. Default: none.
    #[serde(default)]
    pub routes: Vec<JsonObject<RawRoute>>,
    /// QUIC-LB configurations. Default: none.
    #[serde(default)]
    pub quic: Vec<JsonObject<RawQuicConfig>>,
    /// Path of the file of client prefixes that are denied at the service's VIPs. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub deny_file: Option<PathBuf>,
    /// Path of the file of client prefixes that are allowed at the service's VIPs. Others are
    /// denied. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub allow_file: Option<PathBuf>,
    /// Backends of the service, none twice.
    #[schemars(length(min = 1, max = 1024))]
    pub backends: Vec<JsonObject<RawServiceBackend>>,
}

/// Encapsulation of packets to a service's backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", rename = "Encapsulation")]
pub enum RawEncapsulation {
    /// IP-in-IP: an outer IP header.
    #[default]
    Ipip,
    /// GUE variant 1: an outer IP header and a UDP header.
    Gue,
}

/// Rate limits of a service. Packets and connections beyond them are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Rates")]
pub struct RawRates {
    /// Packets to the service. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<RawRate>,
    /// New TCP connections (SYN segments) to the service. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<RawRate>,
    /// Packets from one client (an IPv4 address or an IPv6 /64) to the service. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_packets: Option<RawRate>,
    /// New TCP connections from one client to the service. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_new_connections: Option<RawRate>,
    /// Fragments of packets to the service. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragments: Option<RawRate>,
}

/// A rate per second, with a burst of one second's worth unless it is given.
pub type RawRate = ScalarOrObject<PerSecond, RateWithBurst>;

/// A rate per second.
pub type PerSecond = Bounded<1, { MAX_RATE }>;

/// A token bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateWithBurst {
    /// Tokens added per second.
    pub per_second: PerSecond,
    /// Tokens in a full bucket.
    pub burst: Bounded<1, { MAX_BURST }>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "ServiceBackend")]
pub struct RawServiceBackend {
    /// Name of a backend of the instance.
    pub name: String,
    /// Share of the service's flows relative to the other backends; 0 takes none. Default: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 100))]
    pub weight: Option<Bounded<0, { MAX_WEIGHT }>>,
}

/// Client prefixes that another service's backends serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Route")]
pub struct RawRoute {
    /// Client addresses or prefixes, none in two routes of the service. The longest matching prefix
    /// decides.
    #[schemars(length(min = 1))]
    pub sources: Vec<Text<AddressOrPrefix>>,
    /// Name of the service that handles these clients. It has no routes itself.
    pub service: String,
}

/// A QUIC-LB configuration (draft-ietf-quic-load-balancers) with plaintext connection IDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "QuicConfig")]
pub struct RawQuicConfig {
    /// Configuration ID: the upper three bits of a connection ID's first octet. None twice.
    pub rotation: Bounded<0, MAX_ROTATION>,
    /// Length of the configuration's server IDs, in octets.
    pub server_id_length: Bounded<1, MAX_SERVER_ID_LENGTH>,
    /// Server IDs, none twice. A backend may have several.
    #[schemars(length(min = 1))]
    pub server_ids: Vec<JsonObject<RawServerId>>,
}

/// A QUIC server ID and its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "ServerId")]
pub struct RawServerId {
    /// Name of a backend of the service.
    pub backend: String,
    /// Server ID: two hexadecimal digits for each octet.
    pub id: Text<HexOctets>,
}

/// Octets as hexadecimal digits, two for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HexOctets(pub Vec<u8>);

/// A text that is not [`HexOctets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HexError;

impl FromStr for HexOctets {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).ok_or(HexError)?;
        Ok(Self(digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect()))
    }
}

impl fmt::Display for HexOctets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl TextSyntax for HexOctets {
    const EXPECTED: &'static str = "two hexadecimal digits for each octet, such as \"c4605e\"";
    const EXAMPLES: &'static [&'static str] = &["c4605e"];
}

/// Policy for packets to a VIP address that belong to no service, and for packets from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Address")]
pub struct RawAddress {
    /// VIP address or prefix as written in a service's `vips`, none twice.
    pub address: Text<AddressOrPrefix>,
    /// Treatment of ICMP echo requests. Default: `answer`.
    #[serde(default, deserialize_with = "keyword")]
    pub ping: PingPolicy,
    /// Treatment of TCP and UDP to a port that no VIP has. Default: `pass`.
    #[serde(default, deserialize_with = "keyword")]
    pub unlisted: UnlistedPolicy,
    /// Whether `"unlisted": "drop"` is accepted although the host itself has the address. Default:
    /// false.
    #[serde(default)]
    pub allow_host_address: bool,
    /// Whether packets from this address to VIPs are accepted. Otherwise, they are dropped.
    /// Default: false.
    #[serde(default)]
    pub allow_as_source: bool,
}

impl ObjectSyntax for Document {
    const EXPECTED: &'static str = "an object: { \"version\": 1, ... }";
}
impl ObjectSyntax for RawPriority {
    const EXPECTED: &'static str = "an object such as { \"lb\": 100, \"backend\": 101 }";
}
impl ObjectSyntax for RawUnderlay {
    const EXPECTED: &'static str =
        "an object such as { \"v4\": \"192.0.2.1\", \"v6\": \"2001:db8::1\" }";
}
impl ObjectSyntax for RawLimits {
    const EXPECTED: &'static str = "an object such as { \"connections\": 65536 }";
}
impl ObjectSyntax for RawBackend {
    const EXPECTED: &'static str =
        "an object such as { \"name\": \"web-1\", \"address\": \"10.0.1.11\" }";
}
impl ObjectSyntax for AddressPair {
    const EXPECTED: &'static str = "an IP address such as \"10.0.1.11\", or { \"v4\": \"10.0.1.11\", \"v6\": \"2001:db8:1::11\" } for a backend with both";
}
impl ObjectSyntax for RawService {
    const EXPECTED: &'static str =
        "an object such as { \"name\": \"web\", \"vips\": [...], \"backends\": [...] }";
}
impl ObjectSyntax for RawRates {
    const EXPECTED: &'static str = "an object such as { \"source_new_connections\": 50 }";
}
impl ObjectSyntax for RateWithBurst {
    const EXPECTED: &'static str =
        "a whole number a second, from 1 to 10000000, or { \"per_second\": 50, \"burst\": 200 }";
}
impl ObjectSyntax for RawServiceBackend {
    const EXPECTED: &'static str = "an object such as { \"name\": \"web-1\", \"weight\": 100 }";
}
impl ObjectSyntax for RawRoute {
    const EXPECTED: &'static str =
        "an object such as { \"sources\": [\"198.51.100.0/24\"], \"service\": \"web-near\" }";
}
impl ObjectSyntax for RawQuicConfig {
    const EXPECTED: &'static str = "an object such as { \"rotation\": 0, \"server_id_length\": 3, \"server_ids\": [{ \"backend\": \"web-1\", \"id\": \"c4605e\" }] }";
}
impl ObjectSyntax for RawServerId {
    const EXPECTED: &'static str =
        "an object such as { \"backend\": \"web-1\", \"id\": \"c4605e\" }";
}
impl ObjectSyntax for RawAddress {
    const EXPECTED: &'static str =
        "an object such as { \"address\": \"203.0.113.10\", \"ping\": \"host\" }";
}

const fn enabled() -> bool {
    true
}

const fn default_table_size() -> Bounded<0, { u32::MAX }> {
    Bounded(TableSize::DEFAULT.get())
}

/// The JSON Schema (draft 2020-12) of [`Document`].
pub fn schema() -> Schema {
    let join_lines = RecursiveTransform(|schema: &mut Schema| {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = description.replace('\n', " ");
        }
    });
    let settings = SchemaSettings::draft2020_12().with_transform(join_lines);
    settings.into_generator().into_root_schema_for::<Document>()
}

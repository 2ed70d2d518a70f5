//! A checked configuration. [`Config::parse`] is its only constructor, so a [`Config`] never holds
//! an invalid value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_datapath::Family;
use sluice_datapath::abi::{Rate, RateKind};
use sluice_datapath::wire::header::Udp;
use sluice_maglev::TableSize;

use super::options::{
    FragmentPolicy, HashInput, PingPolicy, TooBigPolicy, Tracking, UnlistedPolicy,
};
use super::vip::Vip;
use crate::capacities::Capacities;

/// The configuration of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(super) instance: String,
    pub(super) interfaces: Vec<String>,
    pub(super) priority: Priority,
    pub(super) underlay: Underlay,
    pub(super) path_mtu_routers: Vec<IpNet>,
    pub(super) balancers: Vec<IpNet>,
    pub(super) clamp_mss: bool,
    pub(super) hash_key_file: PathBuf,
    pub(super) capacities: Capacities,
    pub(super) acl_files: AclFiles,
    pub(super) backends: Vec<BackendConfig>,
    pub(super) services: Vec<ServiceConfig>,
    pub(super) addresses: Vec<AddressPolicy>,
}

impl Config {
    /// The instance's name, part of the path of its pins and of its state on the host.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The interfaces on which VIP traffic arrives: at least one, none twice. They need not exist
    /// on this host.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The priorities of the instance's filters at TC.
    #[must_use]
    pub const fn priority(&self) -> Priority {
        self.priority
    }

    /// The network between balancers and backends.
    #[must_use]
    pub const fn underlay(&self) -> Underlay {
        self.underlay
    }

    /// The routers whose ICMP errors about path MTUs are accepted; empty for all.
    #[must_use]
    pub fn path_mtu_routers(&self) -> &[IpNet] {
        &self.path_mtu_routers
    }

    /// The sources of outer headers that backends accept, which include those of this balancer;
    /// empty for any.
    #[must_use]
    pub fn balancers(&self) -> &[IpNet] {
        &self.balancers
    }

    /// Whether backends clamp the MSS of SYN and SYN-ACK segments to what fits with an outer
    /// header.
    #[must_use]
    pub const fn clamp_mss(&self) -> bool {
        self.clamp_mss
    }

    /// The path of the hash key.
    #[must_use]
    pub fn hash_key_file(&self) -> &Path {
        &self.hash_key_file
    }

    /// The capacities of the maps. The configuration fits into them.
    #[must_use]
    pub const fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// The source ACLs of all VIPs.
    #[must_use]
    pub const fn acl_files(&self) -> &AclFiles {
        &self.acl_files
    }

    /// All backends in document order. Names and addresses are unique.
    #[must_use]
    pub fn backends(&self) -> &[BackendConfig] {
        &self.backends
    }

    /// All services in document order. Names and VIPs are unique.
    #[must_use]
    pub fn services(&self) -> &[ServiceConfig] {
        &self.services
    }

    /// Policies of VIP addresses, at most one for each.
    #[must_use]
    pub fn addresses(&self) -> &[AddressPolicy] {
        &self.addresses
    }
}

/// Priorities of filters at TC, from 1. Filters of an interface run in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// The priority of the balancer's filter.
    pub lb: u16,
    /// The priority of a backend's filters. It is larger than that of the balancer: on a host with
    /// both roles, a packet that the backend has decapsulated must not reach the balancer, which
    /// would encapsulate it again.
    pub backend: u16,
}

/// The network between balancers and backends. It has an address of at least one family, and its
/// addresses are unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The balancer's IPv4 address, the source of IPv4 outer headers.
    pub v4: Option<Ipv4Addr>,
    /// The balancer's IPv6 address, the source of IPv6 outer headers.
    pub v6: Option<Ipv6Addr>,
    /// The prefix from which each flow gets its IPv4 source address in place of `v4`. No bits
    /// beyond its length are set.
    pub v4_sources: Option<Ipv4Net>,
    /// The prefix from which each flow gets its IPv6 source address in place of `v6`. At most the
    /// last 32 bits differ between flows.
    pub v6_sources: Option<Ipv6Net>,
    /// The destination UDP port of GUE, in host byte order, not 0.
    pub gue_port: u16,
    /// The MTU in bytes, outer header included, from [`MIN_MTU`](super::limits::MIN_MTU) to
    /// [`MAX_MTU`](super::limits::MAX_MTU). `None`: the MTU of interfaces and routes.
    pub mtu: Option<u32>,
    /// The smallest path MTU to a backend that an ICMP error can report, outer header included.
    /// `None`: 1,280 bytes and the outer header.
    pub min_path_mtu: Option<u32>,
}

impl Underlay {
    /// The balancer's addresses, and the prefixes of its source addresses.
    pub fn own_prefixes(self) -> impl Iterator<Item = IpNet> {
        let addresses = [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .map(IpNet::from);
        addresses.chain(self.v4_sources.map(IpNet::V4)).chain(self.v6_sources.map(IpNet::V6))
    }

    /// The balancer's address in the family of `address`.
    #[must_use]
    pub fn address_for(self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// The family of the outer header of a packet of family `inner` to a backend, if there is a
    /// route: `inner` if underlay and backend both have an address of it, else the other family.
    /// `None` when no family is common to both.
    #[must_use]
    pub fn outer_family(self, backend: &BackendConfig, inner: Family) -> Option<Family> {
        let is_common = |family: &Family| match family {
            Family::V4 => self.v4.is_some() && backend.v4.is_some(),
            Family::V6 => self.v6.is_some() && backend.v6.is_some(),
        };
        [inner, inner.other()].into_iter().find(is_common)
    }
}

/// The files of a pair of source ACLs. Their contents are not part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclFiles {
    /// Prefixes of denied clients.
    pub deny: Option<PathBuf>,
    /// Prefixes of allowed clients. All others are denied.
    pub allow: Option<PathBuf>,
}

impl AclFiles {
    /// Whether there is neither file.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.deny.is_none() && self.allow.is_none()
    }
}

/// A host that receives encapsulated packets. It has an address of at least one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    pub(super) name: String,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    pub(super) draining: bool,
}

impl BackendConfig {
    /// The unique name: 1 to 63 characters of `A-Za-z0-9._-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The destination of IPv4 outer headers.
    #[must_use]
    pub const fn v4(&self) -> Option<Ipv4Addr> {
        self.v4
    }

    /// The destination of IPv6 outer headers.
    #[must_use]
    pub const fn v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// The addresses of both families, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether the backend keeps existing connections and takes no new ones.
    #[must_use]
    pub const fn draining(&self) -> bool {
        self.draining
    }
}

/// VIPs and the backends that serve them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    pub(super) name: String,
    pub(super) vips: Vec<Vip>,
    pub(super) table_size: TableSize,
    pub(super) tracking: Tracking,
    pub(super) hash: HashInput,
    pub(super) encapsulation: Encapsulation,
    pub(super) rate_limits: RateLimits,
    pub(super) too_big: TooBigPolicy,
    pub(super) fragments: FragmentPolicy,
    pub(super) acl_files: AclFiles,
    pub(super) routes: Vec<RouteConfig>,
    pub(super) quic: Vec<QuicConfig>,
    pub(super) backends: Vec<ServiceBackend>,
}

impl ServiceConfig {
    /// The unique name: 1 to 63 characters of `A-Za-z0-9._-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The VIPs: at least one, unless the service is the target of a route.
    #[must_use]
    pub fn vips(&self) -> &[Vip] {
        &self.vips
    }

    /// The number of slots of the lookup table.
    #[must_use]
    pub const fn table_size(&self) -> TableSize {
        self.table_size
    }

    /// Whether flows are kept in the connection table.
    #[must_use]
    pub const fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// The part of the 5-tuple that selects the slot.
    #[must_use]
    pub const fn hash(&self) -> HashInput {
        self.hash
    }

    /// The encapsulation of packets to the backends.
    #[must_use]
    pub const fn encapsulation(&self) -> Encapsulation {
        self.encapsulation
    }

    /// The rate limits of the service and of each client.
    #[must_use]
    pub const fn rate_limits(&self) -> &RateLimits {
        &self.rate_limits
    }

    /// The treatment of packets that exceed the path MTU with the outer header.
    #[must_use]
    pub const fn too_big(&self) -> TooBigPolicy {
        self.too_big
    }

    /// The treatment of fragments.
    #[must_use]
    pub const fn fragments(&self) -> FragmentPolicy {
        self.fragments
    }

    /// The source ACLs of the service's VIPs.
    #[must_use]
    pub const fn acl_files(&self) -> &AclFiles {
        &self.acl_files
    }

    /// Clients of the VIPs that another service handles. No prefix occurs twice.
    #[must_use]
    pub fn routes(&self) -> &[RouteConfig] {
        &self.routes
    }

    /// QUIC-LB configurations. No rotation occurs twice.
    #[must_use]
    pub fn quic(&self) -> &[QuicConfig] {
        &self.quic
    }

    /// The backends: none twice, at most
    /// [`MAX_SERVICE_BACKENDS`](super::limits::MAX_SERVICE_BACKENDS), at least one with a weight
    /// above 0. Each has an address of a family that the underlay has.
    #[must_use]
    pub fn backends(&self) -> &[ServiceBackend] {
        &self.backends
    }
}

/// The encapsulation of packets to a service's backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP-in-IP: an outer IP header.
    #[default]
    Ipip,
    /// GUE variant 1: an outer IP header and a UDP header.
    Gue {
        /// Whether the backends accept UDP over IPv6 without a checksum (RFC 6935).
        zero_checksum: bool,
    },
}

impl Encapsulation {
    /// Whether this is [`Self::Gue`].
    #[must_use]
    pub const fn is_gue(self) -> bool {
        matches!(self, Self::Gue { .. })
    }

    /// Bytes in addition to the outer IP header.
    #[must_use]
    pub const fn overhead(self) -> u32 {
        if self.is_gue() { Udp::SIZE as u32 } else { 0 }
    }
}

/// The rate limits of a service. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Packets to the service.
    pub packets: Option<Rate>,
    /// New TCP connections to the service.
    pub new_connections: Option<Rate>,
    /// Packets from one client.
    pub source_packets: Option<Rate>,
    /// New TCP connections from one client.
    pub source_new_connections: Option<Rate>,
    /// Fragments of packets to the service.
    pub fragments: Option<Rate>,
}

impl RateLimits {
    /// The rate of a limit, [`Rate::NONE`] for no limit.
    #[must_use]
    pub fn rate(&self, limit: RateKind) -> Rate {
        let rate = match limit {
            RateKind::Packets => self.packets,
            RateKind::NewConnections => self.new_connections,
            RateKind::SourcePackets => self.source_packets,
            RateKind::SourceNewConnections => self.source_new_connections,
            RateKind::Fragments => self.fragments,
        };
        rate.unwrap_or(Rate::NONE)
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A route: clients of a service's VIPs that another service handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The clients' addresses. The longest matching prefix of a service decides.
    pub clients: IpNet,
    /// The index in [`Config::services`] of the service that handles them: another service than the
    /// one with the route, and without routes itself.
    pub service: usize,
}

/// A QUIC-LB configuration with plaintext connection IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    pub(super) rotation: u8,
    pub(super) servers: Vec<(Vec<u8>, usize)>,
}

impl QuicConfig {
    /// The server IDs: the configuration ID, 0 to 6; the server ID, 1 to 15 octets, of one length
    /// in the configuration; and the index of its backend in [`Config::backends`].
    pub fn server_ids(&self) -> impl Iterator<Item = (u8, Vec<u8>, usize)> {
        self.servers.iter().map(|(id, backend)| (self.rotation, id.clone(), *backend))
    }
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceBackend {
    pub(super) backend: usize,
    pub(super) weight: u32,
}

impl ServiceBackend {
    /// The backend's index in [`Config::backends`].
    #[must_use]
    pub const fn backend(&self) -> usize {
        self.backend
    }

    /// The share of the service's flows relative to the other backends, 0 to
    /// [`MAX_WEIGHT`](super::limits::MAX_WEIGHT). A backend with weight 0 takes none.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

/// The policy for packets to a VIP address or prefix that belong to no service, and for packets
/// from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPolicy {
    pub(super) prefix: IpNet,
    pub(super) ping: PingPolicy,
    pub(super) unlisted: UnlistedPolicy,
    pub(super) allow_host_address: bool,
    pub(super) allow_as_source: bool,
}

impl AddressPolicy {
    /// The VIP address or prefix, equal to that of at least one VIP.
    #[must_use]
    pub const fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The treatment of ICMP echo requests.
    #[must_use]
    pub const fn ping(&self) -> PingPolicy {
        self.ping
    }

    /// The treatment of TCP and UDP to a port that no VIP has.
    #[must_use]
    pub const fn unlisted(&self) -> UnlistedPolicy {
        self.unlisted
    }

    /// Whether unlisted ports may be dropped although the host itself has the address.
    #[must_use]
    pub const fn allow_host_address(&self) -> bool {
        self.allow_host_address
    }

    /// Whether packets from the address to VIPs are accepted.
    #[must_use]
    pub const fn allow_as_source(&self) -> bool {
        self.allow_as_source
    }
}

//! The configuration: what was typed (serde structs) becomes what was meant ([`Config`]).
//!
//! Everything is checked on the way, before anything on the host is touched: a [`Config`] holds no
//! bad value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use sluice_datapath::Family;
use sluice_datapath::header::Udp;
use sluice_datapath::rates::{Limit, Rate};
use sluice_maglev::TableSize;

mod address;
mod document;
mod error;
pub mod limits;
mod names;
mod policy;
mod quic;
mod routes;
mod size;
#[cfg(test)]
mod tests;
mod validate;
mod vip;

pub use error::ConfigError;
pub use limits::Limits;
pub use names::{DEFAULT_INSTANCE, instance_name, interface_name};
pub use policy::{AddressPolicy, Ping, Unlisted};
pub use quic::QuicConfig;
pub use routes::Route;
pub use size::TooBig;
pub use vip::{Protocol, Vip, VipError};

/// A configuration that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    instance: String,
    interfaces: Vec<String>,
    underlay: Underlay,
    clamp_mss: bool,
    hash_key_file: PathBuf,
    limits: Limits,
    sources: SourceLists,
    backends: Vec<Backend>,
    services: Vec<Service>,
    addresses: Vec<AddressPolicy>,
}

/// The network between balancers and backends: the balancer's own addresses in it, the sources of
/// outer headers, at least one of which is there and both of which are unicast; and what it
/// carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The source of IPv4-in-IPv4.
    pub v4: Option<Ipv4Addr>,
    /// The source of IPv6-in-IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Where sources of IPv4 outer headers are taken from instead, another for each flow; has no
    /// bits beyond its length.
    pub v4_sources: Option<Ipv4Net>,
    /// The same of IPv6. Flows differ in its last 32 bits at most.
    pub v6_sources: Option<Ipv6Net>,
    /// The destination port of GUE, not 0.
    pub gue_port: u16,
    /// The largest packet that all of it carries, in bytes with the outer header,
    /// [`limits::MIN_MTU`] to [`limits::MAX_MTU`]; `None` where interfaces and routes tell.
    pub mtu: Option<u32>,
}

/// A host that receives encapsulated packets. It has an address of at least one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    name: String,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    draining: bool,
}

/// A service: a name, its VIPs and its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    name: String,
    vips: Vec<Vip>,
    table_size: TableSize,
    tracking: Tracking,
    hash: Hash,
    encapsulation: Encapsulation,
    rates: Rates,
    too_big: TooBig,
    sources: SourceLists,
    routes: Vec<Route>,
    quic: Vec<QuicConfig>,
    backends: Vec<ServiceBackend>,
}

/// The rates of a service, none of which need be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// All its packets.
    pub packets: Option<Rate>,
    /// The TCP connections that are opened to it.
    pub new_flows: Option<Rate>,
    /// The packets of each source to it.
    pub source_packets: Option<Rate>,
    /// The TCP connections that each source opens to it.
    pub source_new_flows: Option<Rate>,
}

impl Rates {
    /// What is said of a limit: no limit when nothing is.
    #[must_use]
    pub fn of(&self, limit: Limit) -> Rate {
        let said = match limit {
            Limit::Packets => self.packets,
            Limit::NewFlows => self.new_flows,
            Limit::SourcePackets => self.source_packets,
            Limit::SourceNewFlows => self.source_new_flows,
        };
        said.unwrap_or(Rate::NONE)
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The files that say which sources may come: of a service, or of all. They are read by `lists`,
/// not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceLists {
    /// Sources that may not come.
    pub deny: Option<PathBuf>,
    /// The only sources that may come.
    pub allow: Option<PathBuf>,
}

impl SourceLists {
    /// Whether there is neither list.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.deny.is_none() && self.allow.is_none()
    }
}

/// A backend as one service uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceBackend {
    backend: usize,
    weight: u32,
}

/// Whether a service's flows are kept in the connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// Every flow is: it stays with its backend when the lookup table changes, on this balancer.
    Always,
    /// None is: the lookup table alone decides.
    #[default]
    Never,
}

/// What selects a flow's slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hash {
    /// The 5-tuple: every connection for itself.
    #[default]
    Flow,
    /// All of it but the client's port: a client's connections to one VIP stay together.
    Client,
    /// The client's address alone: a client has one backend at all VIPs of the service.
    Source,
}

/// How a service's packets travel to its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// Directly behind an outer IP header.
    #[default]
    Ipip,
    /// Behind a UDP header as well (GUE variant 1).
    Gue {
        /// Whether the backends take UDP over IPv6 without a checksum (RFC 6935).
        zero_checksum: bool,
    },
}

impl Encapsulation {
    /// Whether it is GUE.
    #[must_use]
    pub const fn is_gue(self) -> bool {
        matches!(self, Self::Gue { .. })
    }

    /// Bytes that it needs beside the outer IP header.
    #[must_use]
    pub const fn overhead(self) -> u32 {
        if self.is_gue() { Udp::SIZE as u32 } else { 0 }
    }
}

impl Config {
    /// Checks `text`, the contents of `file`; does no I/O. A relative `hash_key_file` is taken from
    /// `file`'s directory.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing that is wrong: JSON, then `version`, then fields, types
    /// and ranges in document order, then what needs more than one value in the order of the fields
    /// in this module's structs.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let header: document::Header = read(text, file)?;
        validate::check_version(header.version.as_ref(), file)?;
        validate::config(read(text, file)?, file)
    }

    /// The instance's name, `edge` unless configured: names its directory of pins and its state on
    /// the host.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The interfaces whose ingress is balanced: at least one, no two the same. They need not exist
    /// on this host.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The network between balancers and backends.
    #[must_use]
    pub const fn underlay(&self) -> Underlay {
        self.underlay
    }

    /// Whether backends make SYN-ACKs tell clients a maximum segment size that fits with an outer
    /// header.
    #[must_use]
    pub const fn clamp_mss(&self) -> bool {
        self.clamp_mss
    }

    /// The file that holds the hash key.
    #[must_use]
    pub fn hash_key_file(&self) -> &Path {
        &self.hash_key_file
    }

    /// The capacities of the maps; the configuration fits in them.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The lists of sources that count for every VIP.
    #[must_use]
    pub const fn sources(&self) -> &SourceLists {
        &self.sources
    }

    /// All backends, in the order they were written; names and addresses are unique.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// All services, in the order they were written; names and VIPs are unique.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// What becomes of packets that no VIP takes, for those VIP addresses for which it was written;
    /// no two for one address.
    #[must_use]
    pub fn addresses(&self) -> &[AddressPolicy] {
        &self.addresses
    }
}

impl Underlay {
    /// All that is the balancer's own: its addresses, and the prefixes that sources are taken from.
    pub fn own(self) -> impl Iterator<Item = IpNet> {
        let addresses = [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .map(IpNet::from);
        addresses.chain(self.v4_sources.map(IpNet::V4)).chain(self.v6_sources.map(IpNet::V6))
    }

    /// The address of the same family as `address`.
    #[must_use]
    pub fn like(self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// The family of the outer header in front of a packet of the family `inner` to a backend,
    /// where there is a route: its own if both ends have an address of it, else the other. `None`
    /// when no packet can reach the backend.
    #[must_use]
    pub fn outer(self, backend: &Backend, inner: Family) -> Option<Family> {
        let has = |family: &Family| match family {
            Family::V4 => self.v4.is_some() && backend.v4.is_some(),
            Family::V6 => self.v6.is_some() && backend.v6.is_some(),
        };
        [inner, inner.other()].into_iter().find(has)
    }
}

impl Backend {
    /// The backend's name, its identity: 1 to 63 characters of `A-Za-z0-9._-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where IPv4 packets for it are encapsulated to.
    #[must_use]
    pub const fn v4(&self) -> Option<Ipv4Addr> {
        self.v4
    }

    /// Where IPv6 packets for it are encapsulated to.
    #[must_use]
    pub const fn v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// Its one or two addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether it keeps old flows and takes no new ones.
    #[must_use]
    pub const fn draining(&self) -> bool {
        self.draining
    }
}

impl Service {
    /// The service's name: 1 to 63 characters of `A-Za-z0-9._-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its VIPs: at least one, unless another service's routes lead to it.
    #[must_use]
    pub fn vips(&self) -> &[Vip] {
        &self.vips
    }

    /// The number of slots of its lookup table.
    #[must_use]
    pub const fn table_size(&self) -> TableSize {
        self.table_size
    }

    /// Whether its flows are kept in the connection table.
    #[must_use]
    pub const fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// What selects a flow's slot.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// How its packets travel to its backends.
    #[must_use]
    pub const fn encapsulation(&self) -> Encapsulation {
        self.encapsulation
    }

    /// How much it, and each of its sources, may get.
    #[must_use]
    pub const fn rates(&self) -> &Rates {
        &self.rates
    }

    /// What becomes of packets that do not fit with an outer header.
    #[must_use]
    pub const fn too_big(&self) -> TooBig {
        self.too_big
    }

    /// The lists of sources that count for its VIPs alone.
    #[must_use]
    pub const fn sources(&self) -> &SourceLists {
        &self.sources
    }

    /// Its clients that are other services', no prefix twice.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Its configurations of QUIC connection IDs, no rotation twice.
    #[must_use]
    pub fn quic(&self) -> &[QuicConfig] {
        &self.quic
    }

    /// Its backends, no two the same, at most [`limits::MAX_SERVICE_BACKENDS`], at least one with a
    /// weight above 0. Each has an address of a family that the underlay has, too.
    #[must_use]
    pub fn backends(&self) -> &[ServiceBackend] {
        &self.backends
    }
}

impl ServiceBackend {
    /// The backend's index in [`Config::backends`].
    #[must_use]
    pub const fn backend(&self) -> usize {
        self.backend
    }

    /// Its share of the service's flows relative to the other backends', 0 to
    /// [`limits::MAX_WEIGHT`]; 0 takes none.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }
}

/// `text` as a `T`, with the place of what does not fit.
fn read<'de, T: Deserialize<'de> + document::Example>(
    text: &'de str,
    file: &Path,
) -> Result<T, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let document::Object(value) = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ConfigError::json(file, &error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| ConfigError::json(file, ".", &error))?;
    Ok(value)
}

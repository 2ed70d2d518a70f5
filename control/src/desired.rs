//! The desired state of the maps: the configuration with its lookup tables.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use siphasher::sip::SipHasher24;
use sluice_datapath::abi::{AddressOptions, Features, VipOptions, VipSources};
use sluice_maglev::{BuildError, Lists, Member, Seed, Table};

use crate::config::{
    AddressPolicy, Config, Encapsulation, FragmentPolicy, HashInput, PingPolicy, QuicConfig,
    ServiceConfig, TooBigPolicy, Tracking, UnlistedPolicy, Vip,
};

/// Length of the precomputed preference lists. While fewer backends than this are draining, the
/// owner of a slot is read from a dense table.
const LIST_LENGTH: usize = 4;

/// The desired state of the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Backends, in the order of the configuration.
    pub backends: Vec<DesiredBackend>,
    /// Services, in the order of the configuration.
    pub services: Vec<DesiredService>,
    /// Options of the VIP addresses that have any.
    pub addresses: BTreeMap<IpNet, AddressOptions>,
    /// Whether programs check the global source ACL: it is configured, and in its map.
    pub global_acl: bool,
    /// Whether a service has a rate of fragments.
    pub fragment_rates: bool,
}

/// The desired state of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredBackend {
    /// The unique name.
    pub name: String,
    /// The destination of IPv4 outer headers.
    pub v4: Option<Ipv4Addr>,
    /// The destination of IPv6 outer headers.
    pub v6: Option<Ipv6Addr>,
    /// Whether the backend keeps existing connections and takes no new ones.
    pub draining: bool,
}

/// The desired state of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredService {
    /// The unique name.
    pub name: String,
    /// The VIPs.
    pub vips: Vec<Vip>,
    /// The options of the VIPs' entries.
    pub options: VipOptions,
    /// Routes: the clients, and the position in [`Desired::services`] of the service that handles
    /// them. That service has no routes.
    pub routes: Vec<(IpNet, usize)>,
    /// QUIC server IDs: the QUIC-LB configuration ID, the server ID, and the position of its
    /// backend in [`Desired::backends`]. Server IDs of one configuration have the same length.
    pub server_ids: Vec<(u8, Vec<u8>, usize)>,
    /// Whether flows are kept in the connection table.
    pub tracked: bool,
    /// The owner of each slot: a position in [`Desired::backends`].
    pub owners: Vec<usize>,
    /// Digest of the owners' names in slot order, equal on balancers with equal lookup tables.
    pub digest: u64,
}

impl Desired {
    /// The program features that the state needs.
    pub fn features(&self) -> Features {
        let vips = || self.services.iter().flat_map(|service| &service.vips);
        let hashed = |service: &DesiredService| {
            service.options.has(VipOptions::HASH_CLIENT)
                || service.options.has(VipOptions::HASH_SOURCE)
        };
        let any = |option| self.services.iter().any(|service| service.options.has(option));
        // Always present, so that a capture starts without a replacement of the program.
        Features::CAPTURE
            .with_if(vips().any(Vip::is_prefix), Features::PREFIXES)
            .with_if(vips().any(|vip| vip.port() == 0), Features::ANY_PORT)
            .with_if(self.services.iter().any(hashed), Features::HASH_FIELDS)
            .with_if(self.global_acl, Features::GLOBAL_ACL)
            .with_if(any(VipOptions::ACL), Features::SERVICE_ACLS)
            .with_if(any(VipOptions::RATE_LIMITED), Features::RATES)
            .with_if(any(VipOptions::GUE), Features::GUE)
            .with_if(any(VipOptions::DROP_TOO_BIG), Features::DROP_TOO_BIG)
            .with_if(any(VipOptions::RESEGMENT), Features::RESEGMENT)
            .with_if(
                any(VipOptions::DROP_FRAGMENTS) || self.fragment_rates,
                Features::FRAGMENT_LIMITS,
            )
            .with_if(any(VipOptions::ROUTED), Features::ROUTES)
            .with_if(any(VipOptions::QUIC), Features::QUIC)
    }

    /// The blocks of the VIP addresses from which packets to VIPs are dropped.
    pub fn vip_sources(&self) -> VipSources {
        let prefixes = self.services.iter().flat_map(|service| &service.vips).map(Vip::prefix);
        let allowed = |prefix: &IpNet| {
            let options = self.addresses.get(prefix);
            options.is_some_and(|options| options.has(AddressOptions::ALLOW_AS_SOURCE))
        };
        prefixes
            .filter(|prefix| !allowed(prefix))
            .fold(VipSources::NONE, |all, prefix| all.with(prefix.network(), prefix.prefix_len()))
    }

    /// The state that `config` describes. Balancers with equal configurations and seeds get equal
    /// states.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with the service's name. It cannot occur for a checked configuration.
    pub fn new(config: &Config, seed: &Seed) -> Result<Self, (String, BuildError)> {
        let backends = config.backends().iter().map(|backend| DesiredBackend {
            name: backend.name().to_owned(),
            v4: backend.v4(),
            v6: backend.v6(),
            draining: backend.draining(),
        });
        let routes_to_server_ids = |service: &ServiceConfig| {
            service.routes().iter().any(|route| !config.services()[route.service].quic().is_empty())
        };
        let services = config.services().iter().map(|service| {
            let owners = owners(config, service, seed)
                .map_err(|error| (service.name().to_owned(), error))?;
            let digest = digest(owners.iter().map(|&owner| config.backends()[owner].name()));
            Ok(DesiredService {
                name: service.name().to_owned(),
                vips: service.vips().to_vec(),
                options: match service.hash() {
                    HashInput::Flow => VipOptions::NONE,
                    HashInput::Client => VipOptions::HASH_CLIENT,
                    HashInput::Source => VipOptions::HASH_SOURCE,
                }
                .with_if(!service.rate_limits().is_empty(), VipOptions::RATE_LIMITED)
                .with_if(service.encapsulation().is_gue(), VipOptions::GUE)
                .with_if(
                    service.encapsulation() == Encapsulation::Gue { zero_checksum: true },
                    VipOptions::ZERO_UDP_CHECKSUM,
                )
                .with_if(service.too_big() == TooBigPolicy::Drop, VipOptions::DROP_TOO_BIG)
                .with_if(service.too_big() == TooBigPolicy::Resegment, VipOptions::RESEGMENT)
                .with_if(service.fragments() == FragmentPolicy::Drop, VipOptions::DROP_FRAGMENTS)
                .with_if(!service.routes().is_empty(), VipOptions::ROUTED)
                .with_if(
                    !service.quic().is_empty() || routes_to_server_ids(service),
                    VipOptions::QUIC,
                ),
                server_ids: service.quic().iter().flat_map(QuicConfig::server_ids).collect(),
                routes: service
                    .routes()
                    .iter()
                    .map(|route| (route.clients, route.service))
                    .collect(),
                tracked: service.tracking() == Tracking::Always,
                owners,
                digest,
            })
        });
        let services = services.collect::<Result<_, _>>()?;
        let addresses = config.addresses().iter().map(|policy| (policy.prefix(), options(policy)));
        Ok(Self {
            backends: backends.collect(),
            services,
            addresses: addresses.collect(),
            global_acl: false,
            fragment_rates: config
                .services()
                .iter()
                .any(|service| service.rate_limits().fragments.is_some()),
        })
    }
}

/// The options of a VIP address's entry.
fn options(policy: &AddressPolicy) -> AddressOptions {
    AddressOptions::NONE
        .with_if(policy.unlisted() == UnlistedPolicy::Drop, AddressOptions::DROP_NO_SERVICE)
        .with_if(policy.ping() == PingPolicy::Host, AddressOptions::PING_HOST)
        .with_if(policy.ping() == PingPolicy::Forward, AddressOptions::PING_FORWARD)
        .with_if(policy.allow_as_source(), AddressOptions::ALLOW_AS_SOURCE)
}

/// The owner of each slot: the first backend of the slot's preference list that is not draining, or
/// the first backend when all are draining.
///
/// The preference lists depend on the set of backends and their weights only, so draining a backend
/// moves its slots and no others.
fn owners(config: &Config, service: &ServiceConfig, seed: &Seed) -> Result<Vec<usize>, BuildError> {
    let backends = service.backends();
    let members: Vec<_> = backends
        .iter()
        .map(|member| Member::new(config.backends()[member.backend()].name(), member.weight()))
        .collect();
    let table = Table::build(&members, service.table_size(), seed)?;
    let draining =
        |member: u16| config.backends()[backends[usize::from(member)].backend()].draining();
    let any_active =
        (0..).zip(backends).any(|(member, backend)| backend.weight() > 0 && !draining(member));
    let chosen = Lists::new(&table, LIST_LENGTH).choose(|member| !draining(member));
    let owners = (0..).zip(chosen).map(|(slot, listed)| {
        let member =
            listed.or_else(|| any_active.then(|| first_active(&table, slot, draining)).flatten());
        let member = member.unwrap_or_else(|| table.owner(slot));
        backends[usize::from(member)].backend()
    });
    Ok(owners.collect())
}

/// The first member of a slot's preference list that is not draining, where the first
/// [`LIST_LENGTH`] members are.
fn first_active(table: &Table, slot: u32, draining: impl Fn(u16) -> bool) -> Option<u16> {
    // The whole list is expensive when there are many members, and one of the next few is usually
    // active.
    let mut length = LIST_LENGTH;
    loop {
        length *= 2;
        let list = table.preference_list(slot, length);
        let found = list.iter().copied().find(|member| !draining(*member));
        if found.is_some() || list.len() < length {
            return found;
        }
    }
}

/// Digest of a sequence of names, equal on all machines.
fn digest<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = SipHasher24::new();
    for name in names {
        hasher.write(name.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;

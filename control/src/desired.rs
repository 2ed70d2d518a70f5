//! What the maps should hold: the configuration, with its lookup tables built.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use siphasher::sip::SipHasher24;
use sluice_datapath::abi::{AddressOptions, Features, VipOptions};
use sluice_maglev::{BuildError, Lists, Member, Seed, Table};

use crate::config::{
    AddressPolicy, Config, Encapsulation, HashInput, OversizePolicy, PingPolicy, QuicConfig,
    ServiceConfig, Tracking, UnlistedPolicy, Vip,
};

/// How many backends a slot's preference list names before the rest of them is looked up one by
/// one.
///
/// While fewer than this many backends are draining, choosing is a look into a dense table.
const LISTED: usize = 4;

/// Everything that the maps should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The backends, in the configuration's order.
    pub backends: Vec<DesiredBackend>,
    /// The services, in the configuration's order.
    pub services: Vec<DesiredService>,
    /// Options of VIP addresses, for those that have any.
    pub addresses: BTreeMap<IpNet, AddressOptions>,
    /// Whether packets should meet the list of sources for all VIPs: it is wanted, and there.
    pub list_of_all: bool,
}

/// A backend that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Its name: its identity.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Whether it keeps its flows and takes no new ones.
    pub draining: bool,
}

/// A service that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredService {
    /// Its name: its identity.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<Vip>,
    /// How packets of its VIPs are treated.
    pub options: VipOptions,
    /// Clients that are another service's: that one's position in [`Desired::services`]. It has no
    /// routes itself.
    pub routes: Vec<(IpNet, usize)>,
    /// QUIC server IDs: the configuration's rotation, the ID, and the position in
    /// [`Desired::backends`] of the backend that has it. Those of one rotation are of one length.
    pub server_ids: Vec<(u8, Vec<u8>, usize)>,
    /// Whether its flows are kept in the connection table.
    pub tracked: bool,
    /// For each slot, the position in [`Desired::backends`] of the backend that takes it.
    pub owners: Vec<usize>,
    /// Digest of the owners' names, slot by slot: balancers that agree have the same.
    pub digest: u64,
}

impl Desired {
    /// The features that packets need.
    pub fn features(&self) -> Features {
        let vips = || self.services.iter().flat_map(|service| &service.vips);
        let hashed = |service: &DesiredService| {
            service.options.has(VipOptions::HASH_CLIENT)
                || service.options.has(VipOptions::HASH_SOURCE)
        };
        let asked = |option| self.services.iter().any(|service| service.options.has(option));
        // Whoever wants to capture does not want to replace the program first.
        Features::CAPTURE
            .with_if(vips().any(Vip::is_prefix), Features::PREFIXES)
            .with_if(vips().any(|vip| vip.port() == 0), Features::ANY_PORT)
            .with_if(self.services.iter().any(hashed), Features::HASHING)
            .with_if(self.list_of_all, Features::GLOBAL_ACL)
            .with_if(asked(VipOptions::ACL), Features::SERVICE_ACLS)
            .with_if(asked(VipOptions::RATE_LIMITED), Features::RATES)
            .with_if(asked(VipOptions::GUE), Features::GUE)
            .with_if(asked(VipOptions::DROP_TOO_BIG), Features::DROP_TOO_BIG)
            .with_if(asked(VipOptions::RESEGMENT), Features::RESEGMENT)
            .with_if(asked(VipOptions::ROUTED), Features::ROUTES)
            .with_if(asked(VipOptions::QUIC), Features::QUIC)
    }

    /// Builds what `config` asks for. A pure function: every balancer with the same configuration
    /// and seed gets the same.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with the service's name. A checked configuration has none.
    pub fn new(config: &Config, seed: &Seed) -> Result<Self, (String, BuildError)> {
        let backends = config.backends().iter().map(|backend| DesiredBackend {
            name: backend.name().to_owned(),
            v4: backend.v4(),
            v6: backend.v6(),
            draining: backend.draining(),
        });
        let leads_to_server_ids = |service: &ServiceConfig| {
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
                    VipOptions::NO_CHECKSUM,
                )
                .with_if(service.too_big() == OversizePolicy::Drop, VipOptions::DROP_TOO_BIG)
                .with_if(service.too_big() == OversizePolicy::Resegment, VipOptions::RESEGMENT)
                .with_if(!service.routes().is_empty(), VipOptions::ROUTED)
                .with_if(
                    !service.quic().is_empty() || leads_to_server_ids(service),
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
            list_of_all: false,
        })
    }
}

/// What a policy is to packets.
fn options(policy: &AddressPolicy) -> AddressOptions {
    AddressOptions::NONE
        .with_if(policy.unlisted() == UnlistedPolicy::Drop, AddressOptions::DROP_NO_SERVICE)
        .with_if(policy.ping() == PingPolicy::Host, AddressOptions::PING_HOST)
        .with_if(policy.ping() == PingPolicy::Forward, AddressOptions::PING_FORWARD)
}

/// The backend of each slot: the first of the slot's preference list that is not draining, or the
/// first when all are.
///
/// The table and the lists come from the configured set and weights alone, so draining a backend
/// moves its slots and no others.
fn owners(config: &Config, service: &ServiceConfig, seed: &Seed) -> Result<Vec<usize>, BuildError> {
    let backends = service.backends();
    let members: Vec<_> = backends
        .iter()
        .map(|b| Member::new(config.backends()[b.backend()].name(), b.weight()))
        .collect();
    let table = Table::build(&members, service.table_size(), seed)?;
    let draining =
        |member: u16| config.backends()[backends[usize::from(member)].backend()].draining();
    let anybody =
        (0..).zip(backends).any(|(member, backend)| backend.weight() > 0 && !draining(member));
    let chosen = Lists::new(&table, LISTED).choose(|member| !draining(member));
    let owners = (0..).zip(chosen).map(|(slot, listed)| {
        let member = listed.or_else(|| anybody.then(|| further(&table, slot, draining)).flatten());
        let member = member.unwrap_or_else(|| table.owner(slot));
        backends[usize::from(member)].backend()
    });
    Ok(owners.collect())
}

/// The first member of a slot's list that is not draining, where all of the first [`LISTED`] are.
fn further(table: &Table, slot: u32, draining: impl Fn(u16) -> bool) -> Option<u16> {
    // A list of all members takes long where they are many, and one of the next few is hardly ever
    // draining, too.
    let mut length = LISTED;
    loop {
        length *= 2;
        let list = table.preference_list(slot, length);
        let found = list.iter().copied().find(|member| !draining(*member));
        if found.is_some() || list.len() < length {
            return found;
        }
    }
}

/// Digest of a sequence of names: equal on every machine, and for nothing but comparing.
fn digest<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = SipHasher24::new();
    for name in names {
        hasher.write(name.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn want(draining: &[&str]) -> Desired {
        let backends = (1..=6).map(|i| {
            let name = format!("web-{i}");
            serde_json::json!({ "name": name, "address": format!("10.0.1.{i}"), "draining": draining.contains(&&*name) })
        });
        let listed =
            (1..=6).map(|i| serde_json::json!({ "name": format!("web-{i}"), "weight": 10 * i }));
        let config = serde_json::json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": backends.collect::<Vec<_>>(),
            "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 4093,
                           "backends": listed.collect::<Vec<_>>() }]
        });
        let config = Config::parse(&config.to_string(), Path::new("edge.json")).unwrap();
        Desired::new(&config, &Seed::new([7; 16])).unwrap()
    }

    fn moved(a: &Desired, b: &Desired) -> Vec<(usize, usize)> {
        let pairs = a.services[0].owners.iter().copied().zip(b.services[0].owners.iter().copied());
        pairs.filter(|(before, after)| before != after).collect()
    }

    #[test]
    fn draining_moves_the_slots_of_the_draining_backend_and_no_others() {
        let before = want(&[]);
        let after = want(&["web-6"]);
        let moved = moved(&before, &after);
        assert!(moved.iter().all(|(from, to)| *from == 5 && *to != 5), "{moved:?}");
        assert_eq!(moved.len(), before.services[0].owners.iter().filter(|o| **o == 5).count());
        assert_ne!(before.services[0].digest, after.services[0].digest);
    }

    #[test]
    fn a_draining_backend_gets_nothing_while_anybody_else_is_left() {
        let after = want(&["web-1", "web-2", "web-3", "web-5", "web-6"]);
        assert_eq!(after.services[0].owners.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&3]));
    }

    #[test]
    fn a_service_in_udp_says_so_to_packets_and_to_the_program() {
        let config = |service: serde_json::Value| {
            let mut text = serde_json::json!({
                "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
                "backends": [{ "name": "web-1", "address": "10.0.1.1" }],
                "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 4093, "backends": [{ "name": "web-1" }] }]
            });
            text["services"][0]
                .as_object_mut()
                .unwrap()
                .extend(service.as_object().unwrap().clone());
            let config = Config::parse(&text.to_string(), Path::new("edge.json")).unwrap();
            let want = Desired::new(&config, &Seed::new([7; 16])).unwrap();
            (want.services[0].options, want.features().has(Features::GUE))
        };
        let both = VipOptions::GUE.with(VipOptions::NO_CHECKSUM);
        for (service, options) in [
            (serde_json::json!({}), VipOptions::NONE),
            (serde_json::json!({ "encapsulation": "gue" }), VipOptions::GUE),
            (serde_json::json!({ "encapsulation": "gue", "udp_zero_checksum": true }), both),
        ] {
            assert_eq!(config(service), (options, options.has(VipOptions::GUE)));
        }
    }

    #[test]
    fn packets_show_their_connection_ids_where_their_service_has_server_ids_or_a_route_leads_to_some()
     {
        let options = |with_ids: Option<usize>| {
            let mut text = serde_json::json!({
                "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
                "backends": [{ "name": "web-1", "address": "10.0.1.1" }],
                "services": [
                    { "name": "web", "vips": ["203.0.113.10:443/udp"], "backends": [{ "name": "web-1" }],
                      "routes": [{ "sources": ["198.51.100.0/24"], "service": "near" }] },
                    { "name": "near", "vips": [], "backends": [{ "name": "web-1" }] },
                    { "name": "other", "vips": ["203.0.113.10:53/udp"], "backends": [{ "name": "web-1" }] },
                ]
            });
            if let Some(service) = with_ids {
                text["services"][service]["quic"] = serde_json::json!([
                    { "rotation": 0, "server_id_length": 1, "server_ids": [{ "backend": "web-1", "id": "07" }] }
                ]);
            }
            let config = Config::parse(&text.to_string(), Path::new("edge.json")).unwrap();
            let want = Desired::new(&config, &Seed::new([7; 16])).unwrap();
            assert_eq!(want.features().has(Features::QUIC), with_ids.is_some());
            [0, 1, 2].map(|service| want.services[service].options.has(VipOptions::QUIC))
        };
        assert_eq!(options(None), [false, false, false]);
        assert_eq!(options(Some(0)), [true, false, false]);
        assert_eq!(options(Some(1)), [true, true, false]);
        assert_eq!(options(Some(2)), [false, false, true]);
    }

    #[test]
    fn half_of_many_backends_drain_in_a_moment() {
        let backends = 1..=1000;
        let config = serde_json::json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": backends.clone().map(|i| serde_json::json!({
                "name": format!("web-{i}"), "address": format!("10.0.{}.{}", i / 250, i % 250 + 1), "draining": i % 2 == 0
            })).collect::<Vec<_>>(),
            "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 65_537,
                           "backends": backends.map(|i| serde_json::json!({ "name": format!("web-{i}") })).collect::<Vec<_>>() }]
        });
        let config = Config::parse(&config.to_string(), Path::new("edge.json")).unwrap();
        let began = std::time::Instant::now();
        let want = Desired::new(&config, &Seed::new([7; 16])).unwrap();
        // Seconds where nothing is optimised and the machine is busy; with lists of everybody it
        // would be many minutes.
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
        assert!(want.services[0].owners.iter().all(|owner| owner % 2 == 0));
    }

    #[test]
    fn when_everybody_drains_the_table_stays_as_it_was() {
        let all = want(&["web-1", "web-2", "web-3", "web-4", "web-5", "web-6"]);
        assert_eq!(all.services[0].owners, want(&[]).services[0].owners);
    }
}

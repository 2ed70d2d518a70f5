//! From what was typed to what was meant: every check that needs more than one value.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sluice_datapath::rates::Rate;

use super::address::unusable;
use super::document::{self, Object};
use super::limits::{self, Limits};
use super::names::{self, DEFAULT_INSTANCE, instance_name, interface_name};
use super::{
    AddressPolicy, Backend, Config, ConfigError, Encapsulation, Ping, Rates, Service,
    ServiceBackend, SourceLists, Underlay, Vip, policy, quic, routes, size,
};

/// A place and the problem there; [`config`] adds the file.
pub(super) type Problem = (String, String);

/// Refuses every version but the one this program reads.
pub(super) fn check_version(
    version: Option<&serde_json::Value>,
    file: &Path,
) -> Result<(), ConfigError> {
    let right = document::VERSION;
    match version {
        Some(version) if version.as_u64() == Some(right) => Ok(()),
        Some(version) => Err(ConfigError::at(
            file,
            "version",
            format!(
                "{version} is not a version that this sluice reads; write \"version\": {right}, or use the sluice that the file was written for"
            ),
        )),
        None => {
            Err(ConfigError::at(file, "version", format!("missing; write \"version\": {right}")))
        }
    }
}

/// The configuration that `document`, the contents of `file`, means.
pub(super) fn config(document: document::Document, file: &Path) -> Result<Config, ConfigError> {
    meant(document, file).map_err(|(place, problem)| ConfigError::at(file, place, problem))
}

fn meant(document: document::Document, file: &Path) -> Result<Config, Problem> {
    let instance = document.instance.as_deref().unwrap_or(DEFAULT_INSTANCE);
    let instance = instance_name(instance).map_err(at("instance"))?;
    let interfaces = interfaces(&document.interfaces)?;
    let underlay = underlay(&document.underlay.0)?;
    if document.hash_key_file.as_os_str().is_empty() {
        return Err(at("hash_key_file")(
            "empty; write a path such as \"/etc/sluice/hash.key\" (made by `sluice key new --out PATH`)".to_owned(),
        ));
    }
    let directory = file.parent().unwrap_or(Path::new(""));
    let hash_key_file = directory.join(&document.hash_key_file);
    let limits = limits(document.limits.map(|Object(limits)| limits));
    let sources = sources(document.deny_file, document.allow_file, directory, "")?;
    let backends = backends(document.backends, underlay, limits)?;
    let services = services(document.services, &backends, underlay, limits, directory)?;
    let addresses = addresses(&document.addresses, &services, limits)?;
    Ok(Config {
        instance,
        interfaces,
        underlay,
        clamp_mss: document.clamp_mss,
        hash_key_file,
        limits,
        sources,
        backends,
        services,
        addresses,
    })
}

/// The files of deny- and allow-list; relative paths start at `directory`. `place` ends with a dot,
/// or is empty.
fn sources(
    deny: Option<PathBuf>,
    allow: Option<PathBuf>,
    directory: &Path,
    place: &str,
) -> Result<SourceLists, Problem> {
    let path = |typed: Option<PathBuf>, field: &str| match typed {
        Some(path) if path.as_os_str().is_empty() => Err(at(&format!("{place}{field}"))(
            "empty; write a path such as \"/etc/sluice/sources.txt\", or remove the field"
                .to_owned(),
        )),
        typed => Ok(typed.map(|path| directory.join(path))),
    };
    Ok(SourceLists { deny: path(deny, "deny_file")?, allow: path(allow, "allow_file")? })
}

fn interfaces(typed: &[String]) -> Result<Vec<String>, Problem> {
    if typed.is_empty() {
        return Err(at("interfaces")(
            "empty; name at least one interface that VIP traffic arrives on, such as \"eth0\""
                .to_owned(),
        ));
    }
    let mut seen = Seen::new();
    for (index, name) in typed.iter().enumerate() {
        let place = format!("interfaces[{index}]");
        interface_name(name).map_err(at(&place))?;
        seen.first_time(name.as_str(), place, |name| format!("interface {name:?}"))?;
    }
    Ok(typed.to_vec())
}

fn underlay(typed: &document::Underlay) -> Result<Underlay, Problem> {
    let document::Underlay { v4, v6, v4_sources, v6_sources, ref gue_port, ref mtu } = *typed;
    if v4.is_none() && v6.is_none() {
        return Err(at("underlay")(
            "no address; write the balancer's own \"v4\" or \"v6\" address, or both: outer headers are sent from it"
                .to_owned(),
        ));
    }
    let addresses = [("v4", v4.map(IpAddr::V4)), ("v6", v6.map(IpAddr::V6))];
    for (family, address) in addresses {
        check_usable(address, || format!("underlay.{family}"), "the source of outer headers")?;
    }
    let prefixes = [
        ("v4", v4.is_some(), v4_sources.map(IpNet::V4), "\"10.0.9.0/24\""),
        ("v6", v6.is_some(), v6_sources.map(IpNet::V6), "\"2001:db8:9::/64\""),
    ];
    for (family, has_address, prefix, example) in prefixes {
        let Some(prefix) = prefix else { continue };
        let field = format!("underlay.{family}_sources");
        let problem = |text: String| Err(at(&field)(text));
        if !has_address {
            return problem(format!(
                "underlay has no {family:?} to look up routes from; add it, or remove this field"
            ));
        }
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return problem(format!(
                "{prefix} is one address; write a prefix such as {example}, or remove this field"
            ));
        }
        if prefix.prefix_len() < 8 {
            return problem(format!("{prefix} is nobody's own; write a prefix such as {example}"));
        }
        if prefix.trunc() != prefix {
            return problem(format!(
                "{prefix} has bits beyond its length; write {}",
                prefix.trunc()
            ));
        }
        for end in [prefix.network(), prefix.broadcast()] {
            check_usable(Some(end), || field.clone(), "the source of outer headers")?;
        }
    }
    let gue_port = gue_port
        .as_ref()
        .and_then(|whole| u16::try_from(whole.0).ok())
        .unwrap_or(limits::DEFAULT_GUE_PORT);
    Ok(Underlay {
        v4,
        v6,
        v4_sources,
        v6_sources,
        gue_port,
        mtu: mtu.as_ref().map(|whole| whole.0),
    })
}

fn limits(typed: Option<document::Limits>) -> Limits {
    let typed = typed.unwrap_or_default();
    let default = Limits::default();
    Limits {
        services: typed.services.map_or(default.services, |whole| whole.0),
        backends: typed.backends.map_or(default.backends, |whole| whole.0),
        vips: typed.vips.map_or(default.vips, |whole| whole.0),
        connections: typed.connections.map_or(default.connections, |whole| whole.0),
    }
}

fn backends(
    typed: Vec<Object<document::Backend>>,
    underlay: Underlay,
    limits: Limits,
) -> Result<Vec<Backend>, Problem> {
    check_limit(typed.len(), "backends", limits.backends, limits::MAX_BACKENDS)?;
    let mut names = Seen::new();
    let mut addresses = Seen::new();
    let mut backends = Vec::with_capacity(typed.len());
    for (index, Object(typed)) in typed.into_iter().enumerate() {
        let place = format!("backends[{index}]");
        let name = names::name(&typed.name).map_err(at(&format!("{place}.name")))?;
        names.first_time(typed.name, format!("{place}.name"), |name| {
            format!("backend name {name:?}")
        })?;
        let backend =
            Backend { name, v4: typed.address.v4, v6: typed.address.v6, draining: typed.draining };
        for address in backend.addresses() {
            let place = || format!("{place}.address");
            check_usable(Some(address), place, "a backend's address")?;
            let spread = underlay
                .own()
                .find(|own| own.prefix_len() < own.max_prefix_len() && own.contains(&address));
            if let Some(sources) = spread {
                return Err(at(&place())(format!(
                    "{address} is in {sources}, where sources of outer headers are taken from (underlay); write the backend host's address"
                )));
            }
            if underlay.like(address) == Some(address) {
                return Err(at(&place())(format!(
                    "{address} is also the balancer's own address (underlay); write the backend host's address"
                )));
            }
            addresses.first_time(address, place(), |address| format!("address {address}"))?;
        }
        backends.push(backend);
    }
    Ok(backends)
}

fn services(
    typed: Vec<Object<document::Service>>,
    backends: &[Backend],
    underlay: Underlay,
    limits: Limits,
    directory: &Path,
) -> Result<Vec<Service>, Problem> {
    check_limit(typed.len(), "services", limits.services, limits::MAX_SERVICES)?;
    let vips = typed.iter().map(|Object(service)| service.vips.len()).sum();
    check_limit(vips, "vips", limits.vips, limits::MAX_VIPS)?;

    let by_name: HashMap<&str, usize> =
        backends.iter().enumerate().map(|(index, backend)| (backend.name(), index)).collect();
    let hosts: HashMap<IpAddr, &str> = backends
        .iter()
        .flat_map(|backend| backend.addresses().map(move |address| (address, backend.name())))
        .collect();
    let mut names = Seen::new();
    let mut vips = Seen::new();
    let mut services = Vec::with_capacity(typed.len());
    let mut routed = Vec::with_capacity(typed.len());
    for (index, Object(typed)) in typed.into_iter().enumerate() {
        let place = format!("services[{index}]");
        let name = names::name(&typed.name).map_err(at(&format!("{place}.name")))?;
        names.first_time(typed.name, format!("{place}.name"), |name| {
            format!("service name {name:?}")
        })?;
        check_vips(&typed.vips, &place, underlay, &hosts, &mut vips)?;
        let members = service_backends(&typed.backends, &place, backends, &by_name)?;
        check_weights(&members, typed.table_size.get(), &place)?;
        check_families(&members, backends, underlay, &place)?;
        let encapsulation = encapsulation(typed.encapsulation, typed.udp_zero_checksum, &place)?;
        size::check(typed.too_big, underlay, encapsulation)
            .map_err(at(&format!("{place}.too_big")))?;
        let sources = sources(typed.deny_file, typed.allow_file, directory, &format!("{place}."))?;
        let quic = quic::meant(&typed.quic, &place, &members, &by_name)?;
        services.push(Service {
            name,
            vips: typed.vips,
            table_size: typed.table_size,
            tracking: typed.tracking,
            hash: typed.hash,
            encapsulation,
            too_big: typed.too_big,
            rates: rates(typed.rate.map(|Object(rates)| rates).unwrap_or_default()),
            sources,
            routes: Vec::new(),
            quic,
            backends: members,
        });
        routed.push(typed.routes);
    }
    routes::give(&mut services, &routed)?;
    quic::check_limit(&services, limits)?;
    Ok(services)
}

fn encapsulation(
    typed: Encapsulation,
    zero_checksum: Option<bool>,
    place: &str,
) -> Result<Encapsulation, Problem> {
    match (typed, zero_checksum) {
        (Encapsulation::Ipip, None) => Ok(typed),
        (Encapsulation::Ipip, Some(_)) => Err(at(&format!("{place}.udp_zero_checksum"))(
            "only UDP has a checksum to leave out; write \"encapsulation\": \"gue\" beside it, or remove this field"
                .to_owned(),
        )),
        (Encapsulation::Gue { .. }, said) => Ok(Encapsulation::Gue { zero_checksum: said.unwrap_or(false) }),
    }
}

fn addresses(
    typed: &[Object<policy::Typed>],
    services: &[Service],
    limits: Limits,
) -> Result<Vec<AddressPolicy>, Problem> {
    let mut seen = Seen::new();
    let mut policies = Vec::with_capacity(typed.len());
    for (index, Object(typed)) in typed.iter().enumerate() {
        let place = format!("addresses[{index}].address");
        policies.push(typed.meant(services).map_err(at(&place))?);
        seen.first_time(typed.address, place, |prefix| format!("{prefix}"))?;
    }
    // Where pings go is an entry beside the VIPs.
    let vips = services.iter().map(|service| service.vips.len()).sum::<usize>();
    let forwarded = policies.iter().filter(|policy| policy.ping == Ping::Forward).count();
    check_limit(vips + forwarded, "vips", limits.vips, limits::MAX_VIPS)?;
    Ok(policies)
}

fn rates(typed: document::Rates) -> Rates {
    let rate =
        |typed: Option<document::Rate>| typed.map(|rate| Rate::new(rate.per_second, rate.burst));
    Rates {
        packets: rate(typed.packets),
        new_flows: rate(typed.new_flows),
        source_packets: rate(typed.source_packets),
        source_new_flows: rate(typed.source_new_flows),
    }
}

fn check_vips(
    vips: &[Vip],
    place: &str,
    underlay: Underlay,
    hosts: &HashMap<IpAddr, &str>,
    seen: &mut Seen<Vip>,
) -> Result<(), Problem> {
    for (index, vip) in vips.iter().enumerate() {
        let place = format!("{place}.vips[{index}]");
        let prefix = vip.prefix();
        for own in underlay.own() {
            if own.prefix_len() == own.max_prefix_len() && prefix.contains(&own) {
                return Err(at(&place)(format!(
                    "{} {}, the balancer's own address (underlay); a VIP address must be one that no host uses for itself",
                    is_or_holds(vip),
                    own.addr()
                )));
            }
            if own.contains(&prefix) || prefix.contains(&own) {
                return Err(at(&place)(format!(
                    "{prefix} and {own}, where sources of outer headers are taken from (underlay), overlap; a VIP address must be one that no host uses for itself"
                )));
            }
        }
        // One look-up for a VIP address, as most are; a prefix is compared with all.
        let host = if vip.is_prefix() {
            hosts.iter().filter(|(address, _)| prefix.contains(*address)).min()
        } else {
            hosts.get_key_value(&vip.address())
        };
        if let Some((address, backend)) = host {
            return Err(at(&place)(format!(
                "{} {address}, the address of backend {backend:?}; a VIP address must be one that no host uses for itself",
                is_or_holds(vip)
            )));
        }
        seen.first_time(*vip, place, |vip| format!("VIP {vip}"))?;
    }
    Ok(())
}

fn service_backends(
    typed: &[Object<document::ServiceBackend>],
    place: &str,
    backends: &[Backend],
    by_name: &HashMap<&str, usize>,
) -> Result<Vec<ServiceBackend>, Problem> {
    let most = limits::MAX_SERVICE_BACKENDS;
    if typed.len() > most {
        return Err(at(&format!("{place}.backends"))(format!(
            "{} backends are too many for one service; list at most {most}",
            typed.len()
        )));
    }
    let mut seen = Seen::new();
    let mut members = Vec::with_capacity(typed.len());
    for (index, Object(typed)) in typed.iter().enumerate() {
        let place = format!("{place}.backends[{index}].name");
        let name = typed.name.as_str();
        let Some(&backend) = by_name.get(name) else {
            let known = backends.iter().map(Backend::name);
            let remedy = match names::closest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "define it under \"backends\" at the top of the file first".to_owned(),
            };
            return Err(at(&place)(format!("there is no backend {name:?}; {remedy}")));
        };
        seen.first_time(name, place, |name| format!("backend {name:?}"))?;
        members.push(ServiceBackend {
            backend,
            weight: typed.weight.map_or(limits::DEFAULT_WEIGHT, |whole| whole.0),
        });
    }
    Ok(members)
}

fn check_weights(members: &[ServiceBackend], slots: u32, place: &str) -> Result<(), Problem> {
    let weighted = members.iter().filter(|member| member.weight > 0).count();
    if weighted == 0 {
        let problem = if members.is_empty() {
            "empty; list at least one backend with a weight above 0, or remove the service"
        } else {
            "every weight is 0, so nobody would serve; give at least one backend a weight above 0"
        };
        return Err(at(&format!("{place}.backends"))(problem.to_owned()));
    }
    if weighted > slots as usize {
        return Err(at(&format!("{place}.table_size"))(format!(
            "{slots} slots are too few for {weighted} backends with weight; use about 100 slots for each backend, such as 65537"
        )));
    }
    Ok(())
}

/// A packet is encapsulated in whichever family reaches the backend, so every backend needs an
/// address of a family that the underlay has.
fn check_families(
    members: &[ServiceBackend],
    backends: &[Backend],
    underlay: Underlay,
    place: &str,
) -> Result<(), Problem> {
    for (index, member) in members.iter().enumerate() {
        let backend = &backends[member.backend];
        if backend.addresses().any(|address| underlay.like(address).is_some()) {
            continue;
        }
        let (has, lacks) = if backend.v4.is_some() { ("IPv4", "v6") } else { ("IPv6", "v4") };
        let (name, own) = (backend.name(), if backend.v4.is_some() { "v4" } else { "v6" });
        return Err(at(&format!("{place}.backends[{index}].name"))(format!(
            "backend {name:?} has an {has} address only, and underlay has none to send from; add {own:?} to underlay, or {lacks:?} to backends[{}].address",
            member.backend
        )));
    }
    Ok(())
}

/// How a VIP relates to an address that is its own or lies in its prefix, as the start of a
/// sentence.
fn is_or_holds(vip: &Vip) -> String {
    if vip.is_prefix() {
        format!("{} holds", vip.prefix())
    } else {
        format!("{} is", vip.address())
    }
}

fn check_limit(count: usize, what: &'static str, limit: u32, most: u32) -> Result<(), Problem> {
    if count <= limit as usize {
        return Ok(());
    }
    let place = if what == "vips" { "services" } else { what };
    if limit == most {
        return Err(at(place)(format!(
            "{count} {what} are more than an instance can have, {most}; remove some"
        )));
    }
    Err(at(place)(format!(
        "{count} {what} are more than limits.{what}, {limit}; raise it (to at most {most}) or remove some"
    )))
}

fn check_usable(
    address: Option<IpAddr>,
    place: impl Fn() -> String,
    role: &str,
) -> Result<(), Problem> {
    match address.and_then(|address| Some((address, unusable(address)?))) {
        Some((address, kind)) => Err(at(&place())(format!(
            "{address} is {kind}, which cannot be {role}; use a unicast address of the host"
        ))),
        None => Ok(()),
    }
}

/// The values met so far, each with the place where it was.
pub(super) struct Seen<T>(HashMap<T, String>);

impl<T: Eq + std::hash::Hash> Seen<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Notes that `value`, called `what`, is at `place`; a problem if it was somewhere else
    /// already.
    pub(super) fn first_time(
        &mut self,
        value: T,
        place: String,
        what: impl Fn(&T) -> String,
    ) -> Result<(), Problem> {
        match self.0.get(&value) {
            Some(first) => {
                let what = what(&value);
                Err((
                    place,
                    format!("{what} is already at {first}; remove or change one of the two"),
                ))
            }
            None => {
                self.0.insert(value, place);
                Ok(())
            }
        }
    }
}

/// Puts a place before a problem.
pub(super) fn at(place: &str) -> impl FnOnce(String) -> Problem + use<> {
    let place = place.to_owned();
    move |problem| (place, problem)
}

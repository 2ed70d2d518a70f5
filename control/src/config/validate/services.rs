//! Checks `services`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use sluice_datapath::abi::Rate;
use sluice_maglev::TableSize;

use super::checks::{acl_files, check_limit};
use super::{quic, routes};
use crate::capacities::{Capacities, Limit};
use crate::config::document::{RawEncapsulation, RawRate, RawRates, RawService, RawServiceBackend};
use crate::config::model::{
    BackendConfig, Encapsulation, RateLimits, ServiceBackend, ServiceConfig, Underlay,
};
use crate::config::options::TooBigPolicy;
use crate::config::problem::{Problem, Unique, at};
use crate::config::syntax::{JsonObject, ScalarOrObject, Text};
use crate::config::vip::Vip;
use crate::config::{limits, names};

pub(super) fn validate(
    raw: Vec<JsonObject<RawService>>,
    backends: &[BackendConfig],
    underlay: Underlay,
    capacities: Capacities,
    directory: &Path,
) -> Result<Vec<ServiceConfig>, Problem> {
    check_limit(raw.len(), Limit::Services, capacities.services)?;
    let vips = raw.iter().map(|JsonObject(service)| service.vips.len()).sum();
    check_limit(vips, Limit::Vips, capacities.vips)?;

    let by_name: HashMap<&str, usize> =
        backends.iter().enumerate().map(|(index, backend)| (backend.name(), index)).collect();
    let hosts: HashMap<IpAddr, &str> = backends
        .iter()
        .flat_map(|backend| backend.addresses().map(move |address| (address, backend.name())))
        .collect();
    let mut names = Unique::new();
    let mut unique_vips = Unique::new();
    let mut services = Vec::with_capacity(raw.len());
    let mut raw_routes = Vec::with_capacity(raw.len());
    for (index, JsonObject(raw)) in raw.into_iter().enumerate() {
        let location = format!("services[{index}]");
        let name_location = format!("{location}.name");
        let name = names::name(&raw.name).map_err(at(&*name_location))?;
        names.insert(raw.name, name_location, |name| format!("service name {name:?}"))?;
        let vips: Vec<Vip> = raw.vips.into_iter().map(|Text(vip)| vip).collect();
        check_vips(&vips, &location, underlay, &hosts, &mut unique_vips)?;
        let members = service_backends(&raw.backends, &location, backends, &by_name)?;
        let table_size = TableSize::new(raw.table_size.0)
            .map_err(|error| Problem::new(format!("{location}.table_size"), error.to_string()))?;
        check_weights(&members, table_size, &location)?;
        check_families(&members, backends, underlay, &location)?;
        let encapsulation = encapsulation(raw.encapsulation, raw.udp_zero_checksum, &location)?;
        check_jumbo(raw.too_big, underlay, encapsulation, &location)?;
        let acl_files =
            acl_files(raw.deny_file, raw.allow_file, directory, &format!("{location}."))?;
        let quic = quic::validate(&raw.quic, &location, &members, &by_name)?;
        services.push(ServiceConfig {
            name,
            vips,
            table_size,
            tracking: raw.tracking,
            hash: raw.hash,
            encapsulation,
            too_big: raw.too_big,
            fragments: raw.fragments,
            rate_limits: rate_limits(raw.rate.map(|rates| rates.0).unwrap_or_default()),
            acl_files,
            routes: Vec::new(),
            quic,
            backends: members,
        });
        raw_routes.push(raw.routes);
    }
    routes::validate(&mut services, &raw_routes)?;
    quic::check_server_id_count(&services, capacities)?;
    Ok(services)
}

fn check_vips(
    vips: &[Vip],
    location: &str,
    underlay: Underlay,
    hosts: &HashMap<IpAddr, &str>,
    unique: &mut Unique<Vip>,
) -> Result<(), Problem> {
    for (index, vip) in vips.iter().enumerate() {
        let location = format!("{location}.vips[{index}]");
        let prefix = vip.prefix();
        for own in underlay.own_prefixes() {
            if own.prefix_len() == own.max_prefix_len() && prefix.contains(&own) {
                return Err(Problem::new(
                    location,
                    format!(
                        "{} {}, the balancer's own address (underlay); a VIP address must not be assigned to a backend or used as an underlay address",
                        is_or_contains(vip),
                        own.addr()
                    ),
                ));
            }
            if own.contains(&prefix) || prefix.contains(&own) {
                return Err(Problem::new(
                    location,
                    format!(
                        "{prefix} overlaps {own}, the prefix of the sources of outer headers (underlay); a VIP address must not be assigned to a backend or used as an underlay address"
                    ),
                ));
            }
        }
        // One lookup for a single address, the common case. A prefix is compared with all hosts.
        let host = if vip.is_prefix() {
            hosts.iter().filter(|(address, _)| prefix.contains(*address)).min()
        } else {
            hosts.get_key_value(&vip.address())
        };
        if let Some((address, backend)) = host {
            return Err(Problem::new(
                location,
                format!(
                    "{} {address}, the address of backend {backend:?}; a VIP address must not be assigned to a backend or used as an underlay address",
                    is_or_contains(vip)
                ),
            ));
        }
        unique.insert(*vip, location, |vip| format!("VIP {vip}"))?;
    }
    Ok(())
}

/// The start of a sentence on the relation of a VIP to an address that it is or contains.
fn is_or_contains(vip: &Vip) -> String {
    if vip.is_prefix() {
        format!("{} contains", vip.prefix())
    } else {
        format!("{} is", vip.address())
    }
}

fn service_backends(
    raw: &[JsonObject<RawServiceBackend>],
    location: &str,
    backends: &[BackendConfig],
    by_name: &HashMap<&str, usize>,
) -> Result<Vec<ServiceBackend>, Problem> {
    let most = limits::MAX_SERVICE_BACKENDS;
    if raw.len() > most {
        return Err(Problem::new(
            format!("{location}.backends"),
            format!("{} backends are too many for one service; list at most {most}", raw.len()),
        ));
    }
    let mut unique = Unique::new();
    let mut members = Vec::with_capacity(raw.len());
    for (index, JsonObject(raw)) in raw.iter().enumerate() {
        let location = format!("{location}.backends[{index}].name");
        let name = raw.name.as_str();
        let Some(&backend) = by_name.get(name) else {
            let known = backends.iter().map(BackendConfig::name);
            let remedy = match names::closest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "define it under \"backends\" at the top of the file first".to_owned(),
            };
            return Err(Problem::new(location, format!("there is no backend {name:?}; {remedy}")));
        };
        unique.insert(name, location, |name| format!("backend {name:?}"))?;
        let weight = raw.weight.map_or(limits::DEFAULT_WEIGHT, |weight| weight.0);
        members.push(ServiceBackend { backend, weight });
    }
    Ok(members)
}

fn check_weights(
    members: &[ServiceBackend],
    table_size: TableSize,
    location: &str,
) -> Result<(), Problem> {
    let weighted = members.iter().filter(|member| member.weight > 0).count();
    if weighted == 0 {
        let message = if members.is_empty() {
            "empty; list at least one backend with a weight above 0, or remove the service"
        } else {
            "every weight is 0, so no backend would serve; give at least one backend a weight above 0"
        };
        return Err(Problem::new(format!("{location}.backends"), message));
    }
    if weighted > table_size.get() as usize {
        return Err(Problem::new(
            format!("{location}.table_size"),
            format!(
                "{table_size} slots are too few for {weighted} backends with weight; use about 100 slots for each backend, such as 65537"
            ),
        ));
    }
    Ok(())
}

/// Refuses a backend without an address of a family that the underlay has: no outer header could be
/// sent to it.
fn check_families(
    members: &[ServiceBackend],
    backends: &[BackendConfig],
    underlay: Underlay,
    location: &str,
) -> Result<(), Problem> {
    for (index, member) in members.iter().enumerate() {
        let backend = &backends[member.backend];
        if backend.addresses().any(|address| underlay.address_for(address).is_some()) {
            continue;
        }
        let (has, own, other) =
            if backend.v4.is_some() { ("IPv4", "v4", "v6") } else { ("IPv6", "v6", "v4") };
        return Err(Problem::new(
            format!("{location}.backends[{index}].name"),
            format!(
                "backend {:?} has an {has} address only, and underlay has none to send from; add {own:?} to underlay, or {other:?} to backends[{}].address",
                backend.name(),
                member.backend
            ),
        ));
    }
    Ok(())
}

fn encapsulation(
    raw: RawEncapsulation,
    zero_checksum: Option<bool>,
    location: &str,
) -> Result<Encapsulation, Problem> {
    match (raw, zero_checksum) {
        (RawEncapsulation::Ipip, None) => Ok(Encapsulation::Ipip),
        (RawEncapsulation::Ipip, Some(_)) => Err(Problem::new(
            format!("{location}.udp_zero_checksum"),
            "only UDP has a checksum to leave out; add \"encapsulation\": \"gue\", or remove this field",
        )),
        (RawEncapsulation::Gue, zero_checksum) => {
            Ok(Encapsulation::Gue { zero_checksum: zero_checksum.unwrap_or(false) })
        }
    }
}

/// Refuses `"too_big": "jumbo"` on an underlay whose stated MTU does not hold a full Ethernet
/// packet with an outer header.
fn check_jumbo(
    policy: TooBigPolicy,
    underlay: Underlay,
    encapsulation: Encapsulation,
    location: &str,
) -> Result<(), Problem> {
    let least = limits::MIN_JUMBO_MTU + encapsulation.overhead();
    if policy != TooBigPolicy::Jumbo || underlay.mtu.is_some_and(|mtu| mtu >= least) {
        return Ok(());
    }
    let stated = match underlay.mtu {
        None => "it has none".to_owned(),
        Some(mtu) => format!("it has {mtu}"),
    };
    Err(Problem::new(
        format!("{location}.too_big"),
        format!(
            "\"jumbo\" needs an underlay that carries clients' 1500 bytes with an outer header, so \"underlay\" must have an \"mtu\" of {least} or more, and \
             {stated}; state it, or write \"reject\""
        ),
    ))
}

fn rate_limits(raw: RawRates) -> RateLimits {
    let rate = |raw: Option<RawRate>| {
        raw.map(|raw| match raw {
            ScalarOrObject::Scalar(per_second) => Rate::new(per_second.0, per_second.0),
            ScalarOrObject::Object(rate) => Rate::new(rate.per_second.0, rate.burst.0),
        })
    };
    RateLimits {
        packets: rate(raw.packets),
        new_connections: rate(raw.new_connections),
        source_packets: rate(raw.source_packets),
        source_new_connections: rate(raw.source_new_connections),
        fragments: rate(raw.fragments),
    }
}

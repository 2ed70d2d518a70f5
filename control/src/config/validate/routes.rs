//! Checks `services[].routes`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::config::document::RawRoute;
use crate::config::model::{RouteConfig, ServiceConfig};
use crate::config::prefix::AddressOrPrefix;
use crate::config::problem::{Problem, Unique, at};
use crate::config::syntax::{JsonObject, Text};
use crate::config::{limits, names};

/// IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2).
const IPV4_MAPPED: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96));

/// Adds to each service the routes at its index, and refuses services that no packet reaches.
pub(super) fn validate(
    services: &mut [ServiceConfig],
    raw: &[Vec<JsonObject<RawRoute>>],
) -> Result<(), Problem> {
    let by_name: HashMap<String, usize> =
        services.iter().enumerate().map(|(index, service)| (service.name.clone(), index)).collect();
    let mut is_target = vec![false; services.len()];
    for (index, routes) in raw.iter().enumerate() {
        let mut unique = Unique::new();
        for (number, JsonObject(route)) in routes.iter().enumerate() {
            let location = format!("services[{index}].routes[{number}]");
            let target = target(&route.service, index, &by_name, raw)
                .map_err(at(format!("{location}.service")))?;
            is_target[target] = true;
            if route.sources.is_empty() {
                return Err(Problem::new(
                    format!("{location}.sources"),
                    "empty; write at least one prefix such as \"198.51.100.0/24\", or remove the route",
                ));
            }
            for (position, Text(AddressOrPrefix(clients))) in route.sources.iter().enumerate() {
                let location = format!("{location}.sources[{position}]");
                check_mapped(*clients).map_err(at(&*location))?;
                unique.insert(*clients, location, |clients| format!("prefix {clients}"))?;
                services[index].routes.push(RouteConfig { clients: *clients, service: target });
            }
        }
    }
    let count: usize = services.iter().map(|service| service.routes.len()).sum();
    let most = limits::MAX_ROUTES;
    if count > most as usize {
        return Err(Problem::new(
            "services",
            format!(
                "{count} prefixes in \"routes\" are too many; write at most {most}, and join neighbouring ones"
            ),
        ));
    }
    for (index, service) in services.iter().enumerate() {
        if service.vips.is_empty() {
            check_without_vips(service, index, is_target[index])?;
        }
    }
    Ok(())
}

/// The index of the service with the name `name`, if a route of the service `own` may name it.
fn target(
    name: &str,
    own: usize,
    by_name: &HashMap<String, usize>,
    raw: &[Vec<JsonObject<RawRoute>>],
) -> Result<usize, String> {
    let Some(&target) = by_name.get(name) else {
        let remedy = match names::closest(name, by_name.keys().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "define it under \"services\"; it needs no VIPs of its own".to_owned(),
        };
        return Err(format!("there is no service {name:?}; {remedy}"));
    };
    if target == own {
        return Err("a route cannot point to its own service; name a different service".to_owned());
    }
    if !raw[target].is_empty() {
        return Err(format!(
            "{name:?} has routes itself, and a client is routed once; name the service that handles the client"
        ));
    }
    Ok(target)
}

/// Refuses IPv6 prefixes that contain IPv4-mapped addresses.
fn check_mapped(clients: IpNet) -> Result<(), String> {
    let overlap = IPV4_MAPPED.contains(&clients) || clients.contains(&IPV4_MAPPED);
    match (overlap, clients.addr()) {
        (true, IpAddr::V6(_)) => Err(format!(
            "{clients} overlaps {IPV4_MAPPED}, the IPv4-mapped addresses; write IPv4 prefixes as such, and \"2000::/3\" for all IPv6 clients"
        )),
        _ => Ok(()),
    }
}

/// Checks a service without VIPs: packets reach it by a route only, and source ACLs apply before.
fn check_without_vips(
    service: &ServiceConfig,
    index: usize,
    is_target: bool,
) -> Result<(), Problem> {
    if !is_target {
        return Err(Problem::new(
            format!("services[{index}].vips"),
            "empty; write at least one VIP such as \"203.0.113.10:443/tcp\", name this service in the \"routes\" of another one, or remove it",
        ));
    }
    if service.acl_files.is_empty() {
        return Ok(());
    }
    let field = if service.acl_files.deny.is_some() { "deny_file" } else { "allow_file" };
    Err(Problem::new(
        format!("services[{index}].{field}"),
        "the service has no VIPs, and only the source ACLs of the VIP's service are applied; move the field there",
    ))
}

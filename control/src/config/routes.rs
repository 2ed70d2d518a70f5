//! Routes: clients of a service that are another service's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Deserializer};

use super::document::{Example, Object};
use super::validate::{Problem, Seen, at};
use super::{Service, limits, names, policy};

/// The IPv6 addresses that stand for IPv4 addresses (RFC 4291 section 2.5.5.2).
const MAPPED: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96));

/// Clients of a service, and the service whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Their addresses. Of two prefixes of a service that hold one client the longer one counts.
    pub clients: IpNet,
    /// The service's index in [`super::Config::services`]; another one than that which has the
    /// route, and one without routes.
    pub service: usize,
}

/// A route as it was typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Typed {
    sources: Vec<Prefix>,
    service: String,
}

impl Example for Typed {
    const EXAMPLE: &'static str =
        "an object such as { \"sources\": [\"198.51.100.0/24\"], \"service\": \"web-near\" }";
}

/// An address, or a prefix without bits behind its length.
struct Prefix(IpNet);

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        policy::prefix(deserializer).map(Self)
    }
}

/// Gives services the routes that were typed for each, and refuses those that nothing would ever
/// reach.
pub(super) fn give(services: &mut [Service], typed: &[Vec<Object<Typed>>]) -> Result<(), Problem> {
    let by_name: HashMap<String, usize> =
        services.iter().enumerate().map(|(index, service)| (service.name.clone(), index)).collect();
    let mut reached = vec![false; services.len()];
    let mut count = 0;
    for (index, routes) in typed.iter().enumerate() {
        let mut seen = Seen::new();
        for (number, Object(route)) in routes.iter().enumerate() {
            let place = format!("services[{index}].routes[{number}]");
            let to = target(&route.service, index, &by_name, typed)
                .map_err(at(&format!("{place}.service")))?;
            reached[to] = true;
            if route.sources.is_empty() {
                let problem = "empty; write at least one prefix such as \"198.51.100.0/24\", or remove the route";
                return Err(at(&format!("{place}.sources"))(problem.to_owned()));
            }
            for (position, Prefix(clients)) in route.sources.iter().enumerate() {
                let place = format!("{place}.sources[{position}]");
                check_mapped(*clients).map_err(at(&place))?;
                seen.first_time(*clients, place, |clients| format!("prefix {clients}"))?;
                services[index].routes.push(Route { clients: *clients, service: to });
            }
        }
        count += services[index].routes.len();
    }
    if count > limits::MAX_ROUTES as usize {
        let most = limits::MAX_ROUTES;
        return Err(at("services")(format!(
            "{count} prefixes in \"routes\" are too many; write at most {most}, and join neighbouring ones"
        )));
    }
    for (index, service) in
        services.iter().enumerate().filter(|(_, service)| service.vips.is_empty())
    {
        let place = format!("services[{index}]");
        if !reached[index] {
            return Err(at(&format!("{place}.vips"))(
                "empty; write at least one VIP such as \"203.0.113.10:443/tcp\", lead another service's \"routes\" here, or remove the service"
                    .to_owned(),
            ));
        }
        if !service.sources.is_empty() {
            let field = if service.sources.deny.is_some() { "deny_file" } else { "allow_file" };
            return Err(at(&format!("{place}.{field}"))(
                "the service has no VIPs, and what counts are the lists of the service whose VIP a client aims at; write it there"
                    .to_owned(),
            ));
        }
    }
    Ok(())
}

/// The service with a name, if a route may lead there.
fn target(
    name: &str,
    own: usize,
    by_name: &HashMap<String, usize>,
    typed: &[Vec<Object<Typed>>],
) -> Result<usize, String> {
    let Some(&to) = by_name.get(name) else {
        let remedy = match names::closest(name, by_name.keys().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "define it under \"services\"; it needs no VIPs of its own".to_owned(),
        };
        return Err(format!("there is no service {name:?}; {remedy}"));
    };
    if to == own {
        return Err(
            "the service itself, whose all clients are that no route names; name another one"
                .to_owned(),
        );
    }
    if !typed[to].is_empty() {
        return Err(format!(
            "{name:?} has routes itself, and a client is routed once; name the service that it should end at"
        ));
    }
    Ok(to)
}

/// IPv4 clients are written as such.
fn check_mapped(clients: IpNet) -> Result<(), String> {
    let overlap = MAPPED.contains(&clients) || clients.contains(&MAPPED);
    match (overlap, clients.addr()) {
        (true, IpAddr::V6(_)) => Err(format!(
            "{clients} and {MAPPED}, which stands for IPv4, overlap; write IPv4 prefixes as such, and \"2000::/3\" for all IPv6 clients"
        )),
        _ => Ok(()),
    }
}

//! Checks conditions on several values of a [`Document`].

use std::path::Path;

use super::document::{Document, RawLimits, RawPriority};
use super::limits::{DEFAULT_PRIORITY, MAX_PRIORITY};
use super::model::{Config, Priority};
use super::names::{DEFAULT_INSTANCE, instance_name, interface_name};
use super::problem::{Problem, Unique, at};
use crate::capacities::Capacities;
use checks::acl_files;

mod addresses;
mod backends;
mod checks;
mod quic;
mod routes;
mod services;
mod underlay;

/// Checks a document. Relative paths start at `directory`.
pub(super) fn validate(document: Document, directory: &Path) -> Result<Config, Problem> {
    let instance = document.instance.as_deref().unwrap_or(DEFAULT_INSTANCE);
    let instance = instance_name(instance).map_err(at("instance"))?;
    let interfaces = interfaces(document.interfaces)?;
    let priority = priority(document.priority.map(|priority| priority.0).unwrap_or_default())?;
    let raw_underlay = &document.underlay.0;
    let underlay = underlay::validate(raw_underlay)?;
    let path_mtu_routers = underlay::path_mtu_routers(raw_underlay)?;
    let balancers = underlay::balancers(raw_underlay, underlay)?;
    if document.hash_key_file.as_os_str().is_empty() {
        return Err(Problem::new(
            "hash_key_file",
            "empty; write a path such as \"/etc/sluice/hash.key\" (made by `sluice key new --out PATH`)",
        ));
    }
    let hash_key_file = directory.join(&document.hash_key_file);
    let capacities = capacities(document.limits.map(|limits| limits.0).unwrap_or_default());
    let acl_files = acl_files(document.deny_file, document.allow_file, directory, "")?;
    let backends = backends::validate(document.backends, underlay, capacities)?;
    let services =
        services::validate(document.services, &backends, underlay, capacities, directory)?;
    let addresses = addresses::validate(&document.addresses, &services, capacities)?;
    Ok(Config {
        instance,
        interfaces,
        priority,
        underlay,
        path_mtu_routers,
        balancers,
        clamp_mss: document.clamp_mss,
        hash_key_file,
        capacities,
        acl_files,
        backends,
        services,
        addresses,
    })
}

fn interfaces(raw: Vec<String>) -> Result<Vec<String>, Problem> {
    if raw.is_empty() {
        return Err(Problem::new(
            "interfaces",
            "empty; name at least one interface that VIP traffic arrives on, such as \"eth0\"",
        ));
    }
    let mut seen = Unique::new();
    for (index, name) in raw.iter().enumerate() {
        let location = format!("interfaces[{index}]");
        interface_name(name).map_err(at(&*location))?;
        seen.insert(name.as_str(), location, |name| format!("interface {name:?}"))?;
    }
    Ok(raw)
}

/// The backend's priority is one more than the balancer's unless it is given.
fn priority(raw: RawPriority) -> Result<Priority, Problem> {
    let lb = raw.lb.map_or(u32::from(DEFAULT_PRIORITY), |priority| priority.0);
    let backend = raw.backend.map_or(lb + 1, |priority| priority.0);
    if backend > MAX_PRIORITY {
        return Err(Problem::new(
            "priority.lb",
            format!("{lb} leaves no larger priority for backends; write at most {}", lb - 1),
        ));
    }
    match (u16::try_from(lb), u16::try_from(backend)) {
        (Ok(lb), Ok(backend)) if lb < backend => Ok(Priority { lb, backend }),
        _ => Err(Problem::new(
            "priority.backend",
            format!(
                "{backend} is not larger than the balancer's priority, {lb}; on a host with both roles the balancer's filter \
                 must run first: write a larger number, or a smaller \"lb\""
            ),
        )),
    }
}

fn capacities(raw: RawLimits) -> Capacities {
    let default = Capacities::default();
    Capacities {
        services: raw.services.map_or(default.services, |limit| limit.0),
        backends: raw.backends.map_or(default.backends, |limit| limit.0),
        vips: raw.vips.map_or(default.vips, |limit| limit.0),
        connections: raw.connections.map_or(default.connections, |limit| limit.0),
    }
}

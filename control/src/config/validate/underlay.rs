//! Checks `underlay`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::checks::check_usable;
use crate::config::document::RawUnderlay;
use crate::config::limits;
use crate::config::model::Underlay;
use crate::config::prefix::AddressOrPrefix;
use crate::config::problem::Problem;
use crate::config::syntax::Text;

/// The shortest prefix of source addresses: the largest block that one network is allocated.
const MIN_SOURCES_LENGTH: u8 = 8;

/// The use of an underlay address, for messages.
const ROLE: &str = "the source of outer headers";

pub(super) fn validate(raw: &RawUnderlay) -> Result<Underlay, Problem> {
    if raw.v4.is_none() && raw.v6.is_none() {
        return Err(Problem::new(
            "underlay",
            "no address; write the balancer's own \"v4\" or \"v6\" address, or both: outer headers are sent from it",
        ));
    }
    for (family, address) in [("v4", raw.v4.map(IpAddr::V4)), ("v6", raw.v6.map(IpAddr::V6))] {
        if let Some(address) = address {
            check_usable(address, || format!("underlay.{family}"), ROLE)?;
        }
    }
    let v4_sources = raw.v4_sources.map(|sources| sources.0);
    let v6_sources = raw.v6_sources.map(|sources| sources.0);
    if let Some(prefix) = v4_sources {
        check_sources("v4", raw.v4.is_some(), prefix.into(), "\"10.0.9.0/24\"")?;
    }
    if let Some(prefix) = v6_sources {
        check_sources("v6", raw.v6.is_some(), prefix.into(), "\"2001:db8:9::/64\"")?;
    }
    let gue_port = raw.gue_port.and_then(|port| u16::try_from(port.0).ok());
    Ok(Underlay {
        v4: raw.v4,
        v6: raw.v6,
        v4_sources,
        v6_sources,
        gue_port: gue_port.unwrap_or(limits::DEFAULT_GUE_PORT),
        mtu: raw.mtu.map(|mtu| mtu.0),
        min_path_mtu: raw.min_path_mtu.map(|mtu| mtu.0),
    })
}

/// The routers whose ICMP errors are accepted; empty for all.
pub(super) fn path_mtu_routers(raw: &RawUnderlay) -> Result<Vec<IpNet>, Problem> {
    let Some(routers) = &raw.path_mtu_routers else { return Ok(Vec::new()) };
    if routers.is_empty() {
        return Err(Problem::new(
            "underlay.path_mtu_routers",
            "empty; write the routers between balancers and backends, such as \"10.0.0.0/24\", or \
             remove this field to accept the errors of all",
        ));
    }
    Ok(routers.iter().map(|Text(AddressOrPrefix(prefix))| *prefix).collect())
}

/// The sources of outer headers that backends accept; empty for any.
pub(super) fn balancers(raw: &RawUnderlay, underlay: Underlay) -> Result<Vec<IpNet>, Problem> {
    const FIELD: &str = "underlay.balancers";

    let Some(balancers) = &raw.balancers else { return Ok(Vec::new()) };
    if balancers.is_empty() || balancers.len() > limits::MAX_BALANCERS {
        return Err(Problem::new(
            FIELD,
            format!(
                "{} prefixes; write the sources of all balancers' outer headers in 1 to {} prefixes, or \
                 remove this field to accept any source",
                balancers.len(),
                limits::MAX_BALANCERS
            ),
        ));
    }
    let balancers: Vec<_> = balancers.iter().map(|Text(AddressOrPrefix(prefix))| *prefix).collect();
    // With `v4_sources`, no outer header has the source `v4`.
    let v4 = underlay.v4_sources.or(underlay.v4.map(Ipv4Net::from)).map(IpNet::V4);
    let v6 = underlay.v6_sources.or(underlay.v6.map(Ipv6Net::from)).map(IpNet::V6);
    for own in [v4, v6].into_iter().flatten() {
        if !balancers.iter().any(|prefix| prefix.contains(&own)) {
            let own = AddressOrPrefix(own);
            return Err(Problem::new(
                FIELD,
                format!(
                    "does not contain {own}, a source of this balancer's outer headers, so that backends would drop \
                     its packets; add it"
                ),
            ));
        }
    }
    Ok(balancers)
}

/// Checks the prefix of source addresses of one family.
fn check_sources(
    family: &str,
    has_address: bool,
    prefix: IpNet,
    example: &str,
) -> Result<(), Problem> {
    let field = format!("underlay.{family}_sources");
    let message = if !has_address {
        format!("underlay has no {family:?} to look up routes from; add it, or remove this field")
    } else if prefix.prefix_len() == prefix.max_prefix_len() {
        format!("{prefix} is one address; write a prefix such as {example}, or remove this field")
    } else if prefix.prefix_len() < MIN_SOURCES_LENGTH {
        format!(
            "{prefix} is too short for a source prefix (minimum /{MIN_SOURCES_LENGTH}); use one such as {example}"
        )
    } else if prefix.trunc() != prefix {
        format!("{prefix} has bits beyond its length; write {}", prefix.trunc())
    } else {
        let mut ends = [prefix.network(), prefix.broadcast()].into_iter();
        return ends.try_for_each(|end| check_usable(end, || field.clone(), ROLE));
    };
    Err(Problem::new(field, message))
}

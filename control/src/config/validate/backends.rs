//! Checks `backends`.

use std::net::IpAddr;

use super::checks::{check_limit, check_usable};
use crate::capacities::{Capacities, Limit};
use crate::config::document::{AddressPair, RawBackend};
use crate::config::model::{BackendConfig, Underlay};
use crate::config::names;
use crate::config::problem::{Problem, Unique, at};
use crate::config::syntax::{JsonObject, ScalarOrObject};

pub(super) fn validate(
    raw: Vec<JsonObject<RawBackend>>,
    underlay: Underlay,
    capacities: Capacities,
) -> Result<Vec<BackendConfig>, Problem> {
    check_limit(raw.len(), Limit::Backends, capacities.backends)?;
    let mut names = Unique::new();
    let mut addresses = Unique::new();
    let mut backends = Vec::with_capacity(raw.len());
    for (index, JsonObject(raw)) in raw.into_iter().enumerate() {
        let location = format!("backends[{index}].name");
        let name = names::name(&raw.name).map_err(at(&*location))?;
        names.insert(raw.name, location, |name| format!("backend name {name:?}"))?;
        let location = format!("backends[{index}].address");
        let AddressPair { v4, v6 } = address_pair(raw.address, &location)?;
        let backend = BackendConfig { name, v4, v6, draining: raw.draining };
        for address in backend.addresses() {
            check_address(address, underlay, &location)?;
            addresses.insert(address, location.clone(), |address| format!("address {address}"))?;
        }
        backends.push(backend);
    }
    Ok(backends)
}

fn address_pair(
    raw: ScalarOrObject<IpAddr, AddressPair>,
    location: &str,
) -> Result<AddressPair, Problem> {
    match raw {
        ScalarOrObject::Scalar(IpAddr::V4(v4)) => Ok(AddressPair { v4: Some(v4), v6: None }),
        ScalarOrObject::Scalar(IpAddr::V6(v6)) => Ok(AddressPair { v4: None, v6: Some(v6) }),
        ScalarOrObject::Object(AddressPair { v4: None, v6: None }) => Err(Problem::new(
            location,
            "no address; write \"v4\", \"v6\" or both, such as { \"v4\": \"10.0.1.11\" }",
        )),
        ScalarOrObject::Object(pair) => Ok(pair),
    }
}

fn check_address(address: IpAddr, underlay: Underlay, location: &str) -> Result<(), Problem> {
    check_usable(address, || location.to_owned(), "a backend's address")?;
    let sources = underlay
        .own_prefixes()
        .find(|own| own.prefix_len() < own.max_prefix_len() && own.contains(&address));
    if let Some(sources) = sources {
        return Err(Problem::new(
            location,
            format!(
                "{address} is in {sources}, the prefix of the sources of outer headers (underlay); write the backend host's address"
            ),
        ));
    }
    if underlay.address_for(address) == Some(address) {
        return Err(Problem::new(
            location,
            format!(
                "{address} is also the balancer's own address (underlay); write the backend host's address"
            ),
        ));
    }
    Ok(())
}

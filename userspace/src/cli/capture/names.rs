//! The names for the indexes in events.

use anyhow::anyhow;
use sluice_control::step_text::unnamed;
use sluice_datapath::abi::maps::balancer;

use crate::error::CliError;
use crate::kernel::bpf::{BalancerMaps, Pins};

/// The names of services and backends at one time, by index; empty for an unused index.
pub(super) struct EventNames {
    services: Vec<String>,
    backends: Vec<String>,
}

impl EventNames {
    pub(super) fn open(pins: &Pins) -> Result<Self, CliError> {
        let maps = BalancerMaps::open(pins).map_err(CliError::operation)?;
        let services = maps.elements(balancer::SERVICE_RECORDS).map_err(CliError::operation)?;
        let backends = maps.elements(balancer::BACKEND_RECORDS).map_err(CliError::operation)?;
        Ok(Self {
            services: services.iter().map(|record| record.name.as_str().to_owned()).collect(),
            backends: backends.iter().map(|record| record.name.as_str().to_owned()).collect(),
        })
    }

    /// The index of a service.
    pub(super) fn service_index(&self, wanted: &str) -> Result<u32, CliError> {
        let found = self.services.iter().position(|name| !name.is_empty() && name == wanted);
        found.map(|index| index as u32).ok_or_else(|| {
            let names: Vec<_> =
                self.services.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            CliError::bad_input(anyhow!(
                "there is no service {wanted:?}; the services are: {names}"
            ))
        })
    }

    /// The name of a service, or the index if it has none any more.
    pub(super) fn service(&self, index: u32) -> String {
        named(self.services.get(index as usize).map_or("", String::as_str), index)
    }

    /// The name of a backend, or the index if it has none any more.
    pub(super) fn backend(&self, index: u32) -> String {
        named(self.backends.get(index as usize).map_or("", String::as_str), index)
    }
}

/// The name of an interface, or the index if it does not exist any more.
pub(super) fn interface(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    named(name.as_deref().unwrap_or(""), index)
}

fn named(name: &str, index: u32) -> String {
    if name.is_empty() { unnamed(index) } else { name.to_owned() }
}

//! The names behind the indices of events.

use anyhow::anyhow;

use crate::bpf::{BalancerMaps, Pins};
use crate::failure::Failure;

/// The names of services, backends and interfaces, as they are at one moment.
pub(super) struct Names {
    maps: BalancerMaps,
}

impl Names {
    pub(super) fn open(pins: &Pins) -> Result<Self, Failure> {
        Ok(Self { maps: BalancerMaps::open(pins).map_err(Failure::operation)? })
    }

    /// The index of a service.
    pub(super) fn service_index(&self, wanted: &str) -> Result<u32, Failure> {
        let mut names = Vec::new();
        for index in 1..=self.maps.capacities().services {
            let record = self.maps.service_record(index).map_err(Failure::operation)?;
            match record.name.as_str() {
                "" => {}
                name if name == wanted => return Ok(index),
                name => names.push(name.to_owned()),
            }
        }
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Failure::bad_input(anyhow!("there is no service {wanted:?}; there are: {names}")))
    }

    /// A service's name, or its index where it has none any more.
    pub(super) fn service(&self, index: u32) -> String {
        let record = self.maps.service_record(index).ok();
        named(record.as_ref().map_or("", |record| record.name.as_str()), index)
    }

    /// A backend's name, or its index where it has none any more.
    pub(super) fn backend(&self, index: u32) -> String {
        let record = u16::try_from(index).ok().and_then(|index| self.maps.backend_record(index).ok());
        named(record.as_ref().map_or("", |record| record.name.as_str()), index)
    }
}

/// An interface's name, or its index where it has none any more.
pub(super) fn interface(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    named(name.as_deref().unwrap_or(""), index)
}

fn named(name: &str, index: u32) -> String {
    if name.is_empty() { format!("(index {index})") } else { name.to_owned() }
}

//! The steps of a plan.

use std::fmt;

use ipnet::IpNet;
use sluice_datapath::abi;
use sluice_datapath::abi::{
    Backend, Connection, QuicIdLengths, QuicServerKey, RouteKey, VipAddress, VipKey,
};

use crate::lookup_table::LookupTable;

/// A backend to be written at an index that nothing refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    /// Where.
    pub index: u16,
    /// Its name.
    pub name: String,
    /// What packets read.
    pub entry: Backend,
    /// Whether it is draining.
    pub draining: bool,
}

/// A lookup table to be put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Index of the service.
    pub service: u32,
    /// The service's name.
    pub name: String,
    /// Whether the index had no service before.
    pub created: bool,
    /// The table.
    pub table: LookupTable,
}

/// One change of the maps: a batch, applied whole before the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write backends that no table names yet.
    AddBackends(Vec<NewBackend>),
    /// Write down which backends are draining. Packets do not read it: the tables say the same.
    SetDraining(Vec<(u16, bool)>),
    /// Swap lookup tables, all in one batch.
    ReplaceTables(Vec<NewTable>),
    /// Add routes or change where they lead, before any VIP leads to them.
    PutRoutes(Vec<(RouteKey, abi::ServiceRef)>),
    /// Remove routes that are not wanted.
    RemoveRoutes(Vec<RouteKey>),
    /// Give QUIC server IDs to backends, then change how long services' server IDs are.
    PutServerIds {
        /// New or changed IDs.
        servers: Vec<(QuicServerKey, Connection)>,
        /// New or changed lengths.
        lengths: Vec<(u32, QuicIdLengths)>,
    },
    /// End QUIC server IDs of services, then remove those that are not wanted.
    RemoveServerIds {
        /// IDs that are not wanted.
        servers: Vec<QuicServerKey>,
        /// Services that have none any more.
        services: Vec<u32>,
    },
    /// Clear the VIPs that these addresses' entries hold copies of, since they are about to change
    /// or to go.
    ClearCopies(Vec<(IpNet, VipAddress)>),
    /// Add VIPs or change their service or options, then add VIP addresses or change their options
    /// and copies.
    PutVips {
        /// New or changed addresses.
        addresses: Vec<(IpNet, VipAddress)>,
        /// New or changed VIPs.
        vips: Vec<(VipKey, abi::ServiceRef)>,
    },
    /// Remove VIPs, then the addresses that have none left.
    RemoveVips {
        /// VIPs that are not wanted.
        vips: Vec<VipKey>,
        /// Addresses that are not wanted.
        addresses: Vec<IpNet>,
    },
    /// Forget services; their indexes rest.
    RetireServices(Vec<u32>),
    /// Forget backends; their indexes rest.
    RetireBackends(Vec<u16>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddBackends(new) => {
                write!(f, "add backends {}", list(new.iter().map(|backend| backend.name.as_str())))
            }
            Self::SetDraining(changed) => {
                write!(f, "change the draining mark of {} backends", changed.len())
            }
            Self::ReplaceTables(new) => {
                write!(
                    f,
                    "replace the lookup tables of {}",
                    list(new.iter().map(|table| table.name.as_str()))
                )
            }
            Self::PutRoutes(routes) => write!(f, "add or change {} routes", routes.len()),
            Self::RemoveRoutes(keys) => write!(f, "remove {} routes", keys.len()),
            Self::PutServerIds { servers, .. } => {
                write!(f, "add or change {} QUIC server IDs", servers.len())
            }
            Self::RemoveServerIds { servers, .. } => {
                write!(f, "remove {} QUIC server IDs", servers.len())
            }
            Self::ClearCopies(addresses) => {
                write!(f, "clear the copies of VIPs at {} VIP addresses", addresses.len())
            }
            Self::PutVips { addresses, vips } => {
                write!(f, "add or change {} VIP addresses and {} VIPs", addresses.len(), vips.len())
            }
            Self::RemoveVips { vips, addresses } => {
                write!(f, "remove {} VIPs and {} VIP addresses", vips.len(), addresses.len())
            }
            Self::RetireServices(indexes) => write!(f, "retire {} services", indexes.len()),
            Self::RetireBackends(indexes) => write!(f, "retire {} backends", indexes.len()),
        }
    }
}

/// Names as a sentence has room for: some, and how many more there are.
fn list<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 10;
    let shown = names.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

//! The state of an instance, as `sluice status` shows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::memory::MemoryStatus;
use crate::daemon::roles::{self, RoleSpec};
use crate::daemon::runtime;
use crate::error::CliError;
use crate::kernel::netlink::Netlink;
use crate::read::daemon::{self, DaemonStatus};
use crate::read::devices::{DeviceStatus, devices};
use crate::read::interfaces::{InterfaceStatus, interfaces, interfaces_in_journal};
use crate::read::next_hops::{NextHopStatus, next_hops};
use crate::read::snapshot::{self, BackendSnapshot, LbSnapshot, Snapshot};
use crate::role::Role;

/// The state of an instance on this host.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// The balancer, if this host has the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb: Option<LbStatus>,
    /// The backend, if this host has the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendStatus>,
}

/// The state of a balancer.
#[derive(Debug, Serialize)]
pub struct LbStatus {
    /// Whether the program is attached to all interfaces.
    pub forwarding: bool,
    /// The daemon; `null` if none runs.
    pub daemon: Option<DaemonStatus>,
    /// The interfaces, and whether the program is attached there.
    pub interfaces: Vec<InterfaceStatus>,
    /// Digest of the text of the configuration that was applied last, hexadecimal.
    pub config_digest: String,
    /// Time of that, in seconds since 1970 (UTC).
    pub applied_at: u64,
    /// Whether a change of the maps is incomplete.
    pub changing: bool,
    /// The services, by name.
    pub services: Vec<ServiceStatus>,
    /// The backends, by name.
    pub backends: Vec<BackendEntry>,
    /// Memory of the maps.
    pub memory: MemoryStatus,
}

/// A service in the maps.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<String>,
    /// Routes: client prefix and name of the service that handles it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, String>,
    /// QUIC server IDs, as `0:c4605e` (configuration's rotation and hexadecimal ID), and the name
    /// of the backend.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_ids: BTreeMap<String, String>,
    /// Whether flows are kept in the connection table.
    pub tracked: bool,
    /// Incremented with every table.
    pub generation: u32,
    /// Digest of the slots' owners, hexadecimal; equal on balancers with equal tables.
    pub table_digest: String,
    /// Number of slots.
    pub table_size: u32,
    /// Slots of each backend, by name. Draining backends have none.
    pub slots: BTreeMap<String, u32>,
}

/// A backend in the maps.
#[derive(Debug, Serialize)]
pub struct BackendEntry {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it keeps existing connections and gets no new ones.
    pub draining: bool,
    /// The next hop towards each address; absent without a route.
    pub next_hops: BTreeMap<IpAddr, NextHopStatus>,
    /// Remaining lifetime, in seconds, of MTUs that an ICMP error lowered below the route's. 0 if
    /// it expired while no daemon runs: the MTU stays in force until one starts.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

/// The state of a backend.
#[derive(Debug, Serialize)]
pub struct BackendStatus {
    /// Whether the program is attached to all interfaces, or a tunnel device is up.
    pub decapsulating: bool,
    /// The daemon; `null` if none runs.
    pub daemon: Option<DaemonStatus>,
    /// The interfaces, and whether the program is attached there.
    pub interfaces: Vec<InterfaceStatus>,
    /// The tunnel devices.
    pub devices: Vec<DeviceStatus>,
    /// Whether the BPF program decapsulates, for at least one family; otherwise tunnel devices do.
    pub program: bool,
    /// The MSS that is clamped to, by family; absent where it is not clamped.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub largest_segments: BTreeMap<&'static str, u32>,
    /// Memory of the maps; absent if no program is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
}

/// Reads the state of an instance.
pub(super) fn read(instance: &str) -> Result<Status, CliError> {
    let Snapshot { lb, backend } = Snapshot::read(instance)?;
    runtime::block_on(async {
        let netlink = Netlink::connect().map_err(CliError::operation)?;
        let mut status = Status { instance: instance.to_owned(), lb: None, backend: None };
        if let Some(lb) = &lb {
            status.lb = Some(lb_status(&netlink, instance, lb).await?);
        }
        if let Some(backend) = &backend {
            status.backend = Some(backend_status(&netlink, instance, backend).await?);
        }
        Ok(status)
    })
}

/// The interfaces of the configuration in force. If no daemon responds, those where the role's
/// journal lists a filter.
fn configured(daemon: Option<&DaemonStatus>, spec: &RoleSpec, instance: &str) -> Vec<String> {
    let state = daemon.and_then(|daemon| daemon.state.as_ref());
    match state.filter(|state| !state.interfaces.is_empty()) {
        Some(state) => state.interfaces.clone(),
        None => interfaces_in_journal(spec, instance),
    }
}

/// Whether a role's filter is attached to all of its interfaces.
fn all_attached(interfaces: &[InterfaceStatus]) -> bool {
    !interfaces.is_empty() && interfaces.iter().all(|interface| interface.program_id.is_some())
}

async fn lb_status(
    netlink: &Netlink,
    instance: &str,
    lb: &LbSnapshot,
) -> Result<LbStatus, CliError> {
    let record = lb.record()?;
    let daemon = daemon::daemon(instance, Role::Lb);
    let configured = configured(daemon.as_ref(), &roles::LB, instance);
    let interfaces = interfaces(netlink, &roles::LB, instance, &configured).await?;
    Ok(LbStatus {
        forwarding: all_attached(&interfaces),
        daemon,
        interfaces,
        config_digest: format!("{:016x}", record.config_digest),
        applied_at: record.applied_at,
        changing: record.changing != 0,
        services: services(lb)?,
        backends: backends(netlink, lb).await?,
        memory: MemoryStatus::of(lb.memory()?),
    })
}

fn services(lb: &LbSnapshot) -> Result<Vec<ServiceStatus>, CliError> {
    let mut tables = lb.tables()?;
    let mut vips = lb.vips()?;
    let mut routes = lb.routes()?;
    let mut server_ids = lb.server_ids()?;
    let mut services = Vec::new();
    for (index, name) in lb.services() {
        // A service without a table is being created or removed.
        let Some(table) = tables.remove(&index) else { continue };
        services.push(ServiceStatus {
            name: name.to_owned(),
            vips: vips.remove(&index).unwrap_or_default(),
            routes: routes.remove(&index).unwrap_or_default(),
            server_ids: server_ids.remove(&index).unwrap_or_default(),
            tracked: table.tracked,
            generation: table.generation,
            table_digest: format!("{:016x}", table.digest),
            table_size: table.slots,
            slots: table.owners,
        });
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(services)
}

async fn backends(netlink: &Netlink, lb: &LbSnapshot) -> Result<Vec<BackendEntry>, CliError> {
    let mut paths = lb.paths()?;
    let mut hops = next_hops(netlink, &paths).await?;
    let mut backends: Vec<_> = lb
        .backends()
        .map(|(index, name, backend)| {
            let paths = paths.remove(&index).unwrap_or_default();
            let seconds = |(address, left): (IpAddr, Duration)| (address, left.as_secs());
            BackendEntry {
                name: name.to_owned(),
                addresses: snapshot::addresses(backend).map(|(_, address)| address).collect(),
                draining: backend.draining,
                next_hops: hops.remove(&index).unwrap_or_default(),
                path_mtus: paths.path_mtus.into_iter().map(seconds).collect(),
            }
        })
        .collect();
    backends.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(backends)
}

async fn backend_status(
    netlink: &Netlink,
    instance: &str,
    backend: &BackendSnapshot,
) -> Result<BackendStatus, CliError> {
    let daemon = daemon::daemon(instance, Role::Backend);
    let configured = configured(daemon.as_ref(), &roles::BACKEND, instance);
    let interfaces = interfaces(netlink, &roles::BACKEND, instance, &configured).await?;
    let (program, devices) = (backend.is_by_program()?, devices(netlink).await?);
    Ok(BackendStatus {
        decapsulating: match program {
            true => all_attached(&interfaces),
            false => devices.iter().any(|device| device.up),
        },
        daemon,
        interfaces,
        devices,
        program,
        largest_segments: backend.largest_segments()?,
        memory: backend.memory()?.map(MemoryStatus::of),
    })
}

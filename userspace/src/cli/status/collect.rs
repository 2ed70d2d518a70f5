//! Collects the state of an instance from the maps, the host and the daemon.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::memory::MemoryStatus;
use super::model::{BackendEntry, BackendStatus, LbStatus, ServiceStatus, Status};
use super::notices;
use crate::error::CliError;
use crate::kernel::host::journal::{Change, Journal, STATE_DIRECTORY};
use crate::kernel::netlink::Netlink;
use crate::notice::Notice;
use crate::read::daemon::{self, DaemonStatus};
use crate::read::devices::devices;
use crate::read::interfaces::{InterfaceStatus, interfaces, interfaces_in_journal};
use crate::read::lost::lost;
use crate::read::next_hops::next_hops;
use crate::read::snapshot::{self, BackendSnapshot, LbSnapshot, Snapshot};
use crate::role::Role;
use crate::roles::{self, RoleSpec};
use crate::runtime;
use crate::text;

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
fn configured(
    daemon: Option<&DaemonStatus>,
    spec: &RoleSpec,
    instance: &str,
    journal: &[Change],
) -> Vec<String> {
    let state = daemon.and_then(|daemon| daemon.state.as_ref());
    match state.filter(|state| !state.interfaces.is_empty()) {
        Some(state) => state.interfaces.clone(),
        None => interfaces_in_journal(spec, instance, journal),
    }
}

/// Whether a role's program handles the packets of all of its interfaces.
fn all_attached(interfaces: &[InterfaceStatus]) -> bool {
    !interfaces.is_empty() && interfaces.iter().all(|interface| interface.defect().is_none())
}

/// The changes in the journal of a role.
fn journal(instance: &str, role: Role) -> Vec<Change> {
    Journal::peek(Path::new(STATE_DIRECTORY), instance, role)
}

async fn lb_status(
    netlink: &Netlink,
    instance: &str,
    lb: &LbSnapshot,
) -> Result<LbStatus, CliError> {
    let record = lb.record()?;
    let daemon = daemon::daemon(instance, Role::Lb);
    let configured =
        configured(daemon.as_ref(), &roles::LB, instance, &journal(instance, Role::Lb));
    let programs = lb.programs()?;
    let interfaces =
        interfaces(netlink, &roles::LB, instance, &configured, Some(&programs)).await?;
    let (services, backends) = (services(lb)?, backends(netlink, lb).await?);
    let paths = notices::paths(&services, &backends);
    let mut notices = notices::predecessors(&interfaces);
    notices.extend(paths.notices);
    if record.changing != 0 && daemon.is_none() {
        notices.push(Notice::warning("a change is incomplete; start the daemon to complete it"));
    }
    Ok(LbStatus {
        forwarding: all_attached(&interfaces) && !paths.all_lost,
        notices: Notice::list(notices.into_iter()),
        daemon,
        interfaces,
        config_digest: text::digest(record.config_digest),
        applied_at: record.applied_at,
        changing: record.changing != 0,
        services,
        backends,
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
            table_digest: text::digest(table.digest),
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
    let journal = journal(instance, Role::Backend);
    let configured = configured(daemon.as_ref(), &roles::BACKEND, instance, &journal);
    let programs = backend.programs()?;
    let interfaces =
        interfaces(netlink, &roles::BACKEND, instance, &configured, Some(&programs)).await?;
    let (program, devices) = (backend.is_by_program()?, devices(netlink, &journal).await?);
    let mut notices = notices::predecessors(&interfaces);
    notices.extend(lost(netlink, &journal).await?);
    let receives = |interface: &InterfaceStatus| interface.link_defect().is_none();
    Ok(BackendStatus {
        decapsulating: match program {
            true => all_attached(&interfaces),
            false => {
                !devices.is_empty()
                    && devices.iter().all(|device| device.up)
                    && interfaces.iter().all(receives)
            }
        },
        notices: Notice::list(notices.into_iter()),
        daemon,
        interfaces,
        devices,
        program,
        largest_segments: backend.largest_segments()?,
        memory: backend.memory()?.map(MemoryStatus::of),
    })
}

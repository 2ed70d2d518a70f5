//! `sluice status`: services, backends and memory of an instance.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::args::ShowArgs;
use crate::cli::output::{print, print_json};
use crate::cli::table::table;
use crate::error::CliError;
use crate::read::snapshot::{self, BackendSnapshot, LbSnapshot, Snapshot};

mod memory;

pub use memory::MemoryStatus;

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
    /// Process ID of the daemon; `null` if none runs.
    pub daemon: Option<u32>,
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
    /// MemoryStatus of the maps.
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
    /// Interface index and MTU of the path to each address; absent without a route.
    pub next_hops: BTreeMap<IpAddr, (u32, u32)>,
    /// Remaining lifetime, in seconds, of MTUs that an ICMP error lowered below the route's. 0 if
    /// it expired while no daemon runs: the MTU stays in force until one starts.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

/// The state of a backend.
#[derive(Debug, Serialize)]
pub struct BackendStatus {
    /// Process ID of the daemon; `null` if none runs.
    pub daemon: Option<u32>,
    /// Whether the BPF program decapsulates, for at least one family; otherwise tunnel devices do.
    pub program: bool,
    /// The MSS that is clamped to, by family; absent where it is not clamped.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub largest_segments: BTreeMap<&'static str, u32>,
    /// MemoryStatus of the maps; absent if no program is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
}

/// Runs `sluice status`.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let status = read(&args.instance)?;
    if args.json {
        return print_json(&status);
    }
    print(&text(&status))
}

fn read(instance: &str) -> Result<Status, CliError> {
    let snapshot = Snapshot::read(instance)?;
    Ok(Status {
        instance: instance.to_owned(),
        lb: snapshot.lb.as_ref().map(lb_status).transpose()?,
        backend: snapshot.backend.as_ref().map(backend_status).transpose()?,
    })
}

fn lb_status(lb: &LbSnapshot) -> Result<LbStatus, CliError> {
    let record = lb.record()?;
    Ok(LbStatus {
        daemon: lb.daemon(),
        config_digest: format!("{:016x}", record.config_digest),
        applied_at: record.applied_at,
        changing: record.changing != 0,
        services: services(lb)?,
        backends: backends(lb)?,
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

fn backends(lb: &LbSnapshot) -> Result<Vec<BackendEntry>, CliError> {
    let mut paths = lb.paths()?;
    let mut backends: Vec<_> = lb
        .backends()
        .map(|(index, name, backend)| {
            let paths = paths.remove(&index).unwrap_or_default();
            let seconds = |(address, left): (IpAddr, Duration)| (address, left.as_secs());
            BackendEntry {
                name: name.to_owned(),
                addresses: snapshot::addresses(backend).map(|(_, address)| address).collect(),
                draining: backend.draining,
                next_hops: paths.next_hops,
                path_mtus: paths.path_mtus.into_iter().map(seconds).collect(),
            }
        })
        .collect();
    backends.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(backends)
}

fn backend_status(backend: &BackendSnapshot) -> Result<BackendStatus, CliError> {
    Ok(BackendStatus {
        daemon: backend.daemon(),
        program: backend.is_by_program()?,
        largest_segments: backend.largest_segments()?,
        memory: backend.memory()?.map(MemoryStatus::of),
    })
}

fn text(status: &Status) -> String {
    let mut text = format!("instance {}\n", status.instance);
    let daemon = |process: Option<u32>| match process {
        Some(process) => format!("daemon running, process {process}"),
        None => "no daemon running".to_owned(),
    };
    if let Some(lb) = &status.lb {
        text += &format!(
            "\nbalancer: forwarding; {}; configuration {}\n",
            daemon(lb.daemon),
            lb.config_digest
        );
        if lb.changing {
            text += "  a change is incomplete; start the daemon to complete it\n";
        }
        let rows = lb.services.iter().flat_map(|service| {
            let mut first = true;
            service.slots.iter().map(move |(backend, slots)| {
                let percent = 100.0 * f64::from(*slots) / f64::from(service.table_size.max(1));
                let head = std::mem::take(&mut first);
                let once = |text: String| if head { text } else { String::new() };
                [
                    once(service.name.clone()),
                    once(service.vips.join(" ")),
                    once(if service.tracked { "tracked" } else { "stateless" }.to_owned()),
                    once(service.generation.to_string()),
                    backend.clone(),
                    slots.to_string(),
                    format!("{percent:.1} %"),
                ]
            })
        });
        text += "\n";
        text += &table(
            ["service", "VIPs", "flows", "generation", "backend", "slots", "share"],
            &[3, 5, 6],
            rows,
        );
        let rows = lb.services.iter().flat_map(|service| {
            let routes = service.routes.iter();
            routes.map(|(clients, to)| [service.name.clone(), clients.clone(), to.clone()])
        });
        if rows.clone().next().is_some() {
            text += "\n";
            text += &table(["service", "clients", "routed to"], &[], rows);
        }
        let rows = lb.services.iter().flat_map(|service| {
            let ids = service.server_ids.iter();
            ids.map(|(id, backend)| [service.name.clone(), id.clone(), backend.clone()])
        });
        if rows.clone().next().is_some() {
            text += "\n";
            text += &table(["service", "QUIC server ID", "backend"], &[], rows);
        }
        let rows = lb.backends.iter().map(|backend| {
            let hops =
                backend.addresses.iter().map(|address| match backend.next_hops.get(address) {
                    Some((interface, mtu)) => {
                        let path_mtu = match backend.path_mtus.get(address) {
                            None => String::new(),
                            Some(left) => format!(" by an ICMP error, for another {left} s"),
                        };
                        format!("{address} (interface {interface}, MTU {mtu}{path_mtu})")
                    }
                    None => format!("{address} (no route)"),
                });
            let state = if backend.draining { "draining" } else { "in use" };
            [backend.name.clone(), state.to_owned(), hops.collect::<Vec<_>>().join(", ")]
        });
        text += "\n";
        text += &table(["backend", "state", "addresses"], &[], rows);
        text += &format!("\n{}", lb.memory.text());
    }
    if let Some(backend) = &status.backend {
        let by = if backend.program { "the program at TC ingress" } else { "tunnel devices" };
        text += &format!("\nbackend: decapsulation by {by}; {}\n", daemon(backend.daemon));
        let sizes =
            backend.largest_segments.iter().map(|(family, size)| format!("IP{family}: {size}"));
        let sizes = sizes.collect::<Vec<_>>().join(", ");
        if !sizes.is_empty() {
            text += &format!("  MSS is clamped to: {sizes}\n");
        }
        if let Some(memory) = &backend.memory {
            text += &format!("\n{}", memory.text());
        }
    }
    text
}

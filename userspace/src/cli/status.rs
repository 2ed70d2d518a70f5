//! `sluice status`: what the maps hold right now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use sluice_control::apply;
use sluice_control::config::{Protocol, Vip};
use sluice_control::have::Have;
use sluice_control::prefix::key_prefix;
use sluice_datapath::abi::{ICMP, NextHop, PathMtuRecord, VipKey};
use sluice_datapath::{Address, Family};

use crate::args::ShowArgs;
use crate::cli::output::print;
use crate::cli::table::table;
use crate::clock;
use crate::daemon::lock::Lock;
use crate::error::CliError;
use crate::kernel::bpf::{self, BackendMaps, BalancerMaps, Pins, Usage};
use crate::read::instance;
use crate::role::Role;

mod memory;

pub use memory::Memory;

/// The state of an instance on this host.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// The balancer, when this host is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb: Option<LbStatus>,
    /// The backend, when this host is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendStatus>,
}

/// The state of a balancer.
#[derive(Debug, Serialize)]
pub struct LbStatus {
    /// The daemon's process; none while packets are forwarded without one.
    pub daemon: Option<u32>,
    /// Digest of the configuration's text that was applied last, hexadecimal.
    pub config_digest: String,
    /// When it was applied: seconds since 1970, UTC.
    pub applied_at: u64,
    /// Whether a change was begun and not completed.
    pub changing: bool,
    /// The services, by name.
    pub services: Vec<ServiceStatus>,
    /// The backends, by name.
    pub backends: Vec<BackendEntry>,
    /// What the maps take.
    pub memory: Memory,
}

/// A service in the maps.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<String>,
    /// Its clients that are other services', by prefix.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, String>,
    /// Its QUIC server IDs: the configuration's rotation and the ID, hexadecimal, as `0:c4605e`,
    /// and the backend's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_ids: BTreeMap<String, String>,
    /// Whether its flows are kept in the connection table.
    pub tracked: bool,
    /// Counts up with every table.
    pub generation: u32,
    /// Digest of the table's owners, hexadecimal: balancers that agree have the same.
    pub table_digest: String,
    /// Number of slots.
    pub table_size: u32,
    /// How many slots each backend takes now, by name. Draining ones take none.
    pub slots: BTreeMap<String, u32>,
}

/// A backend in the maps.
#[derive(Debug, Serialize)]
pub struct BackendEntry {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it keeps its flows and takes no new ones.
    pub draining: bool,
    /// Interface index and MTU towards each of its addresses; absent where there is no route.
    pub next_hops: BTreeMap<IpAddr, (u32, u32)>,
    /// Where that MTU is smaller than the route's, because a router has told so: for how much
    /// longer it counts, in seconds. 0 when it has expired while no daemon runs: it counts until
    /// one is started.
    pub path_mtus: BTreeMap<IpAddr, u64>,
}

/// The state of a backend.
#[derive(Debug, Serialize)]
pub struct BackendStatus {
    /// The daemon's process; none while packets are served without one.
    pub daemon: Option<u32>,
    /// Whether our program decapsulates, for at least one family; otherwise tunnel devices do.
    pub program: bool,
    /// The largest maximum segment size that clients are told, by family; absent where it is left
    /// as it comes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub largest_segments: BTreeMap<&'static str, u32>,
    /// What the programs' maps take; absent without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// Runs `sluice status`.
///
/// # Errors
///
/// [`CliError::Operation`] when nothing of the instance is on this host, or its maps cannot be read.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let status = read(&args.instance)?;
    if args.json {
        let json = serde_json::to_string_pretty(&status).map_err(CliError::operation)?;
        return print(&format!("{json}\n"));
    }
    print(&text(&status))
}

fn read(instance: &str) -> Result<Status, CliError> {
    let (lb, backend) = instance::open(instance)?;
    let served_by_devices = Lock::state_exists(instance, Role::Backend);
    if lb.is_none() && backend.is_none() && !served_by_devices {
        return Err(instance::absent(instance));
    }
    Ok(Status {
        instance: instance.to_owned(),
        lb: lb.map(|maps| lb_status(instance, &maps)).transpose()?,
        backend: (backend.is_some() || served_by_devices)
            .then(|| {
                let memory = backend
                    .is_some()
                    .then(|| memory(instance, Role::Backend, BackendMaps::usage))
                    .transpose()?;
                let decapsulates = backend.as_ref().map(BackendMaps::decapsulates).transpose();
                Ok::<_, CliError>(BackendStatus {
                    daemon: Lock::holder(instance, Role::Backend),
                    program: decapsulates.map_err(CliError::operation)?.unwrap_or(false),
                    largest_segments: backend
                        .as_ref()
                        .map_or(Ok(BTreeMap::new()), largest_segments)?,
                    memory,
                })
            })
            .transpose()?,
    })
}

fn memory(
    instance: &str,
    role: Role,
    usage: fn(&Pins) -> Result<Vec<Usage>, bpf::Error>,
) -> Result<Memory, CliError> {
    let pins = Pins::find(instance, role)
        .map_err(CliError::operation)?
        .ok_or_else(|| instance::absent(instance))?;
    Ok(Memory::of(usage(&pins).map_err(CliError::operation)?))
}

fn lb_status(instance: &str, maps: &BalancerMaps) -> Result<LbStatus, CliError> {
    let have = apply::have(maps).map_err(CliError::operation)?;
    let record = maps.instance().map_err(CliError::operation)?;
    let next_hops = maps.next_hops().map_err(CliError::operation)?;
    let path_mtus = maps.path_mtus().map_err(CliError::operation)?;
    let now = clock::now();
    let mut backends = Vec::new();
    for (index, backend) in &have.backends {
        let Some(name) = &backend.name else { continue };
        let mut entry = BackendEntry {
            name: name.clone(),
            addresses: Vec::new(),
            draining: backend.draining,
            next_hops: BTreeMap::new(),
            path_mtus: BTreeMap::new(),
        };
        for (family, address) in [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)] {
            if address != Address::NONE {
                entry.addresses.push(address.into());
                let at = NextHop::index(*index, family) as usize;
                if let Some(next_hop) = next_hops.get(at).filter(|next_hop| next_hop.interface != 0)
                {
                    let mtu = u32::from(next_hop.mtu);
                    entry.next_hops.insert(address.into(), (next_hop.interface, mtu));
                    let told = |record: &&PathMtuRecord| {
                        (record.mtu, record.epoch) == (mtu, backend.epoch)
                    };
                    if let Some(record) = path_mtus.get(at).filter(told) {
                        let left = Duration::from_nanos(record.until.saturating_sub(now));
                        entry.path_mtus.insert(address.into(), left.as_secs());
                    }
                }
            }
        }
        backends.push(entry);
    }
    backends.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(LbStatus {
        daemon: Lock::holder(instance, Role::Lb),
        config_digest: format!("{:016x}", record.config_digest),
        applied_at: record.applied_at,
        changing: record.changing != 0,
        services: services(&have),
        backends,
        memory: memory(instance, Role::Lb, BalancerMaps::usage)?,
    })
}

fn largest_segments(maps: &BackendMaps) -> Result<BTreeMap<&'static str, u32>, CliError> {
    let mut sizes = BTreeMap::new();
    for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let size = maps.largest_segment(family).map_err(CliError::operation)?;
        if size != 0 {
            sizes.insert(name, size);
        }
    }
    Ok(sizes)
}

fn services(have: &Have) -> Vec<ServiceStatus> {
    let addresses: BTreeMap<u32, IpNet> =
        have.addresses.iter().map(|(prefix, has)| (has.id, *prefix)).collect();
    let mut vips: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (key, entry) in have.vips.iter().filter(|(key, _)| key.protocol != ICMP) {
        vips.entry(entry.service).or_default().push(vip(&addresses, key));
    }
    let mut services = Vec::new();
    for (index, service) in &have.services {
        let (Some(name), Some(table)) = (&service.name, &service.table) else { continue };
        let mut owned: BTreeMap<u16, u32> = BTreeMap::new();
        for slot in &table.slots {
            *owned.entry(slot.first).or_default() += 1;
        }
        let backend = |index: u16| {
            let name = have.backends.get(&index).and_then(|backend| backend.name.clone());
            name.unwrap_or_else(|| format!("(index {index})"))
        };
        let mut slots: BTreeMap<String, u32> = BTreeMap::new();
        for (index, count) in owned {
            *slots.entry(backend(index)).or_default() += count;
        }
        let routes =
            have.routes.iter().filter(|(key, _)| key.service == *index).map(|(key, to)| {
                let leads_to =
                    have.services.get(&to.service).and_then(|service| service.name.clone());
                (
                    key_prefix(key.clients()).to_string(),
                    leads_to.unwrap_or_else(|| format!("(index {})", to.service)),
                )
            });
        let server_ids = have.quic_servers.iter().filter(|(key, _)| key.service == *index).map(
            |(key, server)| {
                let (rotation, id, length) = key.server_id();
                let id: String = id[..length].iter().map(|octet| format!("{octet:02x}")).collect();
                (format!("{rotation}:{id}"), backend(server.backend as u16))
            },
        );
        services.push(ServiceStatus {
            name: name.clone(),
            server_ids: server_ids.collect(),
            routes: routes.collect(),
            vips: vips.remove(index).unwrap_or_default(),
            tracked: table.head.tracked,
            generation: table.generation,
            table_digest: format!("{:016x}", table.digest),
            table_size: table.head.slots,
            slots,
        });
    }
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// A VIP as the configuration writes it.
fn vip(addresses: &BTreeMap<u32, IpNet>, key: &VipKey) -> String {
    let protocol =
        if key.protocol == Protocol::Tcp.number() { Protocol::Tcp } else { Protocol::Udp };
    let vip = addresses
        .get(&key.address)
        .and_then(|address| Vip::new(*address, key.port.number(), protocol).ok());
    vip.map_or_else(
        || format!("(address {}):{}/{protocol}", key.address, key.port.number()),
        |vip| vip.to_string(),
    )
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
            text += "  a change was begun and not completed: start the daemon to complete it\n";
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
                        let told = match backend.path_mtus.get(address) {
                            None => String::new(),
                            Some(left) => format!(" told by a router, for another {left} s"),
                        };
                        format!("{address} (interface {interface}, MTU {mtu}{told})")
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
            text += &format!("  clients are told of segments of at most so many bytes: {sizes}\n");
        }
        if let Some(memory) = &backend.memory {
            text += &format!("\n{}", memory.text());
        }
    }
    text
}

//! `sluice counters`: the counters of the programs.

use std::collections::BTreeMap;

use serde::Serialize;
use sluice_datapath::abi::maps::backend;
use sluice_datapath::{Reason, Verdict};

use crate::args::ShowArgs;
use crate::cli::output::{print, print_json};
use crate::cli::table::table;
use crate::error::CliError;
use crate::kernel::bpf::BackendMaps;
use crate::kernel::routing::path_mtu::PathErrorOutcome;
use crate::read::snapshot::{BackendSnapshot, LbSnapshot, Snapshot};

/// The counters of an instance on this host.
#[derive(Debug, Serialize)]
pub struct CounterReport {
    /// Its name.
    pub instance: String,
    /// The balancer's, if this host has the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lb: Option<LbCounterReport>,
    /// The backend's, if this host has the role and a program decapsulates or clamps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendCounterReport>,
}

/// The counters of a balancer.
#[derive(Debug, Serialize)]
pub struct LbCounterReport {
    /// Forwarded packets, by service.
    pub services: BTreeMap<String, ServiceCount>,
    /// Forwarded packets, by backend.
    pub backends: BTreeMap<String, BackendCount>,
    /// All packets that were not forwarded, by reason, those of services included.
    pub reasons: BTreeMap<&'static str, u64>,
    /// ICMP errors about encapsulated packets, by outcome; only outcomes that occurred.
    pub path_errors: BTreeMap<&'static str, u64>,
}

/// The counters of a backend.
#[derive(Debug, Serialize)]
pub struct BackendCounterReport {
    /// Packets that the program decapsulated; tunnel devices have counters of their own.
    pub decapsulated: Count,
    /// SYNs and SYN-ACKs whose MSS option was lowered.
    pub mss_clamped: u64,
    /// Packets that were not decapsulated, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
}

/// Packets and bytes. A merged packet (GRO) counts as its segments; bytes are those of the client's
/// IP packets.
#[derive(Debug, Serialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The counters of a service.
#[derive(Debug, Serialize)]
pub struct ServiceCount {
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
    /// TCP segments that opened a connection.
    pub new_connections: u64,
    /// Dropped packets, by reason; only reasons that occurred.
    pub drops: BTreeMap<&'static str, u64>,
}

/// The packets that were forwarded to a backend.
#[derive(Debug, Serialize)]
pub struct BackendCount {
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
    /// TCP segments that opened a connection.
    pub new_connections: u64,
}

/// Runs `sluice counters`.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let snapshot = Snapshot::read(&args.instance)?;
    let backend = snapshot.backend.as_ref();
    let counters = CounterReport {
        instance: args.instance.clone(),
        lb: snapshot.lb.as_ref().map(lb_counters).transpose()?,
        backend: backend.and_then(BackendSnapshot::maps).map(backend_counters).transpose()?,
    };
    if args.json {
        return print_json(&counters);
    }
    print(&text(&counters))?;
    if let Some(backend) = backend
        && !backend.is_by_program()?
    {
        print("\nbackend: tunnel devices decapsulate; their counters: `ip -s link show`\n")?;
    }
    Ok(())
}

fn lb_counters(lb: &LbSnapshot) -> Result<LbCounterReport, CliError> {
    let mut services = BTreeMap::new();
    for (index, name) in lb.services() {
        let counted = lb.service_counters(index)?;
        let drops = Reason::ALL.iter().filter_map(|reason| {
            let dropped = counted.drops[reason.drop_index()? as usize];
            (dropped != 0).then_some((reason.name(), dropped))
        });
        let count = ServiceCount {
            count: Count { packets: counted.packets, bytes: counted.bytes },
            new_connections: counted.new_connections,
            drops: drops.collect(),
        };
        services.insert(name.to_owned(), count);
    }
    let mut backends = BTreeMap::new();
    for (index, name, _) in lb.backends() {
        let counted = lb.backend_counters(index)?;
        let count = BackendCount {
            count: Count { packets: counted.packets, bytes: counted.bytes },
            new_connections: counted.new_connections,
        };
        backends.insert(name.to_owned(), count);
    }
    let path_errors = lb.path_errors()?;
    Ok(LbCounterReport {
        services,
        backends,
        reasons: by_name(lb.reasons()?),
        path_errors: path_errors
            .into_iter()
            .map(|(outcome, count)| (outcome.name(), count))
            .collect(),
    })
}

fn backend_counters(maps: &BackendMaps) -> Result<BackendCounterReport, CliError> {
    let count = maps.total(backend::DECAPSULATED, 0).map_err(CliError::operation)?;
    Ok(BackendCounterReport {
        decapsulated: Count { packets: count.packets, bytes: count.bytes },
        mss_clamped: maps.total(backend::MSS_CLAMPED, 0).map_err(CliError::operation)?,
        reasons: by_name(maps.reasons().map_err(CliError::operation)?),
    })
}

fn by_name(counted: Vec<(Reason, u64)>) -> BTreeMap<&'static str, u64> {
    counted.into_iter().map(|(reason, count)| (reason.name(), count)).collect()
}

fn text(counters: &CounterReport) -> String {
    let mut text = format!("instance {}\n", counters.instance);
    let row = |name: &str, count: &Count| {
        [name.to_owned(), count.packets.to_string(), count.bytes.to_string()]
    };
    if let Some(lb) = &counters.lb {
        let rows = lb.services.iter().map(|(name, service)| {
            let [name, packets, bytes] = row(name, &service.count);
            [
                name,
                packets,
                bytes,
                service.new_connections.to_string(),
                service.drops.values().sum::<u64>().to_string(),
            ]
        });
        text += &format!(
            "\n{}",
            table(
                ["service", "packets", "bytes", "new connections", "dropped"],
                &[1, 2, 3, 4],
                rows
            )
        );
        let rows = lb.backends.iter().map(|(name, backend)| {
            let [name, packets, bytes] = row(name, &backend.count);
            [name, packets, bytes, backend.new_connections.to_string()]
        });
        text += &format!(
            "\n{}",
            table(["backend", "packets", "bytes", "new connections"], &[1, 2, 3], rows)
        );
        let drops = lb
            .services
            .iter()
            .flat_map(|(name, service)| service.drops.iter().map(move |drops| (name, drops)));
        let rows: Vec<_> = drops
            .map(|(name, (reason, count))| [name.clone(), (*reason).to_owned(), count.to_string()])
            .collect();
        if !rows.is_empty() {
            text += &format!("\n{}", table(["drops of service", "reason", "packets"], &[2], rows));
        }
        text += &reason_table("not forwarded", &lb.reasons);
        let occurred = PathErrorOutcome::ALL
            .iter()
            .filter_map(|outcome| Some((outcome, lb.path_errors.get(outcome.name())?)));
        let rows: Vec<_> = occurred
            .map(|(outcome, count)| {
                let verdict = if outcome.is_accepted() { "accepted" } else { "rejected" };
                [
                    outcome.name().to_owned(),
                    verdict.to_owned(),
                    count.to_string(),
                    outcome.meaning().to_owned(),
                ]
            })
            .collect();
        if !rows.is_empty() {
            text += &format!(
                "\n{}",
                table(["ICMP errors about paths", "verdict", "errors", "meaning"], &[2], rows)
            );
        }
    }
    if let Some(backend) = &counters.backend {
        let clamped =
            ["SYN-ACKs clamped (MSS)".to_owned(), backend.mss_clamped.to_string(), String::new()];
        let rows = [row("decapsulated", &backend.decapsulated), clamped];
        text += &format!("\n{}", table(["backend role", "packets", "bytes"], &[1, 2], rows));
        text += &reason_table("not decapsulated", &backend.reasons);
    }
    text
}

fn reason_table(head: &str, counted: &BTreeMap<&'static str, u64>) -> String {
    if counted.is_empty() {
        return String::new();
    }
    let known = Reason::ALL.iter().filter_map(|reason| Some((reason, counted.get(reason.name())?)));
    let rows = known.map(|(reason, count)| {
        let verdict = match reason.verdict() {
            Verdict::Pass => "passed",
            Verdict::Drop => "dropped",
            Verdict::Answer => "answered",
        };
        [
            reason.name().to_owned(),
            verdict.to_owned(),
            count.to_string(),
            reason.meaning().to_owned(),
        ]
    });
    format!("\n{}", table([head, "verdict", "packets", "meaning"], &[2], rows))
}

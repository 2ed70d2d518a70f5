//! The scenarios of a lab run, in order, and the statements that must hold in each.

mod backend_path_mtu;
mod client_path_mtu;
mod direct_return;
mod distribution;
mod echo;
mod encapsulation;
mod gso;
mod gue;
mod membership;
mod mss_clamp;
mod oversize;
mod quic;
mod requests;
mod restart;
mod start;
mod tables;
mod teardown;
mod transfer;
mod underlay_mtu;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::client::runtime;
use super::config::ADDED;
use super::instance::{Lab, LabBinaries};
use super::reporter::{Reporter, Statement};
use super::run::LabRun;
use super::scale::Scale;
use super::state::{StateDir, sweep};
use super::topology::{LabHost, Topology};

/// One scenario. An error of its function ends the run.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// A short name, for test reports.
    pub name: &'static str,
    /// A heading.
    pub title: &'static str,
    run: fn(&mut LabRun<'_>) -> Result<()>,
    /// Whether it removes state that a failure report needs. It is skipped after a failure.
    destructive: bool,
}

impl Scenario {
    const fn new(
        name: &'static str,
        title: &'static str,
        run: fn(&mut LabRun<'_>) -> Result<()>,
    ) -> Self {
        Self { name, title, run, destructive: false }
    }

    const fn destructive(self) -> Self {
        Self { destructive: true, ..self }
    }
}

/// All scenarios in order. Later ones use the state of earlier ones.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("hosts_reach_each_other", "The network without Sluice", start::network),
    Scenario::new("daemons_start", "sluice starts on backends and balancers", start::daemons),
    Scenario::new(
        "requests_are_distributed_by_weight",
        "Requests are distributed by weight",
        distribution::run,
    ),
    Scenario::new(
        "replies_bypass_the_balancers",
        "Direct server return: replies bypass the balancers",
        direct_return::run,
    ),
    Scenario::new(
        "packets_are_encapsulated",
        "Encapsulation: one packet of each IP version",
        encapsulation::run,
    ),
    Scenario::new(
        "balancers_reply_to_pings",
        "The balancers reply to ICMP echo requests",
        echo::run,
    ),
    Scenario::new("gso_packets_are_forwarded", "GSO packets are forwarded whole", gso::run),
    Scenario::new(
        "icmp_errors_reach_the_backend",
        "Path MTU discovery between backends and a client",
        client_path_mtu::run,
    ),
    Scenario::new(
        "clients_get_icmp_errors",
        "Path MTU discovery between a client and the balancers",
        underlay_mtu::run,
    ),
    Scenario::new(
        "balancers_learn_path_mtus",
        "Path MTU discovery between balancers and backends",
        backend_path_mtu::run,
    ),
    Scenario::new(
        "oversize_policies_work",
        "Packets above the underlay MTU: reject, resegment, jumbo",
        oversize::run,
    ),
    Scenario::new(
        "backends_clamp_the_mss",
        "MSS clamping on an underlay with the clients' MTU",
        mss_clamp::run,
    ),
    Scenario::new("gue_works", "Encapsulation in GUE", gue::run),
    Scenario::new(
        "quic_connection_ids_select_backends",
        "QUIC connection IDs select backends",
        quic::run,
    ),
    Scenario::new(
        "changes_break_no_connection",
        "A backend is added, another is drained",
        membership::run,
    ),
    Scenario::new("restarts_break_no_connection", "Daemons end and start again", restart::run),
    Scenario::new("tables_are_equal", "Both balancers have the same lookup tables", tables::run),
    Scenario::new("down_restores_the_hosts", "sluice down restores every host", teardown::down)
        .destructive(),
    Scenario::new("nothing_is_left", "The lab is removed", teardown::remove).destructive(),
];

/// Creates a lab, runs all scenarios and removes the lab. Returns whether every statement holds.
/// After a failure the artefacts are saved, and their directory is printed.
pub fn run_all(base: &Path, scale: Scale, binaries: LabBinaries, reporter: &mut Reporter) -> bool {
    sweep(base);
    let topology = Topology::standard();
    reporter.heading("The topology");
    reporter.info(picture(&topology));
    let failed = |reporter: &mut Reporter, what: &str, error: anyhow::Error| {
        reporter.check(Statement::new(false, format!("{what}: {error:#}")))
    };
    let state = StateDir::new(base, &format!("run-{}", std::process::id()));
    if let Err(error) = remove_on_signal(state.clone()) {
        return failed(reporter, "the signal handlers are installed", error);
    }
    let lab = match Lab::up(topology, state, scale, binaries, false) {
        Ok(lab) => lab,
        Err(error) => return failed(reporter, "the lab is created", error),
    };
    let count = lab.topology.hosts().count();
    let text = format!("{count} hosts with links; HTTP and UDP echo servers on the backends");
    reporter.check(Statement::new(true, text));
    let mut run = LabRun::new(&lab, reporter);
    for scenario in SCENARIOS {
        if scenario.destructive && !run.reporter.all_hold() {
            break;
        }
        run.reporter.heading(scenario.title);
        // A panic is handled like an error, because the clean-up must follow.
        let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut run)));
        let result =
            result.unwrap_or_else(|_| Err(anyhow!("the scenario panicked; see the message above")));
        wait_if_interrupted();
        if let Err(error) = result {
            run.check(Statement::new(false, format!("{error:#}")));
            break;
        }
    }
    if !run.reporter.all_hold() {
        match run.save_artefacts() {
            Ok(directory) => run
                .reporter
                .info(format!("logs, packets and host states are in {}", directory.display())),
            Err(error) => run.reporter.info(format!("cannot save the artefacts: {error:#}")),
        }
    }
    drop(run);
    if let Err(error) = lab.remove() {
        failed(reporter, "the lab is removed", error);
    }
    reporter.all_hold()
}

/// The standard topology with a note at the backend that is added later.
pub fn picture(topology: &Topology) -> String {
    let note = |host: &LabHost| if host.name == ADDED { ", added later" } else { "" };
    topology.picture(|host| note(host).to_owned())
}

/// Whether this process has received a signal to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Blocks after a signal: failures while the signal thread removes the lab are not findings.
fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Starts a thread that removes the lab on a signal and then ends this process.
///
/// Without it the lab's processes would still end, because their init reads a pipe of this process,
/// but the state directory would stay.
fn remove_on_signal(state: StateDir) -> Result<()> {
    let runtime = runtime()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hangup.recv() => SignalKind::hangup(),
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("sluice-lab: signal {}: removing the lab", number.as_raw_value());
        if let Err(error) = state.remove() {
            eprintln!("sluice-lab: error: {error:#}");
        }
        // The exit status that a shell reports for a process that a signal has ended.
        std::process::exit(128 + number.as_raw_value());
    });
    Ok(())
}

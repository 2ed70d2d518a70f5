//! What is done with a lab, step by step, and what must be true after each step.

mod backend_path;
mod change;
mod clamp;
mod gue;
mod merged;
mod packet;
mod path_mtu;
mod pings;
mod plain;
mod quic;
mod reject;
mod replies;
mod restart;
mod restore;
mod size;
mod spread;
mod tables;
mod transfer;

use super::capture::Captured;
use super::client::runtime;
use super::config::Wanted;
use super::connections::Connections;
use super::host_state::HostState;
use super::lab::{Lab, Programs, Scale};
use super::show::Show;
use super::state::{StateDir, sweep};
use super::status::Balancer;
use super::topology::{self, HOSTS};
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// A lab under examination: what one step learns and a later one needs.
pub struct Examination<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Where results are shown and remembered.
    pub show: &'a mut Show,
    /// What the configuration says at this moment.
    wanted: Wanted,
    /// Each host before its first `sluice`.
    before: BTreeMap<&'static str, HostState>,
    /// Packets seen while requests were spread.
    captured: BTreeMap<&'static str, Captured>,
    /// Packets that each balancer counted as forwarded meanwhile.
    forwarded: BTreeMap<&'static str, u64>,
    /// Answers of backends while packets were captured.
    answered: u64,
    /// Connections that stay open over several steps.
    connections: Option<Connections>,
}

/// One step: what happens, and the function that makes it happen. An error means the steps after it
/// make no sense.
#[derive(Clone, Copy)]
pub struct Step {
    /// A short name, for test reports.
    pub name: &'static str,
    /// A heading.
    pub title: &'static str,
    run: fn(&mut Examination<'_>) -> Result<()>,
    /// Whether it takes away what a failure before it is best understood from. It is not taken
    /// after a failure.
    destroys: bool,
}

impl Step {
    const fn new(
        name: &'static str,
        title: &'static str,
        run: fn(&mut Examination<'_>) -> Result<()>,
    ) -> Self {
        Self { name, title, run, destroys: false }
    }
}

/// All steps in order. Each builds on the ones before.
pub const STEPS: &[Step] = &[
    Step::new("hosts_reach_each_other", "The bare network", plain::run),
    Step::new("daemons_start", "sluice starts on balancers and backends", plain::start),
    Step::new("requests_spread_by_weight", "Requests spread by weight", spread::run),
    Step::new("no_reply_crosses_a_balancer", "Replies go straight to the clients", replies::run),
    Step::new(
        "packets_are_encapsulated",
        "One encapsulated packet of each IP version",
        packet::run,
    ),
    Step::new("pings_are_answered", "The balancers answer pings", pings::run),
    Step::new("path_mtu_discovery_works", "A router with a smaller MTU", path_mtu::run),
    Step::new("merged_packets_are_forwarded", "Merged packets (GSO)", merged::run),
    Step::new("clients_are_told_what_fits", "An underlay with a smaller MTU", reject::run),
    Step::new(
        "what_does_not_fit_is_rejected_cut_or_carried",
        "Packets that do not fit: reject, resegment, jumbo",
        size::run,
    ),
    Step::new("packets_travel_in_udp", "GUE: packets travel in UDP", gue::run),
    Step::new("connection_ids_name_backends", "QUIC: connection IDs name backends", quic::run),
    Step::new(
        "routers_before_backends_are_heard",
        "A router with a smaller MTU before the backends",
        backend_path::run,
    ),
    Step::new(
        "clients_send_what_fits",
        "An underlay of the clients' MTU: the MSS is clamped",
        clamp::run,
    ),
    Step::new(
        "changes_break_no_connection",
        "A backend joins, another drains, connections stay",
        change::run,
    ),
    Step::new(
        "restarts_break_no_connection",
        "Daemons end and come back, traffic goes on",
        restart::run,
    ),
    Step::new("balancers_agree", "Both balancers hold the same tables", tables::run),
    Step {
        destroys: true,
        ..Step::new("down_restores_the_hosts", "sluice down restores every host", restore::run)
    },
    Step { destroys: true, ..Step::new("nothing_is_left", "The lab is removed", restore::removed) },
];

/// Brings a lab up, takes every step, removes the lab. True when everything held. A failure's
/// artefacts are kept and named.
pub fn examine(base: &Path, scale: Scale, programs: Programs, show: &mut Show) -> bool {
    sweep(base);
    show.step("The topology");
    show.say(topology::picture());
    let state = StateDir::new(base, &format!("run-{}", std::process::id()));
    if let Err(error) = remove_on_signal(state.clone()) {
        return show.check(false, format!("signals are handled: {error:#}"));
    }
    let lab = match Lab::up(state, scale, programs, false) {
        Ok(lab) => lab,
        Err(error) => return show.check(false, format!("the lab comes up: {error:#}")),
    };
    let seconds = show.elapsed().as_secs_f64();
    show.check(
        true,
        format!("{} hosts are up with servers running, after {seconds:.1} s", HOSTS.len()),
    );
    let mut examination = Examination {
        lab: &lab,
        show,
        wanted: Wanted::default(),
        before: BTreeMap::new(),
        captured: BTreeMap::new(),
        forwarded: BTreeMap::new(),
        answered: 0,
        connections: None,
    };
    for step in STEPS {
        if step.destroys && !examination.show.all_held() {
            break;
        }
        examination.show.step(step.title);
        // A panic is a failed step like an error: what follows it, the clean-up included, must
        // still happen.
        let result = catch_unwind(AssertUnwindSafe(|| (step.run)(&mut examination)));
        let result =
            result.unwrap_or_else(|_| Err(anyhow!("the step panicked; see the message above")));
        wait_if_interrupted();
        if let Err(error) = result {
            examination.show.check(false, format!("{error:#}"));
            break;
        }
    }
    if !examination.show.all_held() {
        match examination.keep_artefacts() {
            Ok(directory) => examination
                .show
                .say(format!("logs, packets and states are in {}", directory.display())),
            Err(error) => {
                examination.show.say(format!("the artefacts could not be kept: {error:#}"))
            }
        }
    }
    drop(examination);
    if let Err(error) = lab.remove() {
        show.check(false, format!("the lab is removed: {error:#}"));
    }
    show.all_held()
}

/// Whether a signal has asked this process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Leaves the end to the thread that received the signal: what fails while it removes the lab is no
/// finding.
fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Removes the lab when a signal asks this process to end, then ends it.
///
/// Without this the lab's processes would end all the same (their init reads a pipe of ours); its
/// directory would stay.
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
        // What a shell reports for a process that a signal ended.
        std::process::exit(128 + number.as_raw_value());
    });
    Ok(())
}

impl Examination<'_> {
    fn check(&mut self, held: bool, what: impl std::fmt::Display) -> bool {
        self.show.check(held, what)
    }

    /// Puts what helps to understand a failure into a directory that outlives the lab; returns the
    /// directory.
    fn keep_artefacts(&self) -> Result<PathBuf> {
        let directory = tempfile::Builder::new().prefix("sluice-lab-failed-").tempdir()?.keep();
        for kind in [self.lab.state.logs(), self.lab.state.config()] {
            // Gone when it was the removal itself that failed.
            for entry in std::fs::read_dir(kind).into_iter().flatten().flatten() {
                let name = entry.file_name();
                // The key is of no use to a reader and should not travel with a bug report.
                if name != "hash.key" {
                    std::fs::copy(entry.path(), directory.join(name))?;
                }
            }
        }
        for (host, captured) in &self.captured {
            captured.write_pcap(&directory.join(format!("{host}.pcap")))?;
        }
        for host in &HOSTS {
            let mut text = String::new();
            for question in ["status", "counters"] {
                let arguments = [question, "--instance", topology::INSTANCE];
                let answer = self
                    .lab
                    .sluice(host, &arguments)
                    .unwrap_or_else(|error| format!("{error:#}\n"));
                text += &format!("--- sluice {question}\n{answer}");
            }
            for question in
                ["ip addr", "ip route", "ip -6 route", "ip -s link", "tc -s qdisc", "ip neigh"]
            {
                let mut words = question.split(' ');
                let program = words.next().unwrap_or_default();
                let arguments: Vec<_> = words.collect();
                let answer = self.lab.namespaces.run(host, program, &arguments, "");
                text += &format!(
                    "--- {question}\n{}",
                    answer.unwrap_or_else(|error| format!("{error:#}\n"))
                );
            }
            std::fs::write(directory.join(format!("{}.state", host.name)), text)?;
        }
        Ok(directory)
    }

    /// Waits until every balancer's status satisfies a condition.
    fn wait_status(&self, what: &str, good: impl Fn(&Balancer) -> bool) -> Result<()> {
        let deadline = Instant::now() + self.lab.scale.patience;
        for balancer in topology::balancers() {
            loop {
                let status = self.lab.status(balancer)?;
                if good(&status) {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "the status of {} does not show that {what}: {status:?}",
                    balancer.name
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn connections(&self) -> Result<&Connections> {
        self.connections
            .as_ref()
            .context("no connections are open: an earlier step did not get that far")
    }
}

//! `sluice-lab`: runs the lab's scenarios (`run`), or creates a lab to explore (`up`, `status`,
//! `request`, `shell`, `down`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use sluice_tests::lab::client::{self, RequestKind};
use sluice_tests::lab::config::LabConfig;
use sluice_tests::lab::instance::{Lab, LabBinaries};
use sluice_tests::lab::reporter::Reporter;
use sluice_tests::lab::scale::Scale;
use sluice_tests::lab::state::{DEFAULT_STATE, StateDir};
use sluice_tests::lab::topology::{IpVersion, Topology};
use sluice_tests::lab::{holder, scenarios, server};

/// A balancer fleet on this machine: clients, a router, balancers and backends in namespaces.
#[derive(Parser)]
#[command(name = "sluice-lab", version)]
struct LabArgs {
    /// Parent of the labs' state directories.
    #[arg(long, global = true, default_value = DEFAULT_STATE, value_name = "DIR")]
    state: PathBuf,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Create a lab, run all scenarios and their checks, and remove the lab.
    Run,
    /// Create a lab with running daemons and leave it up.
    Up {
        /// Create hosts, links and servers only, without `sluice` daemons.
        #[arg(long)]
        bare: bool,
    },
    /// Show the lab that is up.
    Status,
    /// Send requests to every VIP from a client of the lab that is up, and show replies by backend.
    Request {
        /// The client, such as client1.
        client: String,
        /// Requests to each VIP.
        #[arg(short = 'n', long, default_value_t = 100)]
        count: usize,
    },
    /// Run a command, or an interactive shell, in a host of the lab that is up.
    Shell {
        /// The host, such as client1, router, lb1 or web-1.
        host: String,
        /// The command and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Remove the lab that is up.
    Down,
    /// Serve HTTP and UDP echo (in a backend).
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        name: String,
        #[arg(long)]
        http: Vec<SocketAddr>,
        #[arg(long)]
        echo: Vec<SocketAddr>,
    },
    /// Create the lab's PID namespace.
    #[command(hide = true)]
    PidNamespace {
        #[arg(long)]
        detached: bool,
    },
    /// Run as init of the lab's PID namespace.
    #[command(hide = true)]
    Init {
        #[arg(long)]
        detached: bool,
    },
    /// Create the namespaces of one host and keep them alive.
    #[command(hide = true)]
    Hold { host: String, directory: PathBuf },
}

fn main() -> ExitCode {
    match dispatch(LabArgs::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice-lab: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: LabArgs) -> Result<ExitCode> {
    let base = std::path::absolute(&arguments.state)?;
    let state = StateDir::new(&base, "up");
    match arguments.command {
        LabCommand::PidNamespace { detached } => holder::pid_namespace(detached)?,
        LabCommand::Init { detached } => holder::init(detached)?,
        LabCommand::Hold { host, directory } => holder::hold(&host, &directory)?,
        LabCommand::Serve { name, http, echo } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(server::serve(&name, &http, &echo))?;
        }
        LabCommand::Run => {
            return run(&base);
        }
        LabCommand::Up { bare } => up(state, bare)?,
        LabCommand::Status => status(state)?,
        LabCommand::Request { client, count } => request(state, &client, count)?,
        LabCommand::Shell { host, command } => return shell(state, &host, &command),
        LabCommand::Down => {
            need_root()?;
            state.remove()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn need_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab creates network namespaces and loads BPF programs: run it as root");
    }
    Ok(())
}

fn binaries() -> Result<LabBinaries> {
    LabBinaries::find(std::env::current_exe().context("cannot find the path of this program")?)
}

fn run(base: &Path) -> Result<ExitCode> {
    need_root()?;
    let mut reporter = Reporter::new();
    let passed = scenarios::run_all(base, Scale::from_environment()?, binaries()?, &mut reporter);
    reporter.summary();
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn up(state: StateDir, bare: bool) -> Result<()> {
    need_root()?;
    let reporter = Reporter::new();
    let scale = Scale::from_environment()?;
    let lab = Lab::up(Topology::standard(), state, scale, binaries()?, true)?;
    if !bare {
        let config = LabConfig::default();
        if let Err(error) = lab.configure(config).and_then(|()| lab.start_all(config)) {
            lab.remove()?;
            return Err(error.context("the lab was removed"));
        }
    }
    reporter.info(scenarios::picture(&lab.topology));
    let directory = lab.state.path().display();
    reporter.info(format!("The lab is up; configurations and logs are in {directory}."));
    reporter.info(
        "Try: sluice-lab request client1; sluice-lab shell lb1 -- ip -s link; \
         sluice-lab status; sluice-lab down",
    );
    Ok(())
}

fn open(state: StateDir) -> Result<Lab> {
    need_root()?;
    Lab::open(state, Scale::from_environment()?, binaries()?)
}

fn status(state: StateDir) -> Result<()> {
    let lab = open(state)?;
    let reporter = Reporter::new();
    reporter.info(scenarios::picture(&lab.topology));
    let started = lab.processes();
    reporter.table(
        &["host", "process", "pid", "state", "log"],
        started.iter().map(|(name, started)| {
            let host = name.split_once('/').map_or(name.as_str(), |(host, _)| host);
            let alive = if started.process.alive() { "running" } else { "ended" };
            let pid = started.process.pid.to_string();
            vec![
                host.into(),
                started.title.clone(),
                pid,
                alive.into(),
                started.log.display().to_string(),
            ]
        }),
    );
    let balancers = lab.topology.balancers().iter();
    for balancer in balancers.filter(|balancer| lab.daemon(balancer).is_some()) {
        let status = lab.status(balancer)?;
        reporter.info(format!("\n{}", balancer.name));
        let counters = lab.counters(balancer)?;
        let rows = status.services.iter().flat_map(|service| {
            service.slots.iter().map(|(backend, slots)| {
                let packets = counters.backends.get(backend).map_or(0, |traffic| traffic.packets);
                let numbers =
                    [service.generation, *slots, packets].map(|number| number.to_string());
                let draining = if status.is_draining(backend) { "draining" } else { "" };
                let mut row = vec![service.name.clone(), backend.clone()];
                row.extend(numbers);
                row.push(draining.into());
                row
            })
        });
        reporter.table(
            &["service", "backend", "generation", "slots", "packets, all services", ""],
            rows,
        );
    }
    Ok(())
}

fn request(state: StateDir, host: &str, count: usize) -> Result<()> {
    let lab = open(state)?;
    let sender = lab.topology.host(host)?;
    let reporter = Reporter::new();
    let limit = lab.scale.timeout;
    let mut rows = Vec::new();
    for version in IpVersion::BOTH {
        for (kind, name) in [(RequestKind::Http, "HTTP"), (RequestKind::Echo, "UDP echo")] {
            let vip = kind.vip(version);
            let responses = client::run_in(&lab.namespaces, sender, || {
                client::send_many(kind, vip, count, limit)
            })?;
            reporter.details(&responses.failures);
            for (backend, replies) in responses.by_backend {
                rows.push(vec![name.into(), vip.to_string(), backend, replies.to_string()]);
            }
        }
    }
    reporter.table(&["request", "VIP", "backend", "replies"], rows);
    Ok(())
}

fn shell(state: StateDir, host: &str, command: &[String]) -> Result<ExitCode> {
    let lab = open(state)?;
    let host = lab.topology.host(host)?;
    let (program, rest) = match command.split_first() {
        Some((program, rest)) => (program.clone(), rest),
        None => (std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into()), command),
    };
    let mut process = Command::new(program);
    // The directory of `sluice` and `sluice-lab` is put before the caller's PATH.
    let program = std::env::current_exe()?;
    let mut path =
        program.parent().map(|directory| directory.as_os_str().to_owned()).unwrap_or_default();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    process.args(rest).env("PATH", path);
    let status = lab.namespaces.spawn(host, process)?.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

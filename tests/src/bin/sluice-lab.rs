//! `sluice-lab`: the lab for people. `run` shows and asserts everything; `up`, `shell`, `status`,
//! `down` keep it open.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use sluice_tests::lab::client::{self, Transport};
use sluice_tests::lab::config::Wanted;
use sluice_tests::lab::lab::{Lab, Programs, Scale};
use sluice_tests::lab::show::Show;
use sluice_tests::lab::state::{STATE, StateDir};
use sluice_tests::lab::{holder, server, steps, topology};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// A balancer fleet on this machine: clients, a router, balancers and backends in namespaces.
#[derive(Parser)]
#[command(name = "sluice-lab", version)]
struct Arguments {
    /// Where labs keep their state while they are up.
    #[arg(long, global = true, default_value = STATE, value_name = "DIR")]
    state: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Brings a lab up, sends traffic, changes things under it, checks everything, and removes it
    /// again.
    Run,
    /// Brings a lab up, with daemons running, and leaves it up.
    Up {
        /// Start no `sluice` daemons: hosts, links and servers only.
        #[arg(long)]
        bare: bool,
    },
    /// Shows the lab that is up.
    Status,
    /// Sends requests to every VIP from a client of the lab that is up, and shows who answered.
    Ask {
        /// The host that sends.
        client: String,
        /// Requests to each VIP.
        #[arg(short = 'n', long, default_value_t = 100)]
        count: usize,
    },
    /// Runs a command, or an interactive shell, in a host of the lab that is up.
    Shell {
        /// The host, such as client1, router, lb1 or web-1.
        host: String,
        /// The command and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Removes the lab that is up.
    Down,
    /// Serves HTTP and UDP echo; runs in the backends.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        name: String,
        #[arg(long)]
        http: Vec<SocketAddr>,
        #[arg(long)]
        echo: Vec<SocketAddr>,
    },
    /// Makes the lab's PID namespace.
    #[command(hide = true)]
    PidNamespace {
        #[arg(long)]
        detached: bool,
    },
    /// Is the init of the lab's PID namespace.
    #[command(hide = true)]
    Init {
        #[arg(long)]
        detached: bool,
    },
    /// Holds the namespaces of one host.
    #[command(hide = true)]
    Hold { host: String, directory: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice-lab: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<ExitCode> {
    let base = std::path::absolute(&arguments.state)?;
    let kept = StateDir::new(&base, "up");
    match arguments.verb {
        Verb::PidNamespace { detached } => holder::pid_namespace(detached)?,
        Verb::Init { detached } => holder::init(detached)?,
        Verb::Hold { host, directory } => holder::hold(&host, &directory)?,
        Verb::Serve { name, http, echo } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(server::serve(&name, &http, &echo))?;
        }
        Verb::Run => {
            return run(&base);
        }
        Verb::Up { bare } => up(kept, bare)?,
        Verb::Status => status(kept)?,
        Verb::Ask { client, count } => ask(kept, &client, count)?,
        Verb::Shell { host, command } => return shell(kept, &host, &command),
        Verb::Down => {
            need_root()?;
            kept.remove()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn need_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and loads BPF programs: run it as root");
    }
    Ok(())
}

fn programs() -> Result<Programs> {
    Programs::find(std::env::current_exe().context("cannot find this program's own file")?)
}

fn run(base: &std::path::Path) -> Result<ExitCode> {
    need_root()?;
    let mut show = Show::new();
    let good = steps::examine(base, Scale::from_environment()?, programs()?, &mut show);
    show.verdict();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn up(state: StateDir, bare: bool) -> Result<()> {
    need_root()?;
    let show = Show::new();
    let lab = Lab::up(state, Scale::from_environment()?, programs()?, true)?;
    if !bare {
        let wanted = Wanted::default();
        if let Err(error) = lab.configure(wanted).and_then(|()| lab.start_all(wanted)) {
            lab.remove()?;
            return Err(error.context("the lab was removed again"));
        }
    }
    show.say(topology::picture());
    show.say(format!(
        "The lab is up; its configurations and logs are in {}.",
        lab.state.path().display()
    ));
    show.say("Try: sluice-lab ask client1; sluice-lab shell lb1 -- ip -s link; sluice-lab status; sluice-lab down");
    Ok(())
}

fn opened(state: StateDir) -> Result<Lab> {
    need_root()?;
    Lab::open(state, Scale::from_environment()?, programs()?)
}

fn status(state: StateDir) -> Result<()> {
    let lab = opened(state)?;
    let show = Show::new();
    show.say(topology::picture());
    let started = lab.processes();
    show.table(
        &["host", "process", "pid", "state", "log"],
        started.iter().map(|(name, started)| {
            let host = name.split_once('/').map_or(name.as_str(), |(host, _)| host);
            let alive = if started.process.alive() { "running" } else { "ended" };
            let pid = started.process.pid.to_string();
            vec![
                host.into(),
                started.what.clone(),
                pid,
                alive.into(),
                started.log.display().to_string(),
            ]
        }),
    );
    for balancer in topology::balancers().filter(|balancer| lab.daemon(balancer).is_some()) {
        let status = lab.status(balancer)?;
        show.say(format!("\n{}", balancer.name));
        let counters = lab.counters(balancer)?;
        let rows = status.services.iter().flat_map(|service| {
            service.slots.iter().map(|(backend, slots)| {
                let packets = counters.backends.get(backend).map_or(0, |traffic| traffic.packets);
                let numbers =
                    [service.generation, *slots, packets].map(|number| number.to_string());
                let draining = if status.drains(backend) { "draining" } else { "" };
                let mut row = vec![service.name.clone(), backend.clone()];
                row.extend(numbers);
                row.push(draining.into());
                row
            })
        });
        show.table(
            &["service", "backend", "generation", "slots", "packets, all services", ""],
            rows,
        );
    }
    Ok(())
}

fn ask(state: StateDir, host: &str, count: usize) -> Result<()> {
    let lab = opened(state)?;
    let sender = topology::host(host)?;
    let show = Show::new();
    let limit = lab.scale.patience;
    let mut answers = Vec::new();
    for family in topology::Family::BOTH {
        for (transport, name, target) in
            [(Transport::Tcp, "HTTP", family.web()), (Transport::Udp, "UDP", family.echo())]
        {
            let tally = client::on(&lab.namespaces, sender, || {
                client::many(transport, target, count, limit)
            })?;
            show.explain(&tally.failures);
            for (backend, answered) in tally.answers {
                answers.push(vec![backend, name.into(), target.to_string(), answered.to_string()]);
            }
        }
    }
    show.table(&["backend", "over", "at", "answers"], answers);
    Ok(())
}

fn shell(state: StateDir, host: &str, command: &[String]) -> Result<ExitCode> {
    let host = topology::host(host)?;
    let lab = opened(state)?;
    let (program, rest) = match command.split_first() {
        Some((program, rest)) => (program.clone(), rest),
        None => (std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into()), command),
    };
    let mut process = Command::new(program);
    // `sluice` and this program are at hand inside; so is what the caller has.
    let own = std::env::current_exe()?;
    let mut path =
        own.parent().map(|directory| directory.as_os_str().to_owned()).unwrap_or_default();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    process.args(rest).env("PATH", path);
    let status = lab.namespaces.spawn(host, process)?.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

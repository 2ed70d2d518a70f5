//! `sluice-lab`: the lab for people. `run` shows and asserts everything; `up`, `shell`, `status`, `down` keep it open.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use sluice_tests::lab::config::Wanted;
use sluice_tests::lab::lab::{Lab, Programs, Scale};
use sluice_tests::lab::show::Show;
use sluice_tests::lab::state::{STATE, StateDir, sweep};
use sluice_tests::lab::{holder, server, topology};
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
    /// Brings a lab up, sends traffic, changes things under it, checks everything, and removes it again.
    Run,
    /// Brings a lab up, with daemons running, and leaves it up.
    Up {
        /// Start no `sluice` daemons: hosts, links and servers only.
        #[arg(long)]
        bare: bool,
    },
    /// Shows the lab that is up.
    Status,
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
    sweep(base);
    let state = StateDir::new(base, &format!("run-{}", std::process::id()));
    let _lab = Lab::up(state, Scale::from_environment()?, programs()?, false)?;
    Ok(ExitCode::SUCCESS)
}

fn up(state: StateDir, bare: bool) -> Result<()> {
    need_root()?;
    let show = Show::new();
    let lab = Lab::up(state, Scale::from_environment()?, programs()?, true)?;
    if !bare {
        lab.configure(Wanted::default())?;
        lab.start_all(Wanted::default())?;
    }
    show.say(topology::picture());
    Ok(())
}

fn status(state: StateDir) -> Result<()> {
    need_root()?;
    let lab = Lab::open(state, Scale::from_environment()?, programs()?)?;
    for (name, started) in lab.processes() {
        println!("{name} {} {}", started.what, started.process.alive());
    }
    Ok(())
}

fn shell(state: StateDir, host: &str, command: &[String]) -> Result<ExitCode> {
    need_root()?;
    let host = topology::host(host)?;
    let lab = Lab::open(state, Scale::from_environment()?, programs()?)?;
    let (program, rest) = match command.split_first() {
        Some((program, rest)) => (program.clone(), rest),
        None => (std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into()), command),
    };
    let mut process = Command::new(program);
    process.args(rest);
    let status = lab.namespaces.spawn(host, process)?.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

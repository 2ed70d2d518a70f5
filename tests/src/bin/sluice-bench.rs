//! `sluice-bench`: what Sluice costs. `make bench-program` and `make bench-kernels` run it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::bench::document;
use sluice_tests::bench::forwarding::{self, Balancer};
use sluice_tests::bench::program::{self, Effort};

/// What Sluice costs.
#[derive(Parser)]
#[command(name = "sluice-bench", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Nanoseconds a packet of the programs alone.
    Program {
        /// The page that figures are written into; without it they are shown only.
        #[arg(long, value_name = "FILE")]
        document: Option<PathBuf>,
    },
    /// Instructions a packet that a whole kernel takes, in the virtual machine of `make bench-kernels`.
    Forwarding {
        /// The `sluice` binary.
        #[arg(long, value_name = "FILE")]
        sluice: PathBuf,
        /// Packets of each figure.
        #[arg(long, default_value_t = 50_000)]
        packets: u64,
        /// What forwards, by name; nothing: all there is.
        balancer: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "programs are loaded and network namespaces made here: run it as root");
    match verb {
        Verb::Program { document } => {
            sluice::bpf::bpffs()?;
            let table =
                program::isolated(|interface| program::table(interface, Effort::FIGURES, |line| println!("{line}")))?;
            if let Some(page) = document {
                document::replace(&page, "bench-program", &table)?;
                println!("written into {}", page.display());
            }
        }
        Verb::Forwarding { sluice, packets, balancer } => {
            let wanted = |known: &Balancer| balancer.is_empty() || balancer.iter().any(|name| name == known.name());
            let balancers: Vec<_> = Balancer::ALL.into_iter().filter(wanted).collect();
            ensure!(!balancers.is_empty(), "there is none of {balancer:?}");
            forwarding::measure(&balancers, packets, &sluice, |figure| {
                println!("@figure {} {} {:.0}", figure.balancer.name(), figure.flows, figure.nanoseconds);
            })?;
        }
    }
    Ok(())
}

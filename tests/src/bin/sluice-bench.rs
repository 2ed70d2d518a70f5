//! `sluice-bench`: what Sluice costs. `make bench-program` and `make bench-kernels` run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::bench::document;
use sluice_tests::bench::forwarding::{self, Balancer, Figure};
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
        /// In a machine whose clock counts instructions: fewer runs and fewer flows.
        #[arg(long)]
        counted: bool,
    },
    /// Instructions a packet that a whole kernel takes, in the virtual machine of
    /// `make bench-kernels`.
    Forwarding {
        /// The `sluice` binary.
        #[arg(long, value_name = "FILE")]
        sluice: PathBuf,
        /// Packets of each figure.
        #[arg(long, default_value_t = 50_000)]
        packets: u32,
        /// What forwards, by name; nothing: all there is.
        balancer: Vec<String>,
    },
    /// Makes a table of what one of the others said in a virtual machine, and writes it into a
    /// page.
    Figures {
        /// The kernel's version.
        #[arg(long)]
        kernel: String,
        /// The page, which has a place for each kernel whose figures it holds.
        #[arg(long, value_name = "FILE")]
        document: Option<PathBuf>,
        /// What was said.
        output: PathBuf,
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
    let root = nix::unistd::geteuid().is_root();
    let needs_root = "programs are loaded and network namespaces made here: run it as root";
    match verb {
        Verb::Program { document, counted } => {
            ensure!(root, needs_root);
            let effort = if counted { Effort::COUNTED } else { Effort::FIGURES };
            sluice::kernel::bpf::bpffs()?;
            let table = program::isolated(|interface| {
                program::table(interface, effort, |line| println!("{line}"))
            })?;
            if let Some(page) = document {
                document::replace(&page, "bench-program", &table)?;
                println!("written into {}", page.display());
            }
        }
        Verb::Forwarding { sluice, packets, balancer } => {
            ensure!(root, needs_root);
            let wanted = |known: &Balancer| {
                balancer.is_empty() || balancer.iter().any(|name| name == known.name())
            };
            let balancers: Vec<_> = Balancer::ALL.into_iter().filter(wanted).collect();
            ensure!(!balancers.is_empty(), "there is none of {balancer:?}");
            forwarding::measure(&balancers, packets, &sluice, |figure| {
                println!("{}", figure.line())
            })?;
        }
        Verb::Figures { kernel, document, output } => {
            figures(&kernel, document.as_deref(), &output)?
        }
    }
    Ok(())
}

fn figures(kernel: &str, document: Option<&Path>, output: &Path) -> Result<()> {
    let text =
        fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    let figures: Vec<_> = text.lines().filter_map(Figure::from_line).collect();
    let (place, table) = if figures.is_empty() {
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        ensure!(!lines.is_empty(), "{} holds no figures", output.display());
        ("bench-counted", lines.join("\n"))
    } else {
        ("bench-kernels", forwarding::table(&figures))
    };
    println!("{table}");
    // 6.12 of 6.12.117+deb12
    let series: Vec<_> = kernel.split(['.', '-', '+']).take(2).collect();
    let name = format!("{place} {}", series.join("."));
    match document {
        Some(page) if document::found(&fs::read_to_string(page)?, &name).is_some() => {
            document::replace(page, &name, &format!("Linux {kernel}:\n\n{table}"))?;
            println!("written into {}", page.display());
        }
        Some(page) => println!("{} has no place for {name}: shown only", page.display()),
        None => {}
    }
    Ok(())
}

//! `sluice-bench`: measures the cost of forwarding. `make bench-program` and `make bench-kernels`
//! run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use sluice_tests::bench::document;
use sluice_tests::bench::forwarding::{self, Figure, Forwarder};
use sluice_tests::bench::program::{self, Effort};

/// Measure the cost of forwarding, in comparison with other forwarders.
#[derive(Parser)]
#[command(name = "sluice-bench", version)]
struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure nanoseconds per packet of the programs alone.
    Program {
        /// Markdown page whose block `bench-program` is replaced by the table.
        #[arg(long, value_name = "FILE")]
        document: Option<PathBuf>,
        /// Fewer runs and flows, for a machine whose clock counts instructions.
        #[arg(long)]
        counted: bool,
    },
    /// Measure instructions per packet of a whole kernel, in the virtual machine of
    /// `make bench-kernels`.
    Forwarding {
        /// The `sluice` binary.
        #[arg(long, value_name = "FILE")]
        sluice: PathBuf,
        /// Packets per figure.
        #[arg(long, default_value_t = 50_000)]
        packets: u32,
        /// Names of forwarders (default: all).
        forwarder: Vec<String>,
    },
    /// Format the output of the other commands in a virtual machine as a table, and write it into a
    /// page.
    Figures {
        /// The kernel's version.
        #[arg(long)]
        kernel: String,
        /// Markdown page with a block for each kernel.
        #[arg(long, value_name = "FILE")]
        document: Option<PathBuf>,
        /// File with the output.
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(BenchArgs::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: BenchCommand) -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let needs_root = "this command loads programs and creates network namespaces: run it as root";
    match command {
        BenchCommand::Program { document, counted } => {
            ensure!(root, needs_root);
            let effort = if counted { Effort::COUNTED } else { Effort::FIGURES };
            sluice::kernel::bpf::bpffs()?;
            let table = program::isolated(|interface| {
                program::table(interface, effort, |line| println!("{line}"))
            })?;
            if let Some(page) = document {
                document::replace(&page, "bench-program", &table)?;
                println!("written to {}", page.display());
            }
        }
        BenchCommand::Forwarding { sluice, packets, forwarder: names } => {
            ensure!(root, needs_root);
            let selected = |forwarder: &Forwarder| {
                names.is_empty() || names.iter().any(|name| name == forwarder.name())
            };
            let forwarders: Vec<_> = Forwarder::ALL.into_iter().filter(selected).collect();
            ensure!(!forwarders.is_empty(), "unknown forwarders {names:?}");
            forwarding::measure(&forwarders, packets, &sluice, |figure| {
                println!("{}", figure.line())
            })?;
        }
        BenchCommand::Figures { kernel, document, output } => {
            figures(&kernel, document.as_deref(), &output)?
        }
    }
    Ok(())
}

fn figures(kernel: &str, document: Option<&Path>, output: &Path) -> Result<()> {
    let text =
        fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    let figures: Vec<_> = text.lines().filter_map(Figure::from_line).collect();
    let (block, table) = if figures.is_empty() {
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        ensure!(!lines.is_empty(), "{} contains no figures", output.display());
        ("bench-counted", lines.join("\n"))
    } else {
        ("bench-kernels", forwarding::table(&figures))
    };
    println!("{table}");
    // `6.12` in `6.12.117+deb12`
    let series: Vec<_> = kernel.split(['.', '-', '+']).take(2).collect();
    let name = format!("{block} {}", series.join("."));
    match document {
        Some(page) if document::block(&fs::read_to_string(page)?, &name).is_some() => {
            document::replace(page, &name, &format!("Linux {kernel}:\n\n{table}"))?;
            println!("written to {}", page.display());
        }
        Some(page) => println!("{} has no block {name}, so it is not changed", page.display()),
        None => {}
    }
    Ok(())
}

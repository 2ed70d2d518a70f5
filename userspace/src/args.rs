//! The arguments of each command.

use std::path::PathBuf;

use clap::{Args, Parser};
use sluice_control::config::limits::{MAX_MTU, MIN_MTU};
use sluice_control::config::{DEFAULT_INSTANCE, instance_name, interface_name};

/// The version, and what built the programs for the kernel.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nprograms for the kernel built by ",
    env!("SLUICE_PROBES_COMPILER")
);

/// Layer-4 edge load balancer for Linux.
///
/// Exit codes: 0 done, 1 a failed operation, 2 bad input (nothing on the host was changed).
#[derive(Debug, Parser)]
#[command(name = "sluice", version, long_version = LONG_VERSION, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Subcommand,
}

/// What `sluice` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Balance on this host: fill the tables, attach, and keep both as the configuration says.
    Lb(LbArgs),
    /// Serve on this host: unwrap packets for the VIPs that this backend serves.
    Backend(BackendArgs),
    /// Validate a configuration and its hash key; touch nothing.
    Check(CheckArgs),
    /// Show the services and backends of a running instance.
    Status(ShowArgs),
    /// Show what a running instance counted.
    Counters(ShowArgs),
    /// Capture what a running instance forwards and drops, with the reasons, as pcapng or text.
    Capture(CaptureArgs),
    /// Detach an instance and restore this host.
    Down(DownArgs),
    /// Manage the hash key.
    #[command(subcommand)]
    Key(KeySubcommand),
}

/// `sluice lb`.
#[derive(Args, Debug)]
pub struct LbArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Stop forwarding and restore the host at exit. Otherwise packets keep flowing until
    /// `sluice down`.
    #[arg(long)]
    pub ephemeral: bool,
    /// Attach to this interface rather than to the configured ones; may be given several times.
    #[arg(long = "interface", value_name = "IF", value_parser = interface_name)]
    pub interfaces: Vec<String>,
}

/// `sluice backend`.
#[derive(Args, Debug)]
pub struct BackendArgs {
    /// The configuration: the balancers' file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which of the configured backends this host is. Otherwise the one whose address this host
    /// has.
    #[arg(long)]
    pub name: Option<String>,
    /// Restore the host at exit. Otherwise packets are served until `sluice down`.
    #[arg(long)]
    pub ephemeral: bool,
    /// Receive encapsulated packets on this interface rather than on the configured ones; may be
    /// given several times.
    #[arg(long = "interface", value_name = "IF", value_parser = interface_name)]
    pub interfaces: Vec<String>,
    /// Clamp the MSS of what leaves through this interface, rather than through those where packets
    /// are received and those of default routes; may be given several times.
    #[arg(long = "reply-interface", value_name = "IF", value_parser = interface_name)]
    pub reply_interfaces: Vec<String>,
    /// The largest packet, outer header included, that the network carries from the balancers to
    /// this backend, rather than `underlay.mtu`.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(i64::from(MIN_MTU)..=i64::from(MAX_MTU)))]
    pub mtu: Option<u32>,
}

/// `sluice check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The configuration.
    pub file: PathBuf,
}

/// `sluice status` and `sluice counters`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Which instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
    /// Write JSON rather than a table.
    #[arg(long)]
    pub json: bool,
}

/// `sluice capture`.
#[derive(Args, Debug)]
pub struct CaptureArgs {
    /// Which instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
    /// Write pcapng to this file, `-` for standard output, rather than a line of text for each
    /// packet.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub duration: Option<u64>,
    /// Capture only packets of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Capture only what is dropped.
    #[arg(long, conflicts_with_all = ["sample", "new_connections"])]
    pub drops_only: bool,
    /// Capture one in so many forwarded packets, at random. Drops are captured all the same.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
    /// Of forwarded packets capture only those that open a TCP connection.
    #[arg(long)]
    pub new_connections: bool,
    /// The most packets that each CPU captures in a second; what is beyond is counted.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
}

/// `sluice down`.
#[derive(Args, Debug)]
pub struct DownArgs {
    /// Which instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
}

/// `sluice key`.
#[derive(Debug, clap::Subcommand)]
pub enum KeySubcommand {
    /// Make a new random key. All balancers of a fleet need the same one: make it once and copy it.
    New(KeyNewArgs),
}

/// `sluice key new`.
#[derive(Args, Debug)]
pub struct KeyNewArgs {
    /// Write the key to this file (mode 0600, never overwritten) rather than to standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_instance_is_edge_unless_named() {
        let parse = |args: &[&str]| match Cli::try_parse_from(args).unwrap().command {
            Subcommand::Down(down) => down.instance,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["sluice", "down"]), "edge");
        assert_eq!(parse(&["sluice", "down", "--instance", "edge-2"]), "edge-2");
    }

    #[test]
    fn interfaces_add_up() {
        let args = ["sluice", "lb", "--config", "f", "--interface", "a", "--interface", "b"];
        match Cli::try_parse_from(args).unwrap().command {
            Subcommand::Lb(lb) => assert_eq!(lb.interfaces, ["a", "b"]),
            other => panic!("{other:?}"),
        }
    }
}

//! The arguments of each command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use sluice_control::config::limits::{MAX_MTU, MIN_MTU};
use sluice_control::config::{DEFAULT_INSTANCE, instance_name, interface_name};

use crate::role::Role;

/// The version, and the compiler of the BPF programs.
const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), "\nBPF programs built by ", env!("SLUICE_PROBES_COMPILER"));

/// Layer-4 edge load balancer for Linux.
///
/// Exit codes: 0 success, 1 failed operation, 2 bad input (nothing on the host was changed).
#[derive(Debug, Parser)]
#[command(name = "sluice", version, long_version = LONG_VERSION, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Subcommand,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Run the balancer on this host: fill the maps, attach the program, keep both as configured.
    Lb(LbArgs),
    /// Run the backend role on this host: decapsulate packets for the VIPs of this backend.
    Backend(BackendArgs),
    /// Make the daemons of an instance read their configuration and source ACLs again; wait for the
    /// result.
    Reload(ReloadArgs),
    /// Validate a configuration and its hash key; change nothing.
    Check(CheckArgs),
    /// Show the services and backends of a running instance. Fails if packets are lost: if an
    /// interface is down or lacks the program, or if a problem is listed.
    Status(ShowArgs),
    /// Show the counters of a running instance.
    Counters(ShowArgs),
    /// Capture packets that a running instance forwards or drops, with reasons, as pcapng or text.
    Capture(CaptureArgs),
    /// Detach an instance and restore this host.
    Down(DownArgs),
    /// Manage the hash key.
    #[command(subcommand)]
    Key(KeySubcommand),
}

/// `sluice lb`.
#[derive(Args, Clone, Debug)]
pub struct LbArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Stop forwarding and restore the host at exit. Without this option, packets are forwarded
    /// until `sluice down`.
    #[arg(long)]
    pub ephemeral: bool,
    /// Attach to this interface instead of the configured ones; may be given several times.
    #[arg(long = "interface", value_name = "IF", value_parser = interface_name)]
    pub interfaces: Vec<String>,
    /// Waiting at a first start.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `sluice backend`.
#[derive(Args, Clone, Debug)]
pub struct BackendArgs {
    /// The configuration file, the same as the balancers'.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The name of this host's backend. Default: the backend whose address this host has.
    #[arg(long)]
    pub name: Option<String>,
    /// Restore the host at exit. Without this option, packets are decapsulated until `sluice down`.
    #[arg(long)]
    pub ephemeral: bool,
    /// Receive encapsulated packets on this interface instead of the configured ones; may be given
    /// several times.
    #[arg(long = "interface", value_name = "IF", value_parser = interface_name)]
    pub interfaces: Vec<String>,
    /// Clamp the MSS option of packets that leave through this interface; may be given several
    /// times. Default: the receiving interfaces and those of default routes.
    #[arg(long = "reply-interface", value_name = "IF", value_parser = interface_name)]
    pub reply_interfaces: Vec<String>,
    /// Leave reverse-path filtering (the sysctl rp_filter) of the interfaces as it is where the
    /// program decapsulates. With strict filtering, packets of clients whose replies leave through
    /// another interface are dropped.
    #[arg(long)]
    pub keep_rp_filter: bool,
    /// The MTU of the path from the balancers to this backend, outer header included. Default:
    /// `underlay.mtu`.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(i64::from(MIN_MTU)..=i64::from(MAX_MTU)))]
    pub mtu: Option<u32>,
    /// Waiting at a first start.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// How a first start handles interfaces and addresses that this host lacks.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// At the first start of an instance, wait at most this number of seconds for interfaces and
    /// addresses that this host lacks.
    #[arg(long, value_name = "S", default_value_t = 60)]
    wait: u64,
    /// Fail at once instead, with exit code 2.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

impl WaitArgs {
    /// The longest time that a first start waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(if self.no_wait { 0 } else { self.wait })
    }
}

#[cfg(test)]
impl WaitArgs {
    /// Waits not at all.
    pub(crate) fn none() -> Self {
        Self { wait: 0, no_wait: true }
    }
}

/// `sluice reload`.
#[derive(Args, Debug)]
pub struct ReloadArgs {
    /// The instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
    /// Only the daemon of this role. Default: all daemons of the instance.
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub role: Option<Role>,
    /// Stop waiting after this number of seconds; the daemon goes on.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}

/// Parses the name of a role.
fn role(text: &str) -> Result<Role, String> {
    let roles = [Role::Lb, Role::Backend];
    let found = roles.into_iter().find(|role| role.as_str() == text);
    found.ok_or_else(|| "write lb or backend".to_owned())
}

/// `sluice check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The configuration file.
    pub file: PathBuf,
}

/// `sluice status` and `sluice counters`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
    /// Write JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// `sluice capture`.
#[derive(Args, Debug)]
pub struct CaptureArgs {
    /// The instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
    /// Write pcapng to this file (`-`: standard output) instead of a line of text per packet.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Stop after this number of packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after this number of seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub duration: Option<u64>,
    /// Capture only packets of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Capture only dropped packets.
    #[arg(long, conflicts_with_all = ["sample", "new_connections"])]
    pub drops_only: bool,
    /// Capture a random one in N forwarded packets. All drops are captured.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
    /// Of forwarded packets, capture only SYNs: those that open a TCP connection.
    #[arg(long)]
    pub new_connections: bool,
    /// The maximum of captured packets per CPU and second; further ones are only counted.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
}

/// `sluice down`.
#[derive(Args, Debug)]
pub struct DownArgs {
    /// The instance.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance_name)]
    pub instance: String,
}

/// `sluice key`.
#[derive(Debug, clap::Subcommand)]
pub enum KeySubcommand {
    /// Generate a random key. All balancers of a fleet need the same key: generate it once.
    New(KeyNewArgs),
}

/// `sluice key new`.
#[derive(Args, Debug)]
pub struct KeyNewArgs {
    /// Write the key to this file (mode 0600, never overwritten) instead of standard output.
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
    fn the_default_instance_is_edge() {
        let parse = |args: &[&str]| match Cli::try_parse_from(args).unwrap().command {
            Subcommand::Down(down) => down.instance,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["sluice", "down"]), "edge");
        assert_eq!(parse(&["sluice", "down", "--instance", "edge-2"]), "edge-2");
    }

    #[test]
    fn the_interface_option_can_be_repeated() {
        let args = ["sluice", "lb", "--config", "f", "--interface", "a", "--interface", "b"];
        match Cli::try_parse_from(args).unwrap().command {
            Subcommand::Lb(lb) => assert_eq!(lb.interfaces, ["a", "b"]),
            other => panic!("{other:?}"),
        }
    }
}

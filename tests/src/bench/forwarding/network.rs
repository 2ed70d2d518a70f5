//! Three hosts in network namespaces, connected in a row: source, balancer, sink.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

/// The host of the generator.
pub(super) const SOURCE: &str = "bench-source";
/// The host under test. Its interface `in` connects to the source, `out` to the sink.
pub(super) const BALANCER: &str = "bench-balancer";
/// The host that drops every packet on its interface `in`.
pub(super) const SINK: &str = "bench-sink";
/// MAC address of the balancer's interface `in`.
pub(super) const BALANCER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0xbb, 0x01];
/// The balancer's address towards the sink, the outer source address.
pub(super) const UNDERLAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The VIP address.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The VIP's port.
pub(super) const PORT: u16 = 443;
/// The backends' addresses. Packets to all of them are sent to the sink.
pub(super) const BACKENDS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 0, 1, 1),
    Ipv4Addr::new(10, 0, 1, 2),
    Ipv4Addr::new(10, 0, 1, 3),
    Ipv4Addr::new(10, 0, 1, 4),
];

/// MAC address of the sink's interface `in`.
const SINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0xbb, 0x02];
/// Long enough for emulated machines.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The namespaces; dropping it deletes them.
pub(super) struct BenchNetwork;

impl BenchNetwork {
    /// Creates the namespaces, links, addresses and neighbours.
    pub(super) fn new() -> anyhow::Result<Self> {
        let balancer_mac = mac_text(BALANCER_MAC);
        let sink_mac = mac_text(SINK_MAC);
        for host in [SOURCE, BALANCER, SINK] {
            run("ip", &["netns", "add", host])?;
        }
        let network = Self;
        run(
            "ip",
            &[
                "link", "add", "out", "netns", SOURCE, "type", "veth", "peer", "name", "in",
                "netns", BALANCER,
            ],
        )?;
        run(
            "ip",
            &[
                "link", "add", "out", "netns", BALANCER, "type", "veth", "peer", "name", "in",
                "netns", SINK,
            ],
        )?;
        let commands: [(&str, &[&str]); 3] = [
            (SOURCE, &["address add 198.51.100.1/24 dev out", "link set out mtu 1600 up"]),
            (
                BALANCER,
                &[
                    "link set lo up",
                    &format!("link set in address {balancer_mac} mtu 1600 up"),
                    "link set out mtu 1600 up",
                    "address add 198.51.100.254/24 dev in",
                    &format!("address add {UNDERLAY}/16 dev out"),
                ],
            ),
            (
                SINK,
                &[
                    &format!("link set in address {sink_mac} mtu 1600 up"),
                    "address add 10.0.0.2/16 dev in",
                ],
            ),
        ];
        for (host, commands) in commands {
            for command in commands {
                ip(host, command)?;
            }
        }
        for backend in BACKENDS {
            ip(BALANCER, &format!("neigh add {backend} lladdr {sink_mac} dev out nud permanent"))?;
        }
        enter(BALANCER, || {
            write("/proc/sys/net/ipv4/conf/all/forwarding", "1")?;
            // The generator's source addresses are not routed to the source.
            for interface in ["all", "in"] {
                write(&format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0")?;
            }
            Ok(())
        })?;
        // A veth device accepts XDP frames only while its peer uses NAPI, which GRO enables, as
        // with network cards. The reception of socket buffers does not change.
        for host in [BALANCER, SINK] {
            enter(host, || run("ethtool", &["-K", "in", "gro", "on"]))?;
        }
        Ok(network)
    }
}

/// A MAC address in hexadecimal with colons.
fn mac_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

impl Drop for BenchNetwork {
    fn drop(&mut self) {
        for host in [SOURCE, BALANCER, SINK] {
            if let Err(error) = run("ip", &["netns", "delete", host]) {
                eprintln!("cannot delete {host}: {error:#}");
            }
        }
    }
}

/// Runs a task on a new thread in a host's network namespace.
pub(super) fn enter<T: Send>(
    host: &str,
    task: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let namespace = File::open(format!("/run/netns/{host}"))
        .with_context(|| format!("host {host} does not exist"))?;
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter a network namespace")?;
            task()
        });
        match entered.join() {
            Ok(outcome) => outcome.with_context(|| format!("in {host}")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Index of a host's interface.
pub(super) fn index(host: &str, interface: &str) -> anyhow::Result<u32> {
    enter(host, || {
        if_nametoindex(interface).with_context(|| format!("interface {interface} does not exist"))
    })
}

/// Runs `ip` in a host.
pub(super) fn ip(host: &str, arguments: &str) -> anyhow::Result<()> {
    run("ip", &[&["-n", host][..], &arguments.split(' ').collect::<Vec<_>>()].concat())
}

/// Runs a command. A failure is an error with its standard error.
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), error.trim());
    Ok(())
}

/// Writes a sysctl.
fn write(file: &str, value: &str) -> anyhow::Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value:?} to {file}"))
}

/// Waits until a condition holds.
pub(super) fn wait(
    condition: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("timeout after {TIMEOUT:?}: {condition}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A child process; dropping it kills the process.
pub(super) struct ChildGuard(pub(super) Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Fails if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Receive counters of an interface.
pub(super) struct Received {
    /// Packets.
    pub(super) packets: u64,
    /// Bytes, Ethernet headers included.
    pub(super) bytes: u64,
}

/// The receive counters of an interface in this thread's network namespace.
pub(super) fn received(interface: &str) -> anyhow::Result<Received> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")
        .context("cannot read /proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let mut numbers =
        line.context("the interface does not exist")?.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(bytes)), Some(Ok(packets))) => Ok(Received { packets, bytes }),
        _ => bail!("cannot parse /proc/thread-self/net/dev: {text}"),
    }
}

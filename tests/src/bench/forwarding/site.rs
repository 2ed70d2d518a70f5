//! Three hosts in network namespaces: a source, a balancer and a sink, in a row.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// The host that sends.
pub(super) const SOURCE: &str = "bench-source";
/// The host that is measured. Its interface `in` leads to the source, `out` to the sink.
pub(super) const BALANCER: &str = "bench-balancer";
/// The host that drops what arrives on its interface `in`.
pub(super) const SINK: &str = "bench-sink";
/// Link address of the balancer's interface `in`.
pub(super) const BALANCER_LINK: [u8; 6] = [0x02, 0, 0, 0, 0xbb, 0x01];
/// The balancer's address towards the sink: the source of outer headers.
pub(super) const UNDERLAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Where the source sends.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Its port.
pub(super) const PORT: u16 = 443;
/// The backends' addresses. All of them lead to the sink.
pub(super) const BACKENDS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 0, 1, 1),
    Ipv4Addr::new(10, 0, 1, 2),
    Ipv4Addr::new(10, 0, 1, 3),
    Ipv4Addr::new(10, 0, 1, 4),
];

const SINK_LINK: [u8; 6] = [0x02, 0, 0, 0, 0xbb, 0x02];
/// For slow, emulated machines.
const PATIENCE: Duration = Duration::from_secs(300);

/// The namespaces, gone when this value is.
pub(super) struct Site;

impl Site {
    /// Makes them.
    ///
    /// # Errors
    ///
    /// What `ip`, `ethtool` or the kernel refused.
    pub(super) fn new() -> anyhow::Result<Self> {
        let (balancer_link, sink_link) = (text(BALANCER_LINK), text(SINK_LINK));
        for host in [SOURCE, BALANCER, SINK] {
            run("ip", &["netns", "add", host])?;
        }
        let site = Self;
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
        let set_up: [(&str, &[&str]); 3] = [
            (SOURCE, &["address add 198.51.100.1/24 dev out", "link set out mtu 1600 up"]),
            (
                BALANCER,
                &[
                    "link set lo up",
                    &format!("link set in address {balancer_link} mtu 1600 up"),
                    "link set out mtu 1600 up",
                    "address add 198.51.100.254/24 dev in",
                    &format!("address add {UNDERLAY}/16 dev out"),
                ],
            ),
            (
                SINK,
                &[
                    &format!("link set in address {sink_link} mtu 1600 up"),
                    "address add 10.0.0.2/16 dev in",
                ],
            ),
        ];
        for (host, commands) in set_up {
            for command in commands {
                ip(host, command)?;
            }
        }
        for backend in BACKENDS {
            ip(BALANCER, &format!("neigh add {backend} lladdr {sink_link} dev out nud permanent"))?;
        }
        enter(BALANCER, || {
            write("/proc/sys/net/ipv4/conf/all/forwarding", "1")?;
            // The source's addresses are many more than it has.
            for interface in ["all", "in"] {
                write(&format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0")?;
            }
            Ok(())
        })?;
        // A veth device takes frames from XDP only while its peer polls (NAPI), which receive
        // offload makes it do, as with network cards. Socket buffers are received as without.
        for host in [BALANCER, SINK] {
            enter(host, || run("ethtool", &["-K", "in", "gro", "on"]).map(drop))?;
        }
        Ok(site)
    }
}

/// A link address as people write it.
fn text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

impl Drop for Site {
    fn drop(&mut self) {
        for host in [SOURCE, BALANCER, SINK] {
            if let Err(error) = run("ip", &["netns", "delete", host]) {
                eprintln!("{host} stays: {error:#}");
            }
        }
    }
}

/// Runs something in a host, on a thread of its own.
///
/// # Errors
///
/// Its own, and what the kernel refused.
pub(super) fn enter<T: Send>(
    host: &str,
    task: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let namespace = File::open(format!("/run/netns/{host}"))
        .with_context(|| format!("there is no host {host}"))?;
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

/// Index of an interface of a host.
///
/// # Errors
///
/// When there is none.
pub(super) fn index(host: &str, interface: &str) -> anyhow::Result<u32> {
    enter(host, || {
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("there is no {interface}"))
    })
}

/// Runs `ip` in a host.
///
/// # Errors
///
/// What it says.
pub(super) fn ip(host: &str, arguments: &str) -> anyhow::Result<()> {
    run("ip", &[&["-n", host][..], &arguments.split(' ').collect::<Vec<_>>()].concat()).map(drop)
}

/// Runs a command to its end, which must be a good one.
///
/// # Errors
///
/// What it says.
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), error.trim());
    Ok(output)
}

/// Writes a setting of the kernel.
///
/// # Errors
///
/// What the kernel refused.
pub(super) fn write(file: &str, value: &str) -> anyhow::Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value:?} to {file}"))
}

/// Waits until a condition holds.
///
/// # Errors
///
/// The condition's own, or that it does not come to hold.
pub(super) fn wait(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("{what} did not happen within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A process that ends with this value.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Packets and bytes, with their Ethernet headers, that an interface of this thread's host has
/// received.
///
/// # Errors
///
/// When the kernel does not tell.
pub(super) fn received(interface: &str) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")
        .context("cannot read /proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let mut numbers =
        line.context("there is no such interface")?.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(bytes)), Some(Ok(packets))) => Ok((packets, bytes)),
        _ => bail!("/proc/thread-self/net/dev is not as it should be: {text}"),
    }
}

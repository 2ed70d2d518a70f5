//! Three pairs of virtual Ethernet devices around a program under test.
//!
//! ```text
//! inject ──▶ in: the program, then `RedirectAll` ──▶ passed ──▶ after: frames that the program passed
//!                     │ redirect
//!                     └──▶ out ──▶ far: frames that the program redirected
//! ```
//! No timeout decides that a frame was dropped: a marker follows each frame, and every program
//! passes markers. The thread stays on one CPU, whose backlog queue is first in, first out. When
//! the marker has passed the program, the result of the frame has arrived.

use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use sluice::kernel::bpf::Program;
use sluice::kernel::netlink::{Direction, FilterSpec, Netlink};

use super::offload::{merged, offload};
use super::redirect::RedirectAll;
use super::socket::{Captured, Offload, PATIENCE, PacketSocket};
use crate::packets::addresses::{INTERFACE, NEIGHBOUR_V4, NEIGHBOUR_V6};
use crate::packets::frames::{Client, Frame};

/// VethLink address of the interface of the program.
pub(super) const IN: [u8; 6] = [0x02, 0, 0, 0, 0x0a, 0x01];
/// VethLink address of the interface towards the backends.
pub(super) const OUT: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x01];
/// VethLink address of the next hop towards every backend.
pub(super) const NEXT_HOP: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x02];
/// EtherType of markers: local experimental EtherType 1 (IEEE 802).
const MARKER: u16 = 0x88b5;
/// Name and priority of the filter under test.
const TESTED: (&str, u16) = ("tested", 1);
/// The largest MTU of a virtual Ethernet device.
const LARGEST: u32 = 65_535;

/// Frames that arrived after a frame was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arrived {
    /// Frames that the program passed.
    pub(super) passed: Vec<Captured>,
    /// Frames that it redirected to the interface towards the backends.
    pub(super) left: Vec<Captured>,
    /// Frames that it transmitted through the receiving interface.
    pub(super) returned: Vec<Captured>,
}

/// Interfaces around the attachment point of a program.
pub struct VethLink {
    inject: PacketSocket,
    after: PacketSocket,
    far: PacketSocket,
    /// Index of the interface of the program.
    at: u32,
    _redirect: RedirectAll,
    markers: u64,
    /// Bytes; the kernel raises smaller segment sizes of merged packets to this one.
    smallest_segment: u16,
}

impl VethLink {
    /// Moves the calling thread into a new network namespace and to one CPU, and creates the
    /// interfaces.
    pub fn new() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        stay_on_one_cpu()?;
        make_interfaces()?;
        let index =
            |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| name.to_owned());
        ensure!(index("out")? == INTERFACE, "the interface towards the backends has another index");
        let redirect =
            RedirectAll::new(index("passed")?).context("cannot load the redirecting filter")?;
        let at = index("in")?;
        put_filter(at, ("redirect", 2), redirect.as_fd())?;
        let socket = |name| PacketSocket::new(index(name)?);
        let (inject, after, far) = (socket("inject")?, socket("after")?, socket("far")?);
        let mut link =
            Self { inject, after, far, at, _redirect: redirect, markers: 0, smallest_segment: 0 };
        await_carrier(&socket("in")?, &mut link.inject)?;
        link.smallest_segment = link.smallest_segment()?;
        Ok(link)
    }

    /// The segment size of a merged packet that was sent with segments of one byte, without a
    /// program.
    fn smallest_segment(&mut self) -> anyhow::Result<u16> {
        let client = Client { payload: 64, ..Client::tcp4() };
        let frame = Frame { segment_size: 1, segments: 64, ..client.frame().into() };
        let bytes = [&IN[..], &frame.bytes[IN.len()..]].concat();
        let arrived = self.send(offload(&frame, None, false)?, &bytes)?;
        let [captured] = &arrived.passed[..] else {
            bail!("a merged packet became {arrived:02x?}")
        };
        Ok(captured.offload.segment_size)
    }

    /// The reason why this kernel cannot create the frame though others can; `None` if it can.
    pub fn refuses(&self, frame: &Frame) -> Option<&'static str> {
        let merged = merged(&frame.bytes).filter(|_| frame.segment_size != 0)?;
        if merged.kind == Offload::UDP {
            return (kernel() < (6, 2)).then_some(
                "this kernel accepts no merged datagrams from a packet socket (Linux 6.2)",
            );
        }
        // Some stable kernels raise it to `TCP_MIN_GSO_SIZE`, for example Debian's 6.12.117.
        let raised = frame.segment_size < self.smallest_segment.into();
        raised.then_some("this kernel raises so small a segment size of a merged packet")
    }

    /// Attaches a program like the daemon does, and replaces the previous one.
    pub(super) fn attach(&mut self, program: &Program) -> anyhow::Result<()> {
        self.markers = 0;
        put_filter(self.at, TESTED, program.descriptor())
    }

    /// Detaches the program.
    pub(super) fn detach(&mut self) -> anyhow::Result<()> {
        run_netlink(async |netlink| {
            let (name, priority) = TESTED;
            let spec = FilterSpec { name: name.to_owned(), priority };
            netlink.remove_filter(self.at, Direction::Ingress, &spec).await?;
            Ok(())
        })
    }

    /// Sends a frame and returns the frames that arrived.
    /// # Errors
    /// The kernel's error; it refuses offloads that contradict the frame.
    pub(super) fn send(&mut self, offload: Offload, bytes: &[u8]) -> anyhow::Result<Arrived> {
        self.inject
            .send(offload, bytes)
            .with_context(|| format!("cannot inject {} bytes", bytes.len()))?;
        self.markers += 1;
        let marker =
            [&IN[..], &[0x02; 6], &MARKER.to_be_bytes(), &self.markers.to_be_bytes()].concat();
        self.inject.send(Offload::default(), &marker).context("cannot inject a marker")?;
        let mut arrived = Arrived::default();
        loop {
            let frame = self.after.receive()?;
            if frame.bytes == marker {
                break;
            }
            arrived.passed.push(frame);
        }
        arrived.left = self.far.drain()?;
        arrived.returned = self.inject.drain()?;
        Ok(arrived)
    }

    /// Number of markers that passed the attached program. It counts each as `not_ip`.
    pub(super) fn markers(&self) -> u64 {
        self.markers
    }
}

/// The running kernel's version: major and minor.
fn kernel() -> (u32, u32) {
    let release =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Sends from one end of a pair until a frame arrives at the other.
fn await_carrier(from: &PacketSocket, to: &mut PacketSocket) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let frame = [&[0xff; 6][..], &IN, &MARKER.to_be_bytes(), &[0; 46]].concat();
    while to.drain()?.is_empty() {
        ensure!(Instant::now() < deadline, "an interface has no carrier after {PATIENCE:?}");
        // An interface without a carrier drops a frame or returns `ENETDOWN`.
        if from.send(Offload::default(), &frame).is_err() {
            std::thread::yield_now();
        }
    }
    // Frames sent after the first one that arrived.
    to.drain()?;
    Ok(())
}

/// Pins the thread to one of its allowed CPUs, round robin.
fn stay_on_one_cpu() -> anyhow::Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    one.set(cpus[NEXT.fetch_add(1, Ordering::Relaxed) % cpus.len()])?;
    Ok(sched_setaffinity(this, &one)?)
}

fn put_filter(
    interface: u32,
    (name, priority): (&str, u16),
    program: BorrowedFd<'_>,
) -> anyhow::Result<()> {
    run_netlink(async |netlink| {
        let spec = FilterSpec { name: name.to_owned(), priority };
        netlink.ensure_clsact(interface).await?;
        netlink.put_filter(interface, Direction::Ingress, &spec, program).await?;
        Ok(())
    })
}

fn run_netlink(request: impl AsyncFnOnce(Netlink) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { request(Netlink::connect()?).await })
}

/// The interfaces, a route out and its next hop. They have no addresses, so nothing but what is
/// injected is on them.
fn make_interfaces() -> anyhow::Result<()> {
    let address = |octets: [u8; 6]| octets.map(|octet| format!("{octet:02x}")).join(":");
    let (at, out, next_hop) = (address(IN), address(OUT), address(NEXT_HOP));
    let mut commands = format!(
        "link add in address {at} mtu {LARGEST} type veth peer name inject mtu {LARGEST}\n\
         link add out index {INTERFACE} address {out} mtu {LARGEST} type veth peer name far mtu {LARGEST}\n\
         link add passed mtu {LARGEST} type veth peer name after mtu {LARGEST}\n"
    );
    // Of a pair, the one that is brought up last can send at once; the other when the kernel has
    // noticed that it has a carrier.
    for name in ["in", "inject", "far", "out", "after", "passed"] {
        commands += &format!("link set {name} addrgenmode none\nlink set {name} up\n");
    }
    // Routes need the table of local addresses, which begins with those of the loopback interface.
    commands += "link set lo up\n";
    commands += &format!(
        "neigh add {NEIGHBOUR_V4} lladdr {next_hop} dev out nud permanent\n\
         neigh add {NEIGHBOUR_V6} lladdr {next_hop} dev out nud permanent\n\
         route add 0.0.0.0/0 via {NEIGHBOUR_V4} dev out onlink\n\
         route add ::/0 via {NEIGHBOUR_V6} dev out onlink\n"
    );
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    ip.stdin.take().context("ip has no input")?.write_all(commands.as_bytes())?;
    let output = ip.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

//! `sluice capture`: its output, its end, and the forwarding path afterwards.
#![expect(unsafe_code, reason = "calls libc for packet sockets")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherparse::PacketBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::json;
use sluice::kernel::bpf::{Pins, is_captured};
use sluice::role::Role;

use crate::fixture::{
    DaemonFixture, SLUICE, assert_fails, host_state, pins, tc_filter, wait_until,
};
use crate::support::run;

const FILTER: &str = "sluice_lb:edge";

/// A running capture; dropping it kills the process.
struct CaptureProcess {
    child: Child,
    directory: PathBuf,
}

impl CaptureProcess {
    /// Starts a capture and waits until it is enabled.
    fn start(fixture: &DaemonFixture, args: &[&str]) -> Self {
        let directory = fixture.directory().to_owned();
        let file = |name: &str| File::create(directory.join(name)).unwrap();
        let mut command = Command::new(&*SLUICE);
        command.arg("capture").args(args).current_dir(&directory).stdin(Stdio::null());
        let child =
            command.stdout(file("capture.out")).stderr(file("capture.err")).spawn().unwrap();
        let running = Self { child, directory };
        wait_until("the capture begins", || running.stderr_contains("capturing"));
        running
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap()
    }

    fn stderr_contains(&self, words: &str) -> bool {
        self.text("capture.err").contains(words)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; returns the exit code, standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let mut status = None;
        wait_until("the capture ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (
            status.and_then(|status| status.code()),
            self.text("capture.out"),
            self.text("capture.err"),
        )
    }
}

impl Drop for CaptureProcess {
    fn drop(&mut self) {
        // Fails if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client's segment to the service `web` with this TTL.
fn segment(ttl: u8) -> Vec<u8> {
    let shown = run("ip -o link show eth0");
    let address =
        shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let eth0: Vec<_> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let eth0 = <[u8; 6]>::try_from(eth0).unwrap();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], eth0).ipv4(
        [198, 51, 100, 7],
        [203, 0, 113, 10],
        ttl,
    );
    let mut frame = Vec::new();
    builder.tcp(40_000, 80, 1, 1000).write(&mut frame, &[0x61; 200]).unwrap();
    frame
}

/// Sends a frame from `far`, the peer of `eth0`.
fn send(frame: &[u8]) {
    // SAFETY: the descriptor is new and not owned elsewhere.
    let socket = unsafe {
        OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0))
    };
    // SAFETY: all zero bytes are a valid value of this C struct.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = nix::net::if_::if_nametoindex("far").unwrap() as i32;
    // SAFETY: the lengths are those of the frame and the address, which outlive the call.
    let sent = unsafe {
        let address = (&raw const to).cast();
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            address,
            size_of_val(&to) as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
}

fn captured() -> bool {
    is_captured(&Pins::new(Path::new("/sys/fs/bpf"), "edge", Role::Lb)).unwrap()
}

pub(crate) fn a_capture_contains_the_verdict_of_each_packet() {
    let fixture = DaemonFixture::new();
    let _daemon = fixture.start(&["lb"]);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let capture = CaptureProcess::start(&fixture, &["--out", "edge.pcapng", "--count", "2"]);
    let frames = [segment(64), segment(0)];
    frames.iter().for_each(|frame| send(frame));
    let (code, out, err) = capture.end();
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert!(
        err.contains("captured 2, lost in the ring buffer 0, suppressed by the rate limit 0"),
        "{err}"
    );

    let mut reader =
        PcapNgReader::new(File::open(fixture.directory().join("edge.pcapng")).unwrap()).unwrap();
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_block() {
        blocks.push(block.unwrap().into_owned());
    }
    let [Block::InterfaceDescription(interface), packets @ ..] = &blocks[..] else {
        panic!("{blocks:?}")
    };
    assert_eq!(interface.linktype, DataLink::ETHERNET);
    assert!(
        interface.options.contains(&InterfaceDescriptionOption::IfName("eth0".into())),
        "{interface:?}"
    );
    assert!(interface.options.contains(&InterfaceDescriptionOption::IfTsResol(9)), "{interface:?}");
    assert_eq!(packets.len(), 2);
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for (block, frame) in packets.iter().zip(&frames) {
        let Block::EnhancedPacket(packet) = block else { panic!("{block:?}") };
        assert_eq!((packet.interface_id, packet.original_len as usize), (0, frame.len()));
        assert_eq!(packet.data.as_ref(), &frame[..128]);
        let margin = Duration::from_millis(100);
        assert!((before - margin..after + margin).contains(&packet.timestamp), "{packet:?}");
    }
    let comment = |block: &Block<'_>| match block {
        Block::EnhancedPacket(packet) => packet.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(text) => Some(text.to_string()),
            _ => None,
        }),
        _ => None,
    };
    let forwarded = comment(&packets[0]).unwrap();
    assert!(
        ["a", "b"]
            .iter()
            .any(|name| forwarded
                == format!("verdict forward; service web; backend {name}; out eth0")),
        "{forwarded}"
    );
    assert_eq!(
        comment(&packets[1]).as_deref(),
        Some("verdict drop; reason ttl_expired; service web")
    );

    let counters = fixture.json("counters");
    assert_eq!(counters["lb"]["services"]["web"]["drops"], json!({ "ttl_expired": 1 }));
    assert_eq!(counters["lb"]["reasons"]["ttl_expired"], 1);
    assert!(!captured());
}

pub(crate) fn a_text_capture_ends_with_a_summary() {
    let fixture = DaemonFixture::new();
    let daemon = fixture.start(&["lb"]);
    // A capture does not need a running daemon.
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    let capture = CaptureProcess::start(&fixture, &["--drops-only", "--service", "web"]);
    assert_fails(
        &fixture.sluice(&["capture", "--duration", "1"]),
        1,
        &["another `sluice capture`"],
    );
    send(&segment(64));
    send(&segment(0));
    wait_until("the capture has printed a line", || capture.text("capture.out").ends_with('\n'));
    capture.signal(Signal::SIGINT);
    let (code, out, err) = capture.end();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.lines().count(), 1, "{out}");
    let words = "Z eth0 198.51.100.7:40000 > 203.0.113.10:80 tcp, 254 bytes: verdict drop; reason ttl_expired; service web";
    assert!(out.contains(words), "{out}");
    assert!(err.contains("captured 1,"), "{err}");
    assert_fails(
        &fixture.sluice(&["capture", "--service", "wob"]),
        2,
        &["no service \"wob\"", "web"],
    );
    let output = fixture.sluice(&["capture", "--duration", "1"]);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stderr).contains("captured 0,"),
        "{output:?}"
    );
}

pub(crate) fn a_killed_capture_ends_by_its_deadline() {
    let fixture = DaemonFixture::new();
    let _daemon = fixture.start(&["lb"]);
    let (before, filter, maps) = (host_state(), tc_filter("eth0", FILTER), pins());
    let mut capture = CaptureProcess::start(&fixture, &["--out", "edge.pcapng"]);
    assert_eq!(
        (tc_filter("eth0", FILTER), pins()),
        (filter.clone(), maps.clone()),
        "a capture replaces neither filter nor maps"
    );
    assert!(captured());
    capture.signal(Signal::SIGKILL);
    capture.child.wait().unwrap();
    // The program disables the capture with the first packet after its deadline.
    wait_until("the program disables the capture", || {
        send(&segment(64));
        !captured()
    });
    assert_eq!((tc_filter("eth0", FILTER), pins()), (filter, maps));
    assert_eq!(host_state(), before);
    let forwarded =
        || fixture.json("counters")["lb"]["services"]["web"]["packets"].as_u64().unwrap();
    let count = forwarded();
    send(&segment(64));
    assert_eq!(forwarded(), count + 1);
    // The next capture works.
    let capture = CaptureProcess::start(&fixture, &["--count", "1"]);
    send(&segment(64));
    assert_eq!(capture.end().0, Some(0));
}

pub(crate) fn a_capture_ends_with_its_instance_but_not_with_a_reload() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let capture = CaptureProcess::start(&fixture, &["--service", "web"]);
    fixture.config["backends"][0]["draining"] = json!(true);
    fixture.write();
    daemon.reload();
    send(&segment(64));
    wait_until("the capture has printed a line", || capture.text("capture.out").ends_with('\n'));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    let (code, out, err) = capture.end();
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("verdict forward; service web; backend b;"), "{out}");
    assert!(err.contains("\"edge\" was taken down"), "{err}");
}

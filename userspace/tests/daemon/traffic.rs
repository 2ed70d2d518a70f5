//! TrafficClient traffic, and its comparison with the counters of the balancer.
#![expect(unsafe_code, reason = "calls libc for packet sockets")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sluice::kernel::bpf::{BalancerMaps, Pins};
use sluice::role::Role;
use sluice_datapath::abi::maps::balancer::SERVICE_COUNTERS;

use crate::fixture::wait_until;
use crate::support::run;

/// Packets between two pauses: fewer than the receive queue holds.
const BURST: u64 = 64;
/// Source ports per source address.
const PORTS: u64 = 1 << 15;

/// A client at the peer of `eth0` that sends UDP packets to the VIP 203.0.113.11:53.
pub(crate) struct TrafficClient {
    socket: OwnedFd,
    frame: [u8; 60],
    /// Number of flows: combinations of source address and port.
    flows: u64,
    sent: u64,
}

impl TrafficClient {
    pub(crate) fn new(flows: u64) -> Self {
        let mac = run("ip -o link show dev eth0");
        let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let mac: Vec<u8> =
            mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&mac);
        frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x08, 0x00]);
        // IPv4, 46 bytes, no options, TTL 64, UDP, from 198.51.100.0 on.
        frame[14..34].copy_from_slice(&[
            0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 51, 100, 0, 203, 0, 113, 11,
        ]);
        // To port 53, 26 bytes, without a checksum.
        frame[36..42].copy_from_slice(&[0, 53, 0, 26, 0, 0]);
        // SAFETY: the call takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is valid and not owned elsewhere.
        Self { socket: unsafe { OwnedFd::from_raw_fd(socket) }, frame, flows, sent: 0 }
    }

    /// Sends packets of all flows in turn, slowly enough for the receive queue.
    pub(crate) fn send(&mut self, packets: u64) {
        // SAFETY: all zero bytes are a valid value of this C struct.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = nix::net::if_::if_nametoindex("far").unwrap() as i32;
        for _ in 0..packets {
            let flow = self.sent % self.flows;
            self.frame[29] = (flow / PORTS) as u8;
            self.frame[34..36].copy_from_slice(&(1024 + (flow % PORTS) as u16).to_be_bytes());
            self.frame[24..26].fill(0);
            let words = self.frame[14..34]
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
            let sum: u32 = words.sum();
            self.frame[24..26]
                .copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
            // SAFETY: the lengths are those of the frame and the address, which outlive the call.
            let sent = unsafe {
                libc::sendto(
                    self.socket.as_raw_fd(),
                    self.frame.as_ptr().cast(),
                    self.frame.len(),
                    0,
                    (&raw const to).cast(),
                    size_of_val(&to) as u32,
                )
            };
            assert_eq!(sent, self.frame.len() as isize, "{}", io::Error::last_os_error());
            self.sent += 1;
            if self.sent.is_multiple_of(BURST) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Waits until the counter equals the number of sent packets.
    #[track_caller]
    pub(crate) fn assert_all_counted(&self) {
        let mut counted = 0;
        wait_until("every packet is counted", || {
            counted = self::counted();
            counted >= self.sent
        });
        assert_eq!(counted, self.sent, "packets are counted once");
    }

    /// Sends on a new thread until [`BackgroundTraffic::stop`].
    pub(crate) fn start_background(mut self) -> BackgroundTraffic {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(self.sent));
        let (stopped, so_far) = (stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                self.send(BURST);
                so_far.store(self.sent, Ordering::Relaxed);
            }
            self
        });
        // Another thread reads the counters continuously: they exist and never decrease.
        let stopped = stop.clone();
        let reader = thread::spawn(move || {
            let (mut last, mut reads) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let now = counted();
                assert!(now >= last, "the counter decreased from {last} to {now}");
                (last, reads) = (now, reads + 1);
            }
            reads
        });
        BackgroundTraffic { thread, reader, stop, sent }
    }
}

/// TrafficClient traffic on one thread, reads of the counters on another.
pub(crate) struct BackgroundTraffic {
    thread: JoinHandle<TrafficClient>,
    reader: JoinHandle<u64>,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

impl BackgroundTraffic {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) -> TrafficClient {
        self.stop.store(true, Ordering::Relaxed);
        let reads = self.reader.join().expect("the counters never decrease");
        assert!(reads > 10, "only {reads} reads of the counters");
        self.thread.join().expect("the client has not panicked")
    }
}

/// Packets forwarded for the first service.
pub(crate) fn counted() -> u64 {
    let pins = Pins::new(Path::new("/sys/fs/bpf"), "edge", Role::Lb);
    BalancerMaps::open(&pins).unwrap().total(SERVICE_COUNTERS, 1).unwrap().packets
}

//! Counting and keeping packets inside a host, with an AF_PACKET socket (packet(7)).
//!
//! The socket sees what comes in before any TC program and what goes out after every TC program:
//! the wire, not the stack.

use super::layers::{OuterChecksum, Seen, flow, has_good_checksum, inner, look, outer_checksum};
use super::namespaces::Namespaces;
use super::topology::{Host, VIP_V4, VIP_V6};
use anyhow::{Context, Result, anyhow, ensure};
use etherparse::TransportSlice;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use pcap_file::pcap::{PcapPacket, PcapWriter};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes kept of each packet: all headers and some content.
const SNAP: usize = 256;
/// Packets kept in memory by one capture; counting goes on beyond it.
const KEPT: usize = 50_000;
/// Bytes of the kernel's `struct virtio_net_hdr` (`uapi/linux/virtio_net.h`) in front of each
/// packet; the size of segments is its third word, host byte order.
const OFFLOAD: usize = 10;
/// Receive buffer in bytes, enough for all that a transfer brings while this process waits for a
/// CPU, with what the kernel adds to each packet. It takes memory only while packets wait.
const BUFFER: usize = 256 << 20;

/// One packet, with its Ethernet header.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it was read, since the epoch.
    pub time: Duration,
    /// Whether the host sent it.
    pub outgoing: bool,
    /// Length on the wire in bytes.
    pub length: usize,
    /// Bytes of payload of each segment that a merged packet is to be cut into; 0 when it is not
    /// merged.
    pub segment_size: usize,
    /// The first bytes, at most 256.
    pub bytes: Vec<u8>,
}

/// What a capture counted, in packets (a GRO aggregate counts once). "VIP" means one of the lab's
/// VIP addresses, both versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plain packets to a VIP, received.
    pub to_vip_in: u64,
    /// Plain packets whose source is a VIP, received.
    pub from_vip_in: u64,
    /// Plain packets whose source is a VIP, sent.
    pub from_vip_out: u64,
    /// Encapsulated packets received.
    pub encapsulated_in: u64,
    /// Encapsulated packets sent.
    pub encapsulated_out: u64,
    /// TCP packets, encapsulated or not, whose checksum is right, or right as far as a device is to
    /// complete it.
    pub good_checksums: u64,
    /// Other TCP packets.
    pub bad_checksums: u64,
    /// Packets in UDP whose outer checksum is right, or will be once a device has completed the one
    /// inside.
    pub good_outer_checksums: u64,
    /// Packets in UDP without an outer checksum.
    pub no_outer_checksums: u64,
    /// Other packets in UDP.
    pub bad_outer_checksums: u64,
}

impl Counts {
    /// Counts what only a whole packet shows.
    fn judge(&mut self, whole: &[u8]) {
        match has_good_checksum(whole) {
            Some(true) => self.good_checksums += 1,
            Some(false) => self.bad_checksums += 1,
            None => {}
        }
        match outer_checksum(whole) {
            Some(OuterChecksum::Right) => self.good_outer_checksums += 1,
            Some(OuterChecksum::None) => self.no_outer_checksums += 1,
            Some(OuterChecksum::Wrong) => self.bad_outer_checksums += 1,
            None => {}
        }
    }

    fn add(&mut self, frame: &Frame) {
        let Some(seen) = look(&frame.bytes) else { return };
        let vip = |address: IpAddr| address == VIP_V4 || address == VIP_V6;
        match (seen.encapsulated, frame.outgoing) {
            (true, false) => self.encapsulated_in += 1,
            (true, true) => self.encapsulated_out += 1,
            (false, false) if vip(seen.destination) => self.to_vip_in += 1,
            (false, false) if vip(seen.source) => self.from_vip_in += 1,
            (false, true) if vip(seen.source) => self.from_vip_out += 1,
            (false, _) => {}
        }
    }
}

/// Everything a finished capture knows.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Packets by kind.
    pub counts: Counts,
    /// The first 50,000 packets.
    pub frames: Vec<Frame>,
}

impl Captured {
    /// Length on the wire of the longest kept packet to a VIP that came in without encapsulation,
    /// and of the longest that went out with it; in bytes with the Ethernet header.
    pub fn longest(&self) -> (usize, usize) {
        let longest = |outgoing: bool, good: &dyn Fn(&Seen) -> bool| {
            let frames = self.frames.iter().filter(|frame| frame.outgoing == outgoing);
            frames
                .filter(|frame| look(&frame.bytes).is_some_and(|seen| good(&seen)))
                .map(|frame| frame.length)
                .max()
        };
        let to_vip = |seen: &Seen| {
            !seen.encapsulated && (seen.destination == VIP_V4 || seen.destination == VIP_V6)
        };
        (
            longest(false, &to_vip).unwrap_or(0),
            longest(true, &|seen| seen.encapsulated).unwrap_or(0),
        )
    }

    /// Merged TCP packets that left encapsulated, and in segments of another size than they came
    /// in: the size when they came, 0 if none came, and when they left.
    pub fn cut_otherwise(&self) -> Vec<(usize, usize)> {
        let merged = |encapsulated: bool| {
            let wanted =
                move |frame: &&Frame| frame.segment_size != 0 && frame.outgoing == encapsulated;
            self.frames.iter().filter(wanted).filter_map(move |frame| {
                look(&frame.bytes).filter(|seen| seen.encapsulated == encapsulated)?;
                let Some(TransportSlice::Tcp(tcp)) = inner(&frame.bytes)?.transport else {
                    return None;
                };
                Some(((tcp.source_port(), tcp.sequence_number()), frame.segment_size))
            })
        };
        // What is sent again may come in other segments.
        let mut came: HashMap<_, BTreeSet<usize>> = HashMap::new();
        for (start, size) in merged(false) {
            came.entry(start).or_default().insert(size);
        }
        let left = merged(true).map(|(start, size)| (came.get(&start), size));
        left.filter(|(came, size)| came.is_none_or(|came| !came.contains(size)))
            .map(|(came, size)| (came.and_then(|came| came.last().copied()).unwrap_or(0), size))
            .collect()
    }

    /// The outer source ports of packets that came in UDP, by the flow inside: its source, both
    /// ports and the protocol.
    pub fn gue_flows(&self) -> BTreeMap<(IpAddr, u16, u16, u8), BTreeSet<u16>> {
        let mut flows: BTreeMap<_, BTreeSet<u16>> = BTreeMap::new();
        for frame in self.frames.iter().filter(|frame| !frame.outgoing) {
            let port = look(&frame.bytes).and_then(|seen| seen.gue_source);
            let flow = inner(&frame.bytes).and_then(|packet| flow(&packet));
            if let (Some(port), Some(flow)) = (port, flow) {
                flows.entry(flow).or_default().insert(port);
            }
        }
        flows
    }

    /// Writes the kept packets for Wireshark or tcpdump.
    pub fn write_pcap(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = PcapWriter::new(std::io::BufWriter::new(file))?;
        for frame in &self.frames {
            let length = u32::try_from(frame.length)?;
            writer.write_packet(&PcapPacket::new(frame.time, length, &frame.bytes))?;
        }
        Ok(())
    }
}

/// A running capture of one host's packets, on all its interfaces.
#[derive(Debug)]
pub struct Capture {
    host: &'static str,
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<Captured>>,
}

impl Capture {
    /// Starts capturing; packets from this call's return on are counted.
    pub fn start(namespaces: &Namespaces, host: &'static Host) -> Result<Self> {
        let socket = namespaces
            .within(host, open)
            .with_context(|| format!("cannot capture packets in {}", host.name))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || read(&socket, &stopped));
        Ok(Self { host: host.name, stop, reader })
    }

    /// Has it stop soon; who stops several captures need not wait for each.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops, and returns what was seen. A capture that lost packets is an error: its counts prove
    /// nothing.
    pub fn stop(self) -> Result<Captured> {
        self.end();
        let read = self.reader.join().map_err(|_| anyhow!("the capturing thread panicked"))?;
        read.with_context(|| format!("the capture in {} failed", self.host))
    }
}

fn open() -> Result<OwnedFd> {
    // Unbound: one socket sees every interface of the namespace.
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))?;
    // In front of each packet the kernel then says what it has not computed or cut yet.
    let (on, size): (libc::c_int, _) = (1, size_of::<libc::c_int>() as libc::socklen_t);
    let (fd, value) = (socket.as_raw_fd(), (&raw const on).cast());
    // SAFETY: the value is an integer of the size given, live and ours.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, value, size) };
    Errno::result(result).context("the kernel refuses PACKET_VNET_HDR")?;
    Ok(socket)
}

fn read(socket: &OwnedFd, stop: &AtomicBool) -> Result<Captured> {
    let mut captured = Captured { counts: Counts::default(), frames: Vec::new() };
    let mut buffer = vec![0; OFFLOAD + (1 << 17)];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                let received = &buffer[..length.min(buffer.len())];
                let (offload, bytes) = received
                    .split_first_chunk::<OFFLOAD>()
                    .context("a packet without its header")?;
                let kind = from.map(|address| address.pkttype());
                let frame = Frame {
                    time: SystemTime::now().duration_since(UNIX_EPOCH)?,
                    outgoing: kind == Some(libc::PACKET_OUTGOING),
                    length: length - OFFLOAD,
                    segment_size: u16::from_ne_bytes([offload[4], offload[5]]).into(),
                    bytes: bytes[..bytes.len().min(SNAP)].to_vec(),
                };
                captured.counts.add(&frame);
                if length <= buffer.len() {
                    captured.counts.judge(bytes);
                }
                if captured.frames.len() < KEPT {
                    captured.frames.push(frame);
                }
            }
            // The time-out found the buffer empty; if the stop came before, nothing is left that
            // belongs to us.
            Err(Errno::EAGAIN) if stopping => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot read packets"),
        }
    }
    let lost = packets_lost(socket)?;
    ensure!(lost == 0, "{lost} packets came faster than they could be read");
    Ok(captured)
}

/// `PACKET_STATISTICS` of packet(7): how many packets found the receive buffer full.
fn packets_lost(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of the value that the pointer
    // names, which is live and ours.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).context("cannot read the capture's statistics")?;
    Ok(statistics.tp_drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, PacketBuilder};

    fn frame(outgoing: bool, bytes: Vec<u8>) -> Frame {
        Frame { time: Duration::ZERO, outgoing, length: bytes.len(), segment_size: 0, bytes }
    }

    fn plain(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, destination, 64).udp(1000, 7);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"hello").unwrap();
        bytes
    }

    #[test]
    fn packets_are_counted_by_direction_and_by_the_side_the_vip_is_on() {
        let mut counts = Counts::default();
        let (client, vip) = ([198, 51, 100, 10], VIP_V4.octets());
        counts.add(&frame(false, plain(client, vip)));
        counts.add(&frame(true, plain(vip, client)));
        counts.add(&frame(true, plain(vip, client)));
        counts.add(&frame(false, plain(client, [10, 0, 1, 2])));
        counts.add(&frame(false, vec![0; 20]));
        assert_eq!(counts, Counts { to_vip_in: 1, from_vip_out: 2, ..Counts::default() });
    }

    #[test]
    fn segments_of_another_size_are_seen_unless_the_packet_also_came_with_them() {
        let merged = |outgoing: bool, sequence: u32, segment_size: usize| {
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], VIP_V4.octets(), 64);
            let mut plain = Vec::new();
            builder.tcp(1000, 80, sequence, 64_000).write(&mut plain, &[7; 99]).unwrap();
            let mut bytes = Vec::new();
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
            builder.write(&mut bytes, IpNumber::IPV4, &plain[14..]).unwrap();
            Frame { segment_size, ..frame(outgoing, if outgoing { bytes } else { plain }) }
        };
        let frames = [(1, 40, 40), (2, 40, 20), (3, 40, 40), (3, 20, 20), (4, 40, 0)];
        let both =
            |(sequence, came, left)| [merged(false, sequence, came), merged(true, sequence, left)];
        let captured = |frames: &[_]| Captured {
            counts: Counts::default(),
            frames: frames.iter().copied().flat_map(both).collect(),
        };
        assert_eq!(captured(&frames).cut_otherwise(), [(40, 20)]);
        assert_eq!(captured(&[(1, 0, 30)]).cut_otherwise(), [(0, 30)]);
    }

    #[test]
    fn an_encapsulated_packet_counts_as_such_and_not_as_a_reply() {
        let mut bytes = Vec::new();
        let inner = &plain(VIP_V4.octets(), [198, 51, 100, 10])[14..];
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        builder.write(&mut bytes, IpNumber::IPV4, inner).unwrap();
        let mut counts = Counts::default();
        counts.add(&frame(false, bytes.clone()));
        counts.add(&frame(true, bytes));
        assert_eq!(counts, Counts { encapsulated_in: 1, encapsulated_out: 1, ..Counts::default() });
    }
}

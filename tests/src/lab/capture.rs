//! Packet capture inside a host with an AF_PACKET socket (packet(7)).
//!
//! The socket receives packets before any TC ingress program and after every TC egress program.
#![expect(unsafe_code, reason = "calls libc for packet sockets")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::BufWriter;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use pcap_file::pcap::{PcapPacket, PcapWriter};

use super::decode::{DecodedFrame, FlowKey, OuterChecksum};
use super::namespaces::Namespaces;
use super::topology::{LabHost, VIP_V4, VIP_V6};

/// Bytes stored of each packet: all headers and some payload.
const SNAP_LENGTH: usize = 256;
/// Packets stored by one capture. Later packets are only counted.
const MAX_FRAMES: usize = 50_000;
/// Bytes of `struct virtio_net_hdr` (`uapi/linux/virtio_net.h`), which precedes each packet. Its
/// third 16-bit word is the segment size in host byte order.
const VNET_HEADER: usize = 10;
/// Receive buffer in bytes, with the kernel's overhead for each packet: enough for a whole transfer
/// while this process waits for a CPU. The kernel allocates it only as packets queue up.
const RECEIVE_BUFFER: usize = 256 << 20;

/// One packet, with its Ethernet header.
#[derive(Clone, Debug)]
pub struct CapturedFrame {
    /// When it was read, since the epoch.
    pub time: Duration,
    /// Whether the host sent it.
    pub outgoing: bool,
    /// Length on the wire in bytes.
    pub length: usize,
    /// Payload bytes of each segment that a GSO packet is to be cut into; 0 for other packets.
    pub segment_size: usize,
    /// The first bytes, at most 256.
    pub bytes: Vec<u8>,
}

impl CapturedFrame {
    /// Decodes the stored bytes; `None` if they are no IP packet.
    pub fn decode(&self) -> Option<DecodedFrame<'_>> {
        DecodedFrame::decode(&self.bytes)
    }
}

/// The numbers of captured packets (a GSO packet counts once). "VIP" means each of the lab's VIP
/// addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounts {
    /// Received packets to a VIP, not encapsulated.
    pub to_vip_in: u64,
    /// Received packets from a VIP, not encapsulated.
    pub from_vip_in: u64,
    /// Sent packets from a VIP, not encapsulated.
    pub from_vip_out: u64,
    /// Received encapsulated packets.
    pub encapsulated_in: u64,
    /// Sent encapsulated packets.
    pub encapsulated_out: u64,
    /// TCP packets, encapsulated or not, whose checksum is correct or partial.
    pub tcp_checksum_good: u64,
    /// TCP packets with a wrong checksum.
    pub tcp_checksum_bad: u64,
    /// GUE packets whose outer checksum is correct, or will be once the inner one is completed.
    pub outer_checksum_good: u64,
    /// GUE packets with an outer checksum of 0.
    pub outer_checksum_zero: u64,
    /// GUE packets with a wrong outer checksum.
    pub outer_checksum_bad: u64,
}

impl PacketCounts {
    /// Counts by direction, addresses and encapsulation.
    fn add(&mut self, frame: &DecodedFrame<'_>, outgoing: bool) {
        match (frame.is_encapsulated(), outgoing) {
            (true, false) => self.encapsulated_in += 1,
            (true, true) => self.encapsulated_out += 1,
            (false, false) if is_vip(frame.destination()) => self.to_vip_in += 1,
            (false, false) if is_vip(frame.source()) => self.from_vip_in += 1,
            (false, true) if is_vip(frame.source()) => self.from_vip_out += 1,
            (false, _) => {}
        }
    }

    /// Counts by checksum; `frame` must be complete.
    fn add_checksums(&mut self, frame: &DecodedFrame<'_>) {
        match frame.tcp_checksum_good() {
            Some(true) => self.tcp_checksum_good += 1,
            Some(false) => self.tcp_checksum_bad += 1,
            None => {}
        }
        match frame.outer_checksum() {
            Some(OuterChecksum::Good) => self.outer_checksum_good += 1,
            Some(OuterChecksum::Zero) => self.outer_checksum_zero += 1,
            Some(OuterChecksum::Bad) => self.outer_checksum_bad += 1,
            None => {}
        }
    }
}

fn is_vip(address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| address == VIP_V4 || address == VIP_V6)
}

/// A GSO packet that left encapsulated and with another segment size than it arrived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resegmented {
    /// Segment size on arrival in bytes; 0 if the packet did not arrive as a GSO packet.
    pub size_in: usize,
    /// Segment size when it left, in bytes.
    pub size_out: usize,
}

/// The result of a finished capture.
#[derive(Clone, Debug)]
pub struct CaptureResult {
    /// Packets by kind.
    pub counts: PacketCounts,
    /// The first 50,000 packets.
    pub frames: Vec<CapturedFrame>,
}

impl CaptureResult {
    /// Length on the wire, with the Ethernet header, of the longest stored packet that arrived for
    /// a VIP without encapsulation, and of the longest that left encapsulated.
    pub fn longest(&self) -> (usize, usize) {
        let longest = |outgoing: bool, wanted: &dyn Fn(&DecodedFrame<'_>) -> bool| {
            let frames = self.frames.iter().filter(|frame| frame.outgoing == outgoing);
            let frames = frames.filter(|frame| frame.decode().is_some_and(|frame| wanted(&frame)));
            frames.map(|frame| frame.length).max().unwrap_or(0)
        };
        let to_vip =
            |frame: &DecodedFrame<'_>| !frame.is_encapsulated() && is_vip(frame.destination());
        (longest(false, &to_vip), longest(true, &|frame| frame.is_encapsulated()))
    }

    /// GSO packets with TCP that left encapsulated and with another segment size than they arrived
    /// with.
    pub fn resegmented(&self) -> Vec<Resegmented> {
        let gso_packets = |encapsulated: bool| {
            let frames = self.frames.iter();
            let frames = frames
                .filter(move |frame| frame.segment_size != 0 && frame.outgoing == encapsulated);
            frames.filter_map(move |frame| {
                let decoded = frame.decode()?;
                let tcp = decoded.tcp().filter(|_| decoded.is_encapsulated() == encapsulated)?;
                Some(((tcp.source_port(), tcp.sequence_number()), frame.segment_size))
            })
        };
        // A retransmission may arrive with another segment size.
        let mut arrived: HashMap<_, BTreeSet<usize>> = HashMap::new();
        for (key, size) in gso_packets(false) {
            arrived.entry(key).or_default().insert(size);
        }
        let resegmented = gso_packets(true).filter_map(|(key, size_out)| {
            let sizes = arrived.get(&key);
            let size_in = sizes.and_then(|sizes| sizes.last().copied()).unwrap_or(0);
            let same = sizes.is_some_and(|sizes| sizes.contains(&size_out));
            (!same).then_some(Resegmented { size_in, size_out })
        });
        resegmented.collect()
    }

    /// The outer source ports of received GUE packets, by inner flow.
    pub fn gue_source_ports(&self) -> BTreeMap<FlowKey, BTreeSet<u16>> {
        let mut flows: BTreeMap<_, BTreeSet<u16>> = BTreeMap::new();
        for frame in self.frames.iter().filter(|frame| !frame.outgoing) {
            let Some(decoded) = frame.decode() else { continue };
            if let Some((flow, port)) = decoded.flow().zip(decoded.gue_source_port()) {
                flows.entry(flow).or_default().insert(port);
            }
        }
        flows
    }

    /// ICMP errors that report a packet as too big: those that arrived as they are, or those that
    /// left encapsulated.
    pub fn too_big_errors(&self, encapsulated: bool) -> usize {
        let frames = self.frames.iter().filter(|frame| frame.outgoing == encapsulated);
        let decoded = frames.filter_map(CapturedFrame::decode);
        decoded
            .filter(|frame| frame.is_encapsulated() == encapsulated && frame.is_too_big_error())
            .count()
    }

    /// Writes the stored packets as a pcap file.
    pub fn write_pcap(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = PcapWriter::new(BufWriter::new(file))?;
        for frame in &self.frames {
            let length = u32::try_from(frame.length)?;
            writer.write_packet(&PcapPacket::new(frame.time, length, &frame.bytes))?;
        }
        Ok(())
    }
}

/// A running capture of one host's packets, on all its interfaces.
#[derive(Debug)]
pub struct PacketCapture {
    host: String,
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<CaptureResult>>,
}

impl PacketCapture {
    /// Starts a capture. It contains every packet from this call's return on.
    pub fn start(namespaces: &Namespaces, host: &LabHost) -> Result<Self> {
        let socket = namespaces
            .within(host, open)
            .with_context(|| format!("cannot capture packets in {}", host.name))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || read(&socket, &stopped));
        Ok(Self { host: host.name.clone(), stop, reader })
    }

    /// Starts a capture in each host.
    pub fn start_all<'a>(
        namespaces: &Namespaces,
        hosts: impl IntoIterator<Item = &'a LabHost>,
    ) -> Result<Vec<Self>> {
        hosts.into_iter().map(|host| Self::start(namespaces, host)).collect()
    }

    /// Requests the end of the capture without waiting for it, so that several end at once.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the capture. Lost packets are an error, because the counts would be wrong.
    pub fn stop(self) -> Result<CaptureResult> {
        self.request_stop();
        let read = self.reader.join().map_err(|_| anyhow!("the capturing thread panicked"))?;
        read.with_context(|| format!("the capture in {} failed", self.host))
    }

    /// Ends all captures; results in the same order.
    pub fn stop_all(captures: Vec<Self>) -> Result<Vec<CaptureResult>> {
        captures.iter().for_each(Self::request_stop);
        captures.into_iter().map(Self::stop).collect()
    }
}

fn open() -> Result<OwnedFd> {
    // Not bound to an interface: it receives the packets of all interfaces in the namespace.
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))?;
    // Each packet is then preceded by its offload state: partial checksum, segment size.
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the size are those of `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).context("cannot set PACKET_VNET_HDR")?;
    Ok(socket)
}

fn read(socket: &OwnedFd, stop: &AtomicBool) -> Result<CaptureResult> {
    let mut result = CaptureResult { counts: PacketCounts::default(), frames: Vec::new() };
    let mut buffer = vec![0; VNET_HEADER + (1 << 17)];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                let received = &buffer[..length.min(buffer.len())];
                let (vnet, bytes) = received
                    .split_first_chunk::<VNET_HEADER>()
                    .context("a packet without a virtio_net_hdr")?;
                let kind = from.map(|address| address.pkttype());
                let frame = CapturedFrame {
                    time: SystemTime::now().duration_since(UNIX_EPOCH)?,
                    outgoing: kind == Some(libc::PACKET_OUTGOING),
                    length: length - VNET_HEADER,
                    segment_size: u16::from_ne_bytes([vnet[4], vnet[5]]).into(),
                    bytes: bytes[..bytes.len().min(SNAP_LENGTH)].to_vec(),
                };
                if let Some(decoded) = DecodedFrame::decode(bytes) {
                    result.counts.add(&decoded, frame.outgoing);
                    if length <= buffer.len() {
                        result.counts.add_checksums(&decoded);
                    }
                }
                if result.frames.len() < MAX_FRAMES {
                    result.frames.push(frame);
                }
            }
            // The receive timeout expired on an empty buffer after the request to stop: all packets
            // of the capture have been read.
            Err(Errno::EAGAIN) if stopping => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot read packets"),
        }
    }
    let lost = packets_lost(socket)?;
    ensure!(lost == 0, "{lost} packets were dropped from a full receive buffer");
    Ok(result)
}

/// Packets dropped from a full receive buffer: `PACKET_STATISTICS` of packet(7).
fn packets_lost(socket: &OwnedFd) -> Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `statistics`; both values
    // outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).context("cannot read PACKET_STATISTICS")?;
    Ok(statistics.tp_drops)
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, PacketBuilder};

    use super::*;

    fn frame(outgoing: bool, bytes: Vec<u8>) -> CapturedFrame {
        let length = bytes.len();
        CapturedFrame { time: Duration::ZERO, outgoing, length, segment_size: 0, bytes }
    }

    fn counts(frames: &[(bool, Vec<u8>)]) -> PacketCounts {
        let mut counts = PacketCounts::default();
        for (outgoing, bytes) in frames {
            if let Some(decoded) = DecodedFrame::decode(bytes) {
                counts.add(&decoded, *outgoing);
            }
        }
        counts
    }

    fn udp(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, destination, 64).udp(1000, 7);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"hello").unwrap();
        bytes
    }

    fn encapsulate(packet: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 1, 11], 64);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, IpNumber::IPV4, packet).unwrap();
        bytes
    }

    #[test]
    fn packets_are_counted_by_direction_and_by_the_position_of_the_vip() {
        let client = [198, 51, 100, 10];
        let vip = VIP_V4.octets();
        let counts = counts(&[
            (false, udp(client, vip)),
            (true, udp(vip, client)),
            (true, udp(vip, client)),
            (false, udp(client, [10, 0, 1, 2])),
            (false, vec![0; 20]),
        ]);
        let expected = PacketCounts { to_vip_in: 1, from_vip_out: 2, ..PacketCounts::default() };
        assert_eq!(counts, expected);
    }

    #[test]
    fn an_encapsulated_packet_from_a_vip_is_not_counted_as_a_reply() {
        let bytes = encapsulate(&udp(VIP_V4.octets(), [198, 51, 100, 10])[14..]);
        let counts = counts(&[(false, bytes.clone()), (true, bytes)]);
        let expected =
            PacketCounts { encapsulated_in: 1, encapsulated_out: 1, ..PacketCounts::default() };
        assert_eq!(counts, expected);
    }

    #[test]
    fn another_segment_size_is_reported_unless_the_packet_also_arrived_with_it() {
        let gso_packet = |outgoing: bool, sequence: u32, segment_size: usize| {
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], VIP_V4.octets(), 64);
            let mut plain = Vec::new();
            builder.tcp(1000, 80, sequence, 64_000).write(&mut plain, &[7; 99]).unwrap();
            let bytes = if outgoing { encapsulate(&plain[14..]) } else { plain };
            CapturedFrame { segment_size, ..frame(outgoing, bytes) }
        };
        let both = |(sequence, size_in, size_out)| {
            [gso_packet(false, sequence, size_in), gso_packet(true, sequence, size_out)]
        };
        let resegmented = |packets: &[_]| {
            let frames = packets.iter().copied().flat_map(both).collect();
            CaptureResult { counts: PacketCounts::default(), frames }.resegmented()
        };
        let packets = [(1, 40, 40), (2, 40, 20), (3, 40, 40), (3, 20, 20), (4, 40, 0)];
        assert_eq!(resegmented(&packets), [Resegmented { size_in: 40, size_out: 20 }]);
        assert_eq!(resegmented(&[(1, 0, 30)]), [Resegmented { size_in: 0, size_out: 30 }]);
    }
}

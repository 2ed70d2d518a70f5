//! The output of a capture: pcapng with comments, or lines of text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter as Writer};
use pcap_file::{DataLink, PcapError};
use sluice_datapath::Reason;
use sluice_datapath::abi::{CAPTURE_LEN, CaptureEvent};

use super::names::{self, EventNames};
use crate::cli::output::report;
use crate::error::CliError;
use crate::kernel::bpf;
use crate::text::escape;

/// Converts the times of events to wall clock time.
pub(super) struct Clock {
    /// The wall clock minus the clock of events.
    offset: Duration,
}

impl Clock {
    pub(super) fn read() -> Result<Self, CliError> {
        let monotonic = bpf::monotonic().map_err(CliError::operation)?;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { offset: wall.saturating_sub(monotonic) })
    }

    /// The time of an event, since 1970 (UTC).
    fn wall(&self, event: &CaptureEvent) -> Duration {
        self.offset + Duration::from_nanos(event.time)
    }
}

/// The destination of captured packets.
pub(super) struct Output {
    format: Format,
    /// The file, for error messages.
    path: PathBuf,
    written: u64,
    /// Whether the reader closed its end.
    closed: bool,
}

enum Format {
    Text(io::Stdout),
    Pcapng {
        writer: Writer<Box<dyn Write>>,
        /// Interface IDs in the file, by interface index of the host.
        interfaces: BTreeMap<u32, u32>,
    },
}

impl Output {
    /// Creates the file, or uses standard output.
    pub(super) fn open(file: Option<&Path>) -> Result<Self, CliError> {
        let path = file.unwrap_or(Path::new("standard output")).to_owned();
        let mut output =
            Self { format: Format::Text(io::stdout()), path, written: 0, closed: false };
        if let Some(file) = file {
            let sink: Box<dyn Write> = if file == Path::new("-") {
                Box::new(BufWriter::new(io::stdout()))
            } else {
                // Packets of clients are not for other users.
                let created = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(file)
                    .with_context(|| format!("cannot create {}", file.display()));
                Box::new(BufWriter::new(created.map_err(CliError::BadInput)?))
            };
            let application = format!("sluice {}", env!("CARGO_PKG_VERSION"));
            let options = vec![SectionHeaderOption::UserApplication(Cow::Owned(application))];
            let section = SectionHeaderBlock { options, ..SectionHeaderBlock::default() };
            match PcapNgWriter::with_section_header(sink, section) {
                Ok(writer) => {
                    output.format = Format::Pcapng { writer, interfaces: BTreeMap::new() }
                }
                Err(error) => output.failed(error)?,
            }
            output.flush()?;
        }
        Ok(output)
    }

    /// Prints a message to standard error.
    pub(super) fn inform(&self, message: &str) {
        report(&format!("sluice: {message}"));
    }

    /// The number of packets written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether no more packets are wanted.
    pub(super) fn is_done(&self, count: Option<u64>) -> bool {
        self.closed || count.is_some_and(|count| self.written >= count)
    }

    /// Writes one packet.
    pub(super) fn write(
        &mut self,
        event: &CaptureEvent,
        names: &EventNames,
        clock: &Clock,
    ) -> Result<(), CliError> {
        let wall = clock.wall(event);
        let done = match &mut self.format {
            Format::Text(out) => writeln!(out.lock(), "{}", escape(&line(event, names, wall)))
                .map_err(PcapError::IoError),
            Format::Pcapng { writer, interfaces } => {
                write_block(writer, interfaces, event, names, wall)
            }
        };
        match done {
            Ok(()) => self.written += 1,
            Err(error) => self.failed(error)?,
        }
        Ok(())
    }

    /// Flushes the output.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        let done = match &mut self.format {
            Format::Text(out) => out.flush(),
            Format::Pcapng { writer, .. } => writer.get_mut().flush(),
        };
        done.or_else(|error| self.failed(PcapError::IoError(error)))
    }

    /// Ends the capture without an error if the reader closed its end (`| head`).
    fn failed(&mut self, error: PcapError) -> Result<(), CliError> {
        if let PcapError::IoError(error) = &error
            && error.kind() == ErrorKind::BrokenPipe
        {
            self.closed = true;
            return Ok(());
        }
        Err(CliError::operation(
            anyhow::Error::from(error).context(format!("cannot write to {}", self.path.display())),
        ))
    }
}

fn write_block(
    writer: &mut Writer<Box<dyn Write>>,
    interfaces: &mut BTreeMap<u32, u32>,
    event: &CaptureEvent,
    names: &EventNames,
    wall: Duration,
) -> Result<(), PcapError> {
    /// Timestamps in units of 10⁻⁹ seconds.
    const NANOSECONDS: u8 = 9;
    /// The packet was received (`epb_flags`, direction).
    const INBOUND: u32 = 1;

    let next = interfaces.len() as u32;
    let interface_id = *interfaces.entry(event.interface).or_insert(next);
    if interface_id == next {
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(names::interface(event.interface))),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: CAPTURE_LEN as u32,
            options,
        };
        writer.write_block(&block.into_block())?;
    }
    let block = EnhancedPacketBlock {
        interface_id,
        timestamp: wall,
        original_len: event.length,
        data: Cow::Borrowed(event.bytes()),
        options: vec![
            EnhancedPacketOption::Comment(Cow::Owned(comment(event, names))),
            EnhancedPacketOption::Flags(INBOUND),
        ],
    };
    writer.write_block(&block.into_block())?;
    Ok(())
}

/// The verdict on a packet, as text.
fn comment(event: &CaptureEvent, names: &EventNames) -> String {
    let mut text = match reason(event) {
        None => "verdict forward".to_owned(),
        Some(reason) => format!("verdict drop; reason {reason}"),
    };
    if event.service != 0 {
        text += &format!("; service {}", names.service(event.service));
    }
    if event.backend != 0 {
        text += &format!("; backend {}", names.backend(event.backend));
    }
    if event.egress_interface != 0 {
        text += &format!("; out {}", names::interface(event.egress_interface));
    }
    if event.segments > 1 {
        text += &format!("; segments {}", event.segments);
    }
    text
}

/// The name of the reason, if the packet was dropped.
fn reason(event: &CaptureEvent) -> Option<String> {
    let known = Reason::ALL.iter().find(|reason| reason.index() == event.reason);
    (event.reason != 0)
        .then(|| known.map_or_else(|| event.reason.to_string(), |reason| reason.name().to_owned()))
}

/// A packet as a line: time, interface, addresses, length, verdict.
fn line(event: &CaptureEvent, names: &EventNames, wall: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;

    let second = wall.as_secs() % DAY;
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{:06}Z {} {}, {} bytes: {}",
        wall.subsec_micros(),
        names::interface(event.interface),
        packet(event.bytes()),
        event.length,
        comment(event, names)
    )
}

/// Addresses, ports and protocol, as far as they were captured.
fn packet(bytes: &[u8]) -> String {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(bytes) else {
        return "not Ethernet".to_owned();
    };
    let (source, destination) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string())
        }
        Some(LaxNetSlice::Ipv6(ip)) => (
            format!("[{}]", ip.header().source_addr()),
            format!("[{}]", ip.header().destination_addr()),
        ),
        _ => return "not IP".to_owned(),
    };
    let ((from, to), protocol) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => ((tcp.source_port(), tcp.destination_port()), "tcp"),
        Some(TransportSlice::Udp(udp)) => ((udp.source_port(), udp.destination_port()), "udp"),
        _ => return format!("{source} > {destination}"),
    };
    format!("{source}:{from} > {destination}:{to} {protocol}")
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn a_truncated_packet_is_described_as_far_as_it_was_captured() {
        let mut bytes = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 7], [203, 0, 113, 10], 64);
        builder.tcp(40_000, 443, 1, 100).write(&mut bytes, &[0; 400]).unwrap();
        assert_eq!(packet(&bytes[..CAPTURE_LEN]), "192.0.2.7:40000 > 203.0.113.10:443 tcp");
        assert_eq!(packet(&bytes[..36]), "192.0.2.7 > 203.0.113.10");
        assert_eq!(packet(&bytes[..20]), "not IP");
        assert_eq!(packet(&bytes[..3]), "not Ethernet");
    }

    #[test]
    fn an_unknown_reason_is_shown_as_its_number() {
        assert_eq!(reason(&CaptureEvent::NONE), None);
        assert_eq!(
            reason(&CaptureEvent { reason: Reason::TooBig.index(), ..CaptureEvent::NONE })
                .as_deref(),
            Some("too_big")
        );
        assert_eq!(
            reason(&CaptureEvent { reason: 63, ..CaptureEvent::NONE }).as_deref(),
            Some("63")
        );
    }
}

//! Expected result of a frame at the balancer.

use std::time::{Duration, Instant};

use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::encapsulate::{Path, drop_reason};
use super::flow::{hash, tuple};
use super::icmp;
use super::ip::{self, Fragmentation, Ip};
use super::lookup::{First, Oracle, packet_id};
use crate::packets::expectation::Expectation;
use crate::packets::frames::Frame;

/// For this long a fragment entry certainly exists: less than the 30 seconds after which it
/// expires.
const REMEMBERED: Duration = Duration::from_secs(20);

impl Oracle {
    /// Whether the result depends on the speed of the machine: a non-initial fragment long after
    /// the first fragment.
    pub fn depends_on_time(&self, frame: &Frame) -> bool {
        let ip = ip::find(frame).and_then(|ip| ip.past_extensions(&frame.bytes));
        let Ok(ip @ Ip { fragmentation: Fragmentation::NonInitial(id), .. }) = ip else {
            return false;
        };
        let first = self.fragments.get(&packet_id(&ip, id));
        first.is_some_and(|first| first.seen.elapsed() > REMEMBERED)
    }

    /// The expected result of a frame. Updates the state that later frames depend on.
    pub fn judge(&mut self, frame: &Frame) -> Expectation {
        use Reason::{
            BadHeader, ExtensionHeaders, FragmentUnknown, IcmpInnerFragment, IcmpUnrelated,
            NoService, NotIp, NotTunnel, NotVip, OtherHost, OtherProtocol, Truncated, VlanDepth,
        };
        match self.outcome(frame) {
            Ok(outcome) => outcome,
            Err(
                reason @ (ExtensionHeaders | NotIp | VlanDepth | Truncated | BadHeader | NotVip
                | FragmentUnknown | OtherProtocol | NoService | NotTunnel | OtherHost
                | IcmpUnrelated | IcmpInnerFragment),
            ) => Expectation::Pass(reason),
            Err(reason) => Expectation::Drop(reason),
        }
    }

    fn outcome(&mut self, frame: &Frame) -> Result<Expectation, Reason> {
        let ip = ip::find(frame)?;
        let address = self.address(&ip)?;
        let ip = ip.past_extensions(&frame.bytes)?;
        let icmp = if ip.source.is_ipv4() { 1 } else { 58 };
        if ip.protocol == icmp && ip.fragmentation == Fragmentation::Whole {
            return self.icmp(frame, &ip, address);
        }
        self.forward(frame, ip, address)
    }

    fn forward(&mut self, frame: &Frame, ip: Ip, address: u32) -> Result<Expectation, Reason> {
        let present = frame.bytes.len() - ip.start;
        if let Fragmentation::NonInitial(id) = ip.fragmentation {
            return self.forward_non_initial(frame, &ip, id);
        }
        let rest = frame.bytes.get(ip.start + ip.header..).unwrap_or(&[]);
        // A TCP header up to its flags, or a whole UDP header.
        let needed = match ip.protocol {
            6 => 14,
            17 => 8,
            _ => return Err(Reason::OtherProtocol),
        };
        let transport = rest.get(..needed).ok_or(Reason::Truncated)?;
        let service =
            self.service(address, u16::from_be_bytes([transport[2], transport[3]]), ip.protocol)?;
        self.check_client(service, ip.source, ip.destination)?;
        let owner = service;
        let service = self.routed(owner, ip.source);

        let tcp = ip.protocol == 6;
        let transport_header = if tcp { usize::from(transport[12] >> 4) * 4 } else { 8 };
        let headers = ip.header + transport_header;
        let merged = frame.segment_size as usize;
        let no_length = if ip.source.is_ipv4() { 0 } else { 40 };
        let length = if merged > 0 && ip.length == no_length { present } else { ip.length };
        if length > present || length < headers || tcp && transport_header < 20 {
            return Err(Reason::BadLength);
        }
        if ip.ttl == 0 {
            return Err(Reason::TtlExpired);
        }

        let is_syn = tcp && transport[13] & 0x12 == 0x02;
        self.consume_tokens(service, ip.source, frame.segments.max(1), is_syn)?;
        let tuple = tuple(ip.source, ip.destination, &transport[..4], ip.protocol);
        let datagram = &rest[transport_header..length - ip.header];
        // QUIC packets are not fragmented (RFC 9000 section 14).
        let unfragmented = matches!(ip.fragmentation, Fragmentation::Whole);
        let named = if tcp || !unfragmented { None } else { self.quic_backend(service, datagram) };
        let (chosen, hint) = named.map_or_else(
            || self.select_backend(service, &tuple, is_syn),
            |backend| Ok((backend, 0)),
        )?;
        let epoch = self.epoch(chosen);
        let options = self.options(service);
        let hash = hash(&self.hashed(service, &tuple));
        // A SYN updates an existing connection entry and creates none.
        let tracked = named.is_none() && self.fixture.tables[&service].tracked;
        if tracked && (!is_syn || self.connections.contains_key(&tuple)) {
            self.connections.insert(tuple, (chosen, epoch));
        }
        if let Fragmentation::First(id) = ip.fragmentation {
            self.check_fragment(service)?;
            let first = First {
                service,
                owner,
                backend: chosen,
                epoch,
                hint,
                options,
                seen: Instant::now(),
            };
            self.fragments.insert(packet_id(&ip, id), first);
        }
        let largest = if merged == 0 { length } else { length.min(headers + merged) };
        let path = Path { service, backend: chosen, hint, options, hash };
        let outcome = self.encapsulated(frame, &ip, path, (length, largest), is_syn);
        outcome.or_else(|room| {
            let room = room?;
            if self.has_option(service, VipOptions::DROP_TOO_BIG) {
                return Err(Reason::TooBig);
            }
            icmp::too_big(frame, &ip, largest, room)
        })
    }

    /// A non-initial fragment goes to the backend of the first fragment.
    fn forward_non_initial(
        &mut self,
        frame: &Frame,
        ip: &Ip,
        id: u32,
    ) -> Result<Expectation, Reason> {
        let First { service, owner, backend, epoch, hint, options, .. } =
            *self.fragments.get(&packet_id(ip, id)).ok_or(Reason::FragmentUnknown)?;
        self.check_source(ip.source, ip.destination)?;
        self.check_global_acl(ip.source)?;
        self.acl_verdict(owner, ip.source).unwrap_or(Ok(()))?;
        if ip.length > frame.bytes.len() - ip.start || ip.length < ip.header {
            return Err(Reason::BadLength);
        }
        if ip.ttl == 0 {
            return Err(Reason::TtlExpired);
        }
        self.consume_tokens(service, ip.source, frame.segments.max(1), false)?;
        self.consume_fragment_token(service)?;
        if self.epoch(backend) != epoch {
            return Err(Reason::NoBackend);
        }
        // A non-initial fragment has no ports.
        let hash = hash(&tuple(ip.source, ip.destination, &[0; 4], ip.protocol));
        let path = Path { service, backend, hint, options, hash };
        let outcome = self.encapsulated(frame, ip, path, (ip.length, ip.length), false);
        outcome.map_err(drop_reason)
    }
}

//! What should become of a frame, by the documentation alone: headers read and written by etherparse, flows hashed by siphasher.

use std::collections::HashMap;
use std::hash::Hasher as _;
use std::net::IpAddr;

use etherparse::{EtherType, Ipv4HeaderSlice, Ipv6HeaderSlice};
use siphasher::sip::SipHasher13;
use sluice_datapath::Reason;

use super::build::{self, ETHERNET};
use super::world::{Forwarded, Frame, HASH_KEY, LARGEST_INDEX, Outcome, Slot, World};

/// The 5-tuple as it is hashed: addresses, ports and protocol in wire order.
type Tuple = Vec<u8>;

/// Keeps what the connection table should hold.
#[derive(Debug, Default)]
pub struct Oracle {
    world: World,
    connections: HashMap<Tuple, (u16, u32)>,
}

struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    header: usize,
    length: usize,
    class: u8,
    hops: u8,
    fragment: bool,
}

impl Oracle {
    /// Tells it what the maps hold from now on.
    pub fn configure(&mut self, world: &World) {
        self.world = world.clone();
    }

    /// What should become of a frame.
    pub fn judge(&mut self, frame: &Frame) -> Outcome {
        use Reason::{
            BadHeader, Fragment, NotIp, NotTunnel, NotVip, NotVipPort, OtherHost, OtherProtocol, Truncated, Vlan,
        };
        match self.forward(frame) {
            Ok(forwarded) => Outcome::Forward(forwarded),
            Err(
                reason @ (NotIp | Vlan | Truncated | BadHeader | NotVip | Fragment | OtherProtocol | NotVipPort
                | NotTunnel | OtherHost),
            ) => Outcome::Pass(reason),
            Err(reason) => Outcome::Drop(reason),
        }
    }

    fn forward(&mut self, frame: &Frame) -> Result<Forwarded, Reason> {
        let ip = network(frame)?;
        let address = *self.world.addresses.get(&ip.destination).ok_or(Reason::NotVip)?;
        if ip.fragment {
            return Err(Reason::Fragment);
        }
        let behind = frame.bytes.get(ETHERNET + ip.header..).unwrap_or(&[]);
        // Up to a TCP header's flags, or a whole UDP header.
        let needed = match ip.protocol {
            6 => 14,
            17 => 8,
            _ => return Err(Reason::OtherProtocol),
        };
        let transport = behind.get(..needed).ok_or(Reason::Truncated)?;
        let port = u16::from_be_bytes([transport[2], transport[3]]);
        let service = *self.world.vips.get(&(address, port, ip.protocol)).ok_or(Reason::NotVipPort)?;

        let present = frame.bytes.len() - ETHERNET;
        let tcp = ip.protocol == 6;
        let transport_header = if tcp { usize::from(transport[12] >> 4) * 4 } else { 8 };
        let headers = ip.header + transport_header;
        let merged = frame.segment_size as usize;
        let unclaimed = if ip.source.is_ipv4() { 0 } else { 40 };
        let length = if merged > 0 && ip.length == unclaimed { present } else { ip.length };
        if length > present || length < headers || tcp && transport_header < 20 {
            return Err(Reason::BadLength);
        }
        if ip.hops == 0 {
            return Err(Reason::Expired);
        }

        let opens = tcp && transport[13] & 0x12 == 0x02;
        let tuple = tuple(ip.source, ip.destination, &transport[..4], ip.protocol);
        let table = self.world.tables.get(&service).ok_or(Reason::NoTable)?;
        let (first, hint) = slot(&table.slots, &tuple).ok_or(Reason::NoTable)?;
        let incarnation = |index: u16| self.world.backends.get(&index).map_or(0, |backend| backend.incarnation);
        let kept =
            self.connections.get(&tuple).filter(|(index, was)| table.tracked && !opens && incarnation(*index) == *was);
        let chosen = if let Some((index, _)) = kept {
            *index
        } else {
            if first == 0 || first > LARGEST_INDEX {
                return Err(Reason::NoBackend);
            }
            if table.tracked {
                self.connections.insert(tuple, (first, incarnation(first)));
            }
            first
        };

        let backend = self.world.backends.get(&chosen).ok_or(Reason::NoRoute)?;
        let (_, mtu) = backend.next_hop.ok_or(Reason::NoRoute)?;
        let largest = if merged == 0 { length } else { length.min(headers + merged) };
        let outer = match ip.source {
            IpAddr::V4(_) => build::outer_v4(backend.v4.ok_or(Reason::NoEncapsulation)?, ip.class, hint, length),
            IpAddr::V6(_) => build::outer_v6(backend.v6.ok_or(Reason::NoEncapsulation)?, ip.class, hint, length),
        };
        if largest + outer.len() > mtu as usize {
            return Err(Reason::TooBig);
        }
        Ok(Forwarded {
            bytes: build::wrapped(&frame.bytes, &outer),
            service,
            backend: chosen,
            packets: frame.segments.max(1).into(),
            length: length as u64,
            opens,
        })
    }
}

/// The slot of a flow, by the siphasher crate: `None` in an empty table.
pub fn slot(slots: &[Slot], tuple: &[u8]) -> Option<Slot> {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEY[0], HASH_KEY[1]);
    hasher.write(tuple);
    let upper = hasher.finish() >> 32;
    let index = u128::from(upper) * slots.len() as u128 / (1 << 32);
    slots.get(usize::try_from(index).ok()?).copied()
}

/// The bytes of a 5-tuple that are hashed.
pub fn tuple(source: IpAddr, destination: IpAddr, ports: &[u8], protocol: u8) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [octets(source), octets(destination), ports.to_vec(), vec![protocol, 0, 0, 0]].concat()
}

/// The IP header, if the frame has one.
fn network(frame: &Frame) -> Result<Ip, Reason> {
    if frame.vlan {
        return Err(Reason::Vlan);
    }
    let ether_type = frame.bytes.get(12..14).ok_or(Reason::Truncated)?;
    let bytes = &frame.bytes[ETHERNET..];
    let kind = EtherType(u16::from_be_bytes([ether_type[0], ether_type[1]]));
    if matches!(kind, EtherType::IPV4 | EtherType::IPV6) && frame.is_for_other_host() {
        return Err(Reason::OtherHost);
    }
    match kind {
        EtherType::IPV4 => {
            if bytes.len() < 20 {
                return Err(Reason::Truncated);
            }
            // Options may be cut off: what counts is the fixed part.
            let mut whole = bytes[..bytes.len().min(60)].to_vec();
            whole.resize(60, 0);
            let h = Ipv4HeaderSlice::from_slice(&whole).map_err(|_| Reason::BadHeader)?;
            Ok(Ip {
                source: h.source_addr().into(),
                destination: h.destination_addr().into(),
                protocol: h.protocol().0,
                header: h.slice().len(),
                length: h.total_len().into(),
                class: h.dcp().value() << 2 | h.ecn().value(),
                hops: h.ttl(),
                fragment: h.is_fragmenting_payload(),
            })
        }
        EtherType::IPV6 => {
            if bytes.len() < 40 {
                return Err(Reason::Truncated);
            }
            let h = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Reason::BadHeader)?;
            Ok(Ip {
                source: h.source_addr().into(),
                destination: h.destination_addr().into(),
                protocol: h.next_header().0,
                header: 40,
                length: usize::from(h.payload_length()) + 40,
                class: h.traffic_class(),
                hops: h.hop_limit(),
                fragment: h.next_header().0 == 44,
            })
        }
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

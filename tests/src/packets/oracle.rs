//! What should become of a frame, by the documentation alone: headers read and written by
//! etherparse, flows hashed by siphasher.

use std::collections::HashMap;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;
use sluice_datapath::Reason;
use sluice_datapath::entries::Listing;
use sluice_datapath::options::{AddressOptions, VipOptions};
use sluice_datapath::rates::Limit;

use self::ip::{Ip, Part};
use super::build;
use super::world::{Forwarded, Frame, HASH_KEY, LARGEST_INDEX, Outcome, Slot, World};

pub mod clamp;
pub mod decapsulate;
mod gue;
mod icmp;
mod ip;
mod quic;

/// The 5-tuple as it is hashed: addresses, ports and protocol in wire order.
type Tuple = Vec<u8>;

/// Keeps what the connection table should hold.
#[derive(Debug, Default)]
pub struct Oracle {
    world: World,
    connections: HashMap<Tuple, (u16, u32)>,
    fragments: HashMap<FragmentKey, First>,
    /// Tokens taken from buckets, which never fill again during a test.
    taken: HashMap<(u32, Limit, Vec<u8>), u32>,
}

/// What the fragments of one packet share: addresses, identification, and in IPv4 the protocol.
type FragmentKey = (IpAddr, IpAddr, u32, Option<u8>);

fn fragment_key(ip: &Ip, id: u32) -> FragmentKey {
    (ip.source, ip.destination, id, ip.source.is_ipv4().then_some(ip.protocol))
}

/// Where a first fragment went.
#[derive(Debug, Clone, Copy)]
struct First {
    service: u32,
    /// Whose VIP it was for.
    owner: u32,
    backend: u16,
    incarnation: u32,
    hint: u16,
    options: VipOptions,
    seen: Instant,
}

/// How a packet goes to its backend.
#[derive(Debug, Clone, Copy)]
struct Way {
    service: u32,
    backend: u16,
    hint: u16,
    options: VipOptions,
    /// The hash of its flow.
    hash: u64,
}

/// How long a first fragment is surely remembered: less than the 30 seconds after which it surely
/// is not.
const REMEMBERED: Duration = Duration::from_secs(20);

impl Oracle {
    /// Tells it what the maps hold from now on.
    pub fn configure(&mut self, world: &World) {
        self.world = world.clone();
    }

    /// Whether what becomes of a frame depends on how fast this machine is: a later fragment whose
    /// first one came long ago.
    pub fn cannot_tell(&self, frame: &Frame) -> bool {
        let ip = ip::find(frame).and_then(|ip| ip.past_extensions(&frame.bytes));
        let Ok(ip @ Ip { part: Part::Later(id), .. }) = ip else { return false };
        let first = self.fragments.get(&fragment_key(&ip, id));
        first.is_some_and(|first| first.seen.elapsed() > REMEMBERED)
    }

    /// What should become of a frame.
    pub fn judge(&mut self, frame: &Frame) -> Outcome {
        use Reason::{
            BadHeader, ExtensionHeaders, Fragment, NotIp, NotTunnel, NotVip, NotVipPort, OtherHost,
            OtherProtocol, QuotesFragment, QuotesOther, Truncated, Vlan,
        };
        match self.outcome(frame) {
            Ok(outcome) => outcome,
            Err(
                reason @ (ExtensionHeaders | NotIp | Vlan | Truncated | BadHeader | NotVip
                | Fragment | OtherProtocol | NotVipPort | NotTunnel | OtherHost
                | QuotesOther | QuotesFragment),
            ) => Outcome::Pass(reason),
            Err(reason) => Outcome::Drop(reason),
        }
    }

    fn outcome(&mut self, frame: &Frame) -> Result<Outcome, Reason> {
        let ip = ip::find(frame)?;
        let address = self.address(&ip)?;
        let ip = ip.past_extensions(&frame.bytes)?;
        let icmp = if ip.source.is_ipv4() { 1 } else { 58 };
        if ip.protocol == icmp && ip.part == Part::Whole {
            return self.icmp(frame, &ip, address);
        }
        self.forward(frame, ip, address)
    }

    fn forward(&mut self, frame: &Frame, ip: Ip, address: u32) -> Result<Outcome, Reason> {
        let present = frame.bytes.len() - ip.start;
        if let Part::Later(id) = ip.part {
            return self.follow(frame, &ip, id);
        }
        let behind = frame.bytes.get(ip.start + ip.header..).unwrap_or(&[]);
        // Up to a TCP header's flags, or a whole UDP header.
        let needed = match ip.protocol {
            6 => 14,
            17 => 8,
            _ => return Err(Reason::OtherProtocol),
        };
        let transport = behind.get(..needed).ok_or(Reason::Truncated)?;
        let service =
            self.service(address, u16::from_be_bytes([transport[2], transport[3]]), ip.protocol)?;
        self.admit(service, ip.source)?;
        let owner = service;
        let service = self.routed(owner, ip.source);

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
        self.take(service, ip.source, frame.segments.max(1), opens)?;
        let tuple = tuple(ip.source, ip.destination, &transport[..4], ip.protocol);
        let datagram = &behind[transport_header..length - ip.header];
        // No packet of QUIC is ever cut (RFC 9000 section 14).
        let whole = matches!(ip.part, Part::Whole);
        let named = if tcp || !whole { None } else { self.named(service, datagram) };
        let (chosen, hint) = named
            .map_or_else(|| self.choose(service, &tuple, opens), |backend| Ok((backend, 0)))?;
        let incarnation = self.incarnation(chosen);
        let options = self.options(service);
        let hash = hash(&self.hashed(service, &tuple));
        // A segment that opens a connection changes an entry that is there, and makes none.
        let tracked = named.is_none() && self.world.tables[&service].tracked;
        if tracked && (!opens || self.connections.contains_key(&tuple)) {
            self.connections.insert(tuple, (chosen, incarnation));
        }
        if let Part::First(id) = ip.part {
            let first = First {
                service,
                owner,
                backend: chosen,
                incarnation,
                hint,
                options,
                seen: Instant::now(),
            };
            self.fragments.insert(fragment_key(&ip, id), first);
        }
        let largest = if merged == 0 { length } else { length.min(headers + merged) };
        let way = Way { service, backend: chosen, hint, options, hash };
        let told = self.encapsulated(frame, &ip, way, (length, largest), opens);
        told.or_else(|room| {
            let room = room?;
            if self.has(service, VipOptions::DROP_TOO_BIG) {
                return Err(Reason::TooBig);
            }
            icmp::too_big(frame, &ip, largest, room)
        })
    }

    /// The backend of a flow, and its slot's hint.
    fn choose(&self, service: u32, tuple: &Tuple, opens: bool) -> Result<Slot, Reason> {
        let table = self.world.tables.get(&service).ok_or(Reason::NoTable)?;
        let (first, hint) =
            slot(&table.slots, &self.hashed(service, tuple)).ok_or(Reason::NoTable)?;
        let kept =
            self.connections.get(tuple).filter(|(index, was)| self.incarnation(*index) == *was);
        match kept {
            Some((index, _)) if table.tracked && !opens => Ok((*index, hint)),
            _ if first == 0 || first > LARGEST_INDEX => Err(Reason::NoBackend),
            _ => Ok((first, hint)),
        }
    }

    fn incarnation(&self, index: u16) -> u32 {
        self.world.backends.get(&index).map_or(0, |backend| backend.incarnation)
    }

    /// The number of the VIP address or prefix that a packet goes to.
    fn address(&self, ip: &Ip) -> Result<u32, Reason> {
        let longest = || {
            let holding =
                self.world.prefixes.iter().filter(|(prefix, _)| prefix.contains(&ip.destination));
            holding.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, id)| *id)
        };
        self.world.addresses.get(&ip.destination).copied().or_else(longest).ok_or(Reason::NotVip)
    }

    fn service(&self, address: u32, port: u16, protocol: u8) -> Result<u32, Reason> {
        let vips = &self.world.vips;
        let service =
            vips.get(&(address, port, protocol)).or_else(|| vips.get(&(address, 0, protocol)));
        let drops = || {
            self.world
                .address_options
                .get(&address)
                .is_some_and(|o| o.has(AddressOptions::DROP_UNLISTED))
        };
        service.copied().ok_or_else(|| if drops() { Reason::Unlisted } else { Reason::NotVipPort })
    }

    /// The service whose a client of a service is: that of the longest prefix in its routes.
    fn routed(&self, service: u32, client: IpAddr) -> u32 {
        let client = client.to_canonical();
        let routes = self.world.routes.iter();
        let holding = routes
            .filter(|((routing, clients), _)| *routing == service && clients.contains(&client));
        holding.max_by_key(|((_, clients), _)| clients.prefix_len()).map_or(service, |(_, to)| *to)
    }

    /// Whether the lists let a source through: the one for all, then the service's.
    fn admit(&self, service: u32, source: IpAddr) -> Result<(), Reason> {
        self.admit_to_any(source)?;
        let listed = self
            .world
            .vip_options
            .get(&service)
            .is_some_and(|options| options.has(VipOptions::LISTED));
        if listed { self.listed(service, source).ok_or(Reason::NotAllowed)? } else { Ok(()) }
    }

    /// Whether the list for all lets a source through, if there is one.
    fn admit_to_any(&self, source: IpAddr) -> Result<(), Reason> {
        self.listed(Listing::OF_ALL, source).unwrap_or(Ok(()))
    }

    /// What a list says of a source, if there is one.
    fn listed(&self, list: u32, source: IpAddr) -> Option<Result<(), Reason>> {
        // An IPv4-mapped address is the IPv4 address to lists, too.
        let source = source.to_canonical();
        let holding =
            self.world.lists.get(&list)?.iter().filter(|(prefix, _)| prefix.contains(&source));
        Some(match holding.max_by_key(|(prefix, _)| prefix.prefix_len()) {
            Some((_, says)) if *says == Listing::DENIED => Err(Reason::Denied),
            Some((_, says)) if *says == Listing::NOT_ALLOWED => Err(Reason::NotAllowed),
            _ => Ok(()),
        })
    }

    /// Takes a packet's tokens: from its source's buckets, then from its service's. An IPv6 source
    /// is a /64.
    fn take(
        &mut self,
        service: u32,
        source: IpAddr,
        packets: u32,
        opens: bool,
    ) -> Result<(), Reason> {
        let source = match source {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets()[..8].to_vec(),
        };
        let everybody = Vec::new();
        for (limit, who, tokens, reason) in [
            (Limit::SourcePackets, &source, packets, Reason::SourceLimit),
            (Limit::SourceNewFlows, &source, u32::from(opens), Reason::SourceLimit),
            (Limit::Packets, &everybody, packets, Reason::ServiceLimit),
            (Limit::NewFlows, &everybody, u32::from(opens), Reason::ServiceLimit),
        ] {
            let limited = self
                .world
                .vip_options
                .get(&service)
                .is_some_and(|options| options.has(VipOptions::LIMITED));
            let Some(burst) =
                self.world.rates.get(&(service, limit)).filter(|_| limited && tokens > 0)
            else {
                continue;
            };
            let taken = self.taken.entry((service, limit, who.clone())).or_default();
            if *taken >= *burst {
                return Err(reason);
            }
            *taken += tokens;
        }
        Ok(())
    }

    /// How packets of a service's VIPs are treated.
    fn options(&self, service: u32) -> VipOptions {
        self.world.vip_options.get(&service).copied().unwrap_or_default()
    }

    /// The bytes of a 5-tuple that a service hashes.
    fn hashed(&self, service: u32, tuple: &Tuple) -> Tuple {
        let options = self.options(service);
        let address = (tuple.len() - 5) / 2;
        let mut hashed = tuple.clone();
        if options.has(VipOptions::HASH_CLIENT) {
            hashed[2 * address..][..2].fill(0);
        }
        if options.has(VipOptions::HASH_SOURCE) {
            hashed[address..].fill(0);
        }
        hashed
    }

    /// A later fragment goes where the first one went.
    fn follow(&mut self, frame: &Frame, ip: &Ip, id: u32) -> Result<Outcome, Reason> {
        let First { service, owner, backend, incarnation, hint, options, .. } =
            *self.fragments.get(&fragment_key(ip, id)).ok_or(Reason::Fragment)?;
        self.admit_to_any(ip.source)?;
        self.listed(owner, ip.source).unwrap_or(Ok(()))?;
        if ip.length > frame.bytes.len() - ip.start || ip.length < ip.header {
            return Err(Reason::BadLength);
        }
        if ip.hops == 0 {
            return Err(Reason::Expired);
        }
        self.take(service, ip.source, frame.segments.max(1), false)?;
        if self.incarnation(backend) != incarnation {
            return Err(Reason::NoBackend);
        }
        // It has no ports.
        let hash = hash(&tuple(ip.source, ip.destination, &[0; 4], ip.protocol));
        let way = Way { service, backend, hint, options, hash };
        let outcome = self.encapsulated(frame, ip, way, (ip.length, ip.length), false);
        outcome.map_err(unsaid)
    }

    /// The frame with its outer header. `lengths`: of the packet, and of the largest one that it
    /// will be cut into. An error is the room that there is for a packet that does not fit, or
    /// another reason.
    fn encapsulated(
        &self,
        frame: &Frame,
        ip: &Ip,
        Way { service, backend: chosen, hint, options, hash }: Way,
        (length, largest): (usize, usize),
        opens: bool,
    ) -> Result<Outcome, Result<usize, Reason>> {
        let backend = self.world.backends.get(&chosen);
        let (v4, v6) = backend.map_or((None, None), |backend| (backend.v4, backend.v6));
        if v4.is_none() && v6.is_none() {
            return Err(Err(Reason::NoEncapsulation));
        }
        let (_, mtu) = backend.and_then(|backend| backend.next_hop).ok_or(Err(Reason::NoRoute))?;
        let mut outer = match (ip.source, v4, v6) {
            (IpAddr::V4(_), Some(v4), _) => build::outer_v4(v4, ip.class, hint, length),
            (IpAddr::V6(_), _, Some(v6)) => build::outer_v6(v6, ip.class, hint, length),
            (IpAddr::V4(_), None, Some(v6)) => build::outer_v6_of_v4(v6, ip.class, hint, length),
            (IpAddr::V6(_), Some(v4), None) => build::outer_v4_of_v6(v4, ip.class, hint, length),
            (_, None, None) => return Err(Err(Reason::NoEncapsulation)),
        };
        if options.has(VipOptions::GUE) {
            outer = gue::headers(
                &outer,
                &frame.bytes[ip.start..][..length],
                ip,
                frame.segment_size != 0,
                hash,
            );
        }
        // What was merged of a stream of bytes may be cut anywhere: each segment gives as many
        // bytes as the outer header takes. Nobody merges fragments.
        let smaller = self.has(service, VipOptions::RESEGMENT)
            && ip.protocol == 6
            && ip.part == Part::Whole
            && !frame.vlan
            && ip.start == 14
            && ip.header == if ip.source.is_ipv4() { 20 } else { 40 }
            && frame.segment_size as usize > outer.len() + 64
            && largest <= mtu as usize;
        if largest + outer.len() > mtu as usize && !smaller {
            return Err(Ok((mtu as usize).saturating_sub(outer.len())));
        }
        if options.has(VipOptions::GUE) {
            gue::check(&outer, options).map_err(Err)?;
        }
        Ok(Outcome::Forward(Forwarded {
            bytes: build::wrapped_behind(&frame.bytes, ip.start, &outer),
            service,
            backend: chosen,
            packets: frame.segments.max(1).into(),
            length: length as u64,
            opens,
        }))
    }
}

impl Oracle {
    fn has(&self, service: u32, option: VipOptions) -> bool {
        self.world.vip_options.get(&service).is_some_and(|options| options.has(option))
    }
}

/// The reason why a packet is not encapsulated whose sender is not told.
fn unsaid(room: Result<usize, Reason>) -> Reason {
    room.map_or_else(|reason| reason, |_| Reason::TooBig)
}

/// The slot of a flow, by the siphasher crate: `None` in an empty table.
pub fn slot(slots: &[Slot], tuple: &[u8]) -> Option<Slot> {
    let index = u128::from(hash(tuple) >> 32) * slots.len() as u128 / (1 << 32);
    slots.get(usize::try_from(index).ok()?).copied()
}

/// The flow hash: SipHash-1-3.
pub fn hash(tuple: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEY[0], HASH_KEY[1]);
    hasher.write(tuple);
    hasher.finish()
}

/// The bytes of a 5-tuple that are hashed.
pub fn tuple(source: IpAddr, destination: IpAddr, ports: &[u8], protocol: u8) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [octets(source), octets(destination), ports.to_vec(), vec![protocol]].concat()
}

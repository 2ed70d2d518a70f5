//! The oracle's state and lookups: VIP, service, route, source ACL, rate limit, backend.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use sluice_datapath::Reason;
use sluice_datapath::abi::{AclVerdict, AddressOptions, RateKind, VipOptions};

use super::flow::{Tuple, slot};
use super::ip::Ip;
use crate::packets::fixture::{Fixture, LARGEST_INDEX, SlotSpec};

/// Computes expectations for frames, from a fixture and the frames before.
#[derive(Debug, Default)]
pub struct Oracle {
    pub(super) fixture: Fixture,
    pub(super) connections: HashMap<Tuple, (u16, u32)>,
    pub(super) fragments: HashMap<PacketId, First>,
    /// Consumed tokens. Buckets do not refill during a test.
    pub(super) consumed: HashMap<(u32, RateKind, Vec<u8>), u32>,
}

/// The key of a fragmented packet: addresses, identification, and in IPv4 the protocol.
type PacketId = (IpAddr, IpAddr, u32, Option<u8>);

pub(super) fn packet_id(ip: &Ip, id: u32) -> PacketId {
    (ip.source, ip.destination, id, ip.source.is_ipv4().then_some(ip.protocol))
}

/// Whether no client has this source address (RFC 1812 section 5.3.7, RFC 4291 section 2.5).
pub(super) fn is_martian(source: IpAddr) -> bool {
    is_link_local(source)
        || match source {
            IpAddr::V4(v4) => {
                v4.is_multicast() || v4.is_loopback() || matches!(v4.octets()[0], 0 | 240..)
            }
            IpAddr::V6(v6) => {
                v6.is_multicast() || v6.to_ipv4_mapped().is_some() || v6.segments()[..6] == [0; 6]
            }
        }
}

pub(super) fn is_link_local(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The state that a first fragment leaves for the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    pub(super) service: u32,
    /// Service of the VIP, whose ACL applies.
    pub(super) owner: u32,
    pub(super) backend: u16,
    pub(super) epoch: u32,
    pub(super) hint: u16,
    pub(super) options: VipOptions,
    pub(super) seen: Instant,
}

impl Oracle {
    /// Replaces the fixture.
    pub fn configure(&mut self, fixture: &Fixture) {
        self.fixture = fixture.clone();
    }

    /// The backend of a flow and the hint of its slot.
    pub(super) fn select_backend(
        &self,
        service: u32,
        tuple: &Tuple,
        is_syn: bool,
    ) -> Result<SlotSpec, Reason> {
        let table = self.fixture.tables.get(&service).ok_or(Reason::NoTable)?;
        let (first, hint) =
            slot(&table.slots, &self.hashed(service, tuple)).ok_or(Reason::NoTable)?;
        let kept = self.connections.get(tuple).filter(|(index, was)| self.epoch(*index) == *was);
        match kept {
            Some((index, _)) if table.tracked && !is_syn => Ok((*index, hint)),
            _ if first == 0 || first > LARGEST_INDEX => Err(Reason::NoBackend),
            _ => Ok((first, hint)),
        }
    }

    pub(super) fn epoch(&self, index: u16) -> u32 {
        self.fixture.backends.get(&index).map_or(0, |backend| backend.epoch)
    }

    /// The number of the VIP address or prefix that a packet is addressed to.
    pub(super) fn address(&self, ip: &Ip) -> Result<u32, Reason> {
        self.vip_address(ip.destination).ok_or(Reason::NotVip)
    }

    /// The number of the VIP address or prefix that an address is, or is in.
    fn vip_address(&self, address: IpAddr) -> Option<u32> {
        let longest = || {
            let holding =
                self.fixture.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
            holding.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, id)| *id)
        };
        self.fixture.addresses.get(&address).copied().or_else(longest)
    }

    /// Refuses a martian source, and a VIP address as a source, unless its options allow that and
    /// the packet is to another address.
    pub(super) fn check_source(&self, source: IpAddr, destination: IpAddr) -> Result<(), Reason> {
        if is_martian(source) {
            return Err(Reason::MartianSource);
        }
        let is_refused = self.vip_address(source).is_some_and(|address| {
            let options = self.fixture.address_options.get(&address).copied();
            source == destination
                || !options.unwrap_or_default().has(AddressOptions::ALLOW_AS_SOURCE)
        });
        if is_refused { Err(Reason::SourceIsVip) } else { Ok(()) }
    }

    pub(super) fn service(&self, address: u32, port: u16, protocol: u8) -> Result<u32, Reason> {
        let vips = &self.fixture.vips;
        let service =
            vips.get(&(address, port, protocol)).or_else(|| vips.get(&(address, 0, protocol)));
        let drops = || {
            self.fixture
                .address_options
                .get(&address)
                .is_some_and(|o| o.has(AddressOptions::DROP_NO_SERVICE))
        };
        service
            .copied()
            .ok_or_else(|| if drops() { Reason::NoServiceDropped } else { Reason::NoService })
    }

    /// The service that handles a client: the target of the service's longest matching route, or
    /// the service itself.
    pub(super) fn routed(&self, service: u32, client: IpAddr) -> u32 {
        let client = client.to_canonical();
        let routes = self.fixture.routes.iter();
        let holding = routes
            .filter(|((routing, clients), _)| *routing == service && clients.contains(&client));
        holding.max_by_key(|((_, clients), _)| clients.prefix_len()).map_or(service, |(_, to)| *to)
    }

    /// Checks the source address, then the global ACL, then the service's.
    pub(super) fn check_client(
        &self,
        service: u32,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<(), Reason> {
        self.check_source(source, destination)?;
        self.check_global_acl(source)?;
        let has_acl = self
            .fixture
            .vip_options
            .get(&service)
            .is_some_and(|options| options.has(VipOptions::ACL));
        if has_acl {
            self.acl_verdict(service, source).ok_or(Reason::AclNotAllowed)?
        } else {
            Ok(())
        }
    }

    /// Checks a source against the global ACL, if there is one.
    pub(super) fn check_global_acl(&self, source: IpAddr) -> Result<(), Reason> {
        self.acl_verdict(AclVerdict::GLOBAL, source).unwrap_or(Ok(()))
    }

    /// The verdict of an ACL for a source; `None` without an ACL.
    pub(super) fn acl_verdict(&self, acl: u32, source: IpAddr) -> Option<Result<(), Reason>> {
        // ACLs treat an IPv4-mapped address as the IPv4 address.
        let source = source.to_canonical();
        let holding =
            self.fixture.acls.get(&acl)?.iter().filter(|(prefix, _)| prefix.contains(&source));
        Some(match holding.max_by_key(|(prefix, _)| prefix.prefix_len()) {
            Some((_, verdict)) if *verdict == AclVerdict::DENIED => Err(Reason::AclDenied),
            Some((_, verdict)) if *verdict == AclVerdict::NOT_ALLOWED => Err(Reason::AclNotAllowed),
            _ => Ok(()),
        })
    }

    /// Checks a first fragment: the service's option, then its rate of fragments.
    pub(super) fn check_fragment(&mut self, service: u32) -> Result<(), Reason> {
        if self.has_option(service, VipOptions::DROP_FRAGMENTS) {
            return Err(Reason::FragmentDropped);
        }
        self.consume_fragment_token(service)
    }

    /// Consumes a token of the service's bucket of fragments.
    pub(super) fn consume_fragment_token(&mut self, service: u32) -> Result<(), Reason> {
        let is_limited = self.has_option(service, VipOptions::RATE_LIMITED);
        let burst = self.fixture.rates.get(&(service, RateKind::Fragments));
        let Some(burst) = burst.filter(|_| is_limited) else { return Ok(()) };
        let consumed = self.consumed.entry((service, RateKind::Fragments, Vec::new())).or_default();
        if *consumed >= *burst {
            return Err(Reason::RateLimitedFragments);
        }
        *consumed += 1;
        Ok(())
    }

    /// Consumes a packet's tokens from the buckets of its source, then from those of its service.
    /// An IPv6 source is a /64.
    pub(super) fn consume_tokens(
        &mut self,
        service: u32,
        source: IpAddr,
        packets: u32,
        is_syn: bool,
    ) -> Result<(), Reason> {
        let source = match source {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets()[..8].to_vec(),
        };
        let per_service = Vec::new();
        for (limit, who, tokens, reason) in [
            (RateKind::SourcePackets, &source, packets, Reason::RateLimitedSource),
            (RateKind::SourceNewConnections, &source, u32::from(is_syn), Reason::RateLimitedSource),
            (RateKind::Packets, &per_service, packets, Reason::RateLimitedService),
            (RateKind::NewConnections, &per_service, u32::from(is_syn), Reason::RateLimitedService),
        ] {
            let limited = self
                .fixture
                .vip_options
                .get(&service)
                .is_some_and(|options| options.has(VipOptions::RATE_LIMITED));
            let Some(burst) =
                self.fixture.rates.get(&(service, limit)).filter(|_| limited && tokens > 0)
            else {
                continue;
            };
            let consumed = self.consumed.entry((service, limit, who.clone())).or_default();
            if *consumed >= *burst {
                return Err(reason);
            }
            *consumed += tokens;
        }
        Ok(())
    }

    /// The options of a service.
    pub(super) fn options(&self, service: u32) -> VipOptions {
        self.fixture.vip_options.get(&service).copied().unwrap_or_default()
    }

    /// The 5-tuple with the fields zeroed that the service does not hash.
    pub(super) fn hashed(&self, service: u32, tuple: &Tuple) -> Tuple {
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

    pub(super) fn has_option(&self, service: u32, option: VipOptions) -> bool {
        self.fixture.vip_options.get(&service).is_some_and(|options| options.has(option))
    }
}

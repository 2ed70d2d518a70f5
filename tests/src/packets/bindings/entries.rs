//! Map entries of a fixture.

use ipnet::IpNet;
use sluice_datapath::abi::{
    CachedVip, Connection, Features, NextHop, Port, PrefixKey, QuicIdLengths, QuicServerKey, Rate,
    RateKind, RouteKey, ServiceRef, Settings, VipAddress, VipKey, VipOptions, VipSources,
};
use sluice_datapath::{Address, abi};

use crate::packets::addresses::{GUE_PORT, UNDERLAY_V4, UNDERLAY_V6};
use crate::packets::fixture::{BackendSpec, Fixture, HASH_KEY};

/// Settings of the balancers in these tests.
pub fn settings() -> Settings {
    Settings {
        features: Features::ALL,
        hash_key: HASH_KEY,
        source_v4: UNDERLAY_V4.into(),
        source_v6: UNDERLAY_V6.into(),
        source_bits_v4: 0,
        source_bits_v6: 0,
        gue_port: GUE_PORT,
        vip_sources: VipSources::ALL,
        errors: Rate::NONE,
    }
}

/// The value of a backend in the map `BACKENDS`; all zero if the index is free.
pub fn backend_entry(backend: Option<&BackendSpec>) -> abi::Backend {
    let (v4, v6) = backend.map_or((None, None), |backend| (backend.v4, backend.v6));
    abi::Backend {
        v4: v4.map_or(Address::NONE, Address::from),
        v6: v6.map_or(Address::NONE, Address::from),
        epoch: backend.map_or(0, |backend| backend.epoch),
    }
}

/// The value of a backend in the map `NEXT_HOPS`; all zero without a route.
pub fn next_hop_entry(backend: Option<&BackendSpec>) -> NextHop {
    let (interface, mtu) = backend.and_then(|backend| backend.next_hop).unwrap_or((0, 0));
    NextHop::new(interface, u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// The key of a prefix in an LPM trie.
pub fn key(prefix: IpNet) -> PrefixKey {
    PrefixKey::prefix(prefix.addr().into(), prefix.prefix_len().into())
}

/// The key of a VIP in the map `VIPS`.
pub fn vip_key((address, port, protocol): (u32, u16, u8)) -> VipKey {
    VipKey::new(address, Port::new(port), protocol)
}

impl Fixture {
    /// The entries of all VIP addresses and prefixes.
    pub fn address_entries(&self) -> impl Iterator<Item = (IpNet, VipAddress)> {
        let single = self.addresses.iter().map(|(address, id)| (IpNet::from(*address), *id));
        let all = single.chain(self.prefixes.iter().map(|(prefix, id)| (*prefix, *id)));
        all.map(|(prefix, id)| {
            let options = self.address_options.get(&id).copied().unwrap_or_default();
            (prefix, VipAddress { cached: self.first_vip(id), ..VipAddress::new(id, options) })
        })
    }

    /// The VIP that an address's entry holds: the last one of every other address, the first one of
    /// the others, so that cases meet VIPs that are held and VIPs that are not in both families.
    fn first_vip(&self, id: u32) -> CachedVip {
        let mut vips =
            self.vips.iter().filter(|((address, port, _), _)| *address == id && *port != 0);
        let chosen = if id.is_multiple_of(2) { vips.next() } else { vips.next_back() };
        chosen.map_or(CachedVip::NONE, |((_, port, protocol), service)| {
            CachedVip::new(Port::new(*port), *protocol, self.vip_entry(*service))
        })
    }

    /// The entry of a rate limit.
    pub fn rate(&self, service: u32, limit: RateKind) -> Rate {
        self.rates.get(&(service, limit)).map_or(Rate::NONE, |burst| Rate::every(86_400, *burst))
    }

    /// The entry of the VIPs of a service.
    pub fn vip_entry(&self, service: u32) -> ServiceRef {
        let routed = self.routes.keys().any(|(routing, _)| *routing == service);
        let leads = |to| self.routes.iter().any(|((from, _), led)| *from == service && *led == to);
        let quic = self.server_ids.keys().any(|(has, _)| *has == service || leads(*has));
        let options = self.vip_options.get(&service).copied().unwrap_or_default();
        ServiceRef {
            index: service,
            options: options.with_if(routed, VipOptions::ROUTED).with_if(quic, VipOptions::QUIC),
        }
    }

    /// The entries of the QUIC server IDs.
    pub fn server_entries(&self) -> impl Iterator<Item = (QuicServerKey, Connection)> {
        self.server_ids.iter().flat_map(|((service, rotation), (_, servers))| {
            servers.iter().map(|(id, (backend, epoch))| {
                let key = QuicServerKey::new(*service, *rotation, id).expect("a valid ID");
                (key, Connection { backend: u32::from(*backend), epoch: *epoch })
            })
        })
    }

    /// The entry with the server ID lengths of a service.
    pub fn id_lengths(&self, service: u32) -> QuicIdLengths {
        let configs = self.server_ids.iter().filter(|((has, _), _)| *has == service);
        configs.fold(QuicIdLengths::NONE, |all, ((_, rotation), (length, _))| {
            all.with(*rotation, *length as u8)
        })
    }

    /// The entries of the routes.
    pub fn route_entries(&self) -> impl Iterator<Item = (RouteKey, ServiceRef)> {
        self.routes.iter().map(|((service, clients), to)| {
            (RouteKey::new(*service, &key(*clients)), self.vip_entry(*to))
        })
    }
}

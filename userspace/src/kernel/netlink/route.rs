//! Route lookups, local routes and default routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{AddressAdded, AddressRemoved, Error, Mode, Netlink};

/// The kernel's table of local routes (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u8 = 255;

/// The route to an address, as the kernel selects it for a packet that this host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The egress interface; the loopback interface for a local address.
    pub index: u32,
    /// The MTU in bytes, from the outer IP header on: the route's own if it has one (configured, or
    /// learned from a router), otherwise the device's.
    pub mtu: u32,
    /// The gateway; `None` if the address is on the link.
    pub gateway: Option<IpAddr>,
    /// Whether the address is one of this host, so that packets to it never leave.
    pub local: bool,
}

/// MTUs of devices by index, as of their first lookup.
#[derive(Debug, Default)]
pub struct DeviceMtus(BTreeMap<u32, u32>);

impl Netlink {
    /// Makes all addresses of a prefix local to this host: adds a route of type local, to the
    /// loopback interface `index`, in the table `local`.
    pub async fn add_local_route(&self, index: u32, prefix: IpNet) -> Result<AddressAdded, Error> {
        let request = RouteNetlinkMessage::NewRoute(local_route(prefix, Some(index)));
        let doing = || format!("make {prefix} local to this host");
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => Ok(AddressAdded::Created),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(AddressAdded::Existed),
            Err(error) => Err(error),
        }
    }

    /// Removes the route that [`Self::add_local_route`] adds.
    pub async fn remove_local_route(&self, prefix: IpNet) -> Result<AddressRemoved, Error> {
        let request = RouteNetlinkMessage::DelRoute(local_route(prefix, None));
        match self
            .request(request, Mode::One(0), || format!("remove the local route to {prefix}"))
            .await
        {
            Ok(_) => Ok(AddressRemoved::Removed),
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(AddressRemoved::Absent),
            Err(error) => Err(error),
        }
    }

    /// Indexes of the egress interfaces of the main table's default routes, both families, each
    /// once, in no order.
    pub async fn default_routes(&self) -> Result<Vec<u32>, Error> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let doing = || "list the default routes of this host".to_owned();
            let answers =
                self.request(RouteNetlinkMessage::GetRoute(message), Mode::Dump, doing).await?;
            for answer in &answers {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    found.extend(default_interfaces(route));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Looks up the route to an address, optionally for packets from a given address of this host.
    ///
    /// `None` if the address is unreachable: no route, a route of type blackhole, unreachable or
    /// prohibit, or a broadcast or multicast address.
    ///
    /// # Errors
    /// [`Error::SourceNotLocal`] if `source` is not an address of this host.
    pub async fn route(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Option<Route>, Error> {
        self.route_among(destination, source, &mut DeviceMtus::default()).await
    }

    /// As [`Self::route`], for many lookups in a row: each device's MTU, which takes most of the
    /// time, is looked up once.
    pub async fn route_among(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
        mtus: &mut DeviceMtus,
    ) -> Result<Option<Route>, Error> {
        let request = RouteNetlinkMessage::GetRoute(lookup_message(destination, source));
        let answer = self
            .request(request, Mode::One(0), || format!("look up the route to {destination}"))
            .await;
        let answers = match answer {
            Ok(answers) => answers,
            Err(error) if error.errno().is_some_and(is_unreachable) => {
                // The kernel returns the same errors for a source that is not local, which is a
                // configuration error.
                if let Some(from) = source
                    && !self.local_addresses().await?.iter().any(|(_, address)| *address == from)
                {
                    return Err(Error::SourceNotLocal { destination, from });
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => Some(decode_route(message)),
            _ => None,
        });
        let Some(found) = found.flatten() else {
            return Ok(None);
        };
        let mtu = match found.mtu {
            Some(mtu) => mtu,
            None => match mtus.0.get(&found.index) {
                Some(mtu) => *mtu,
                None => match self.interface_at(found.index).await? {
                    Some(interface) => *mtus.0.entry(found.index).or_insert(interface.mtu),
                    // The interface, and with it the route, was removed between the two requests.
                    None => return Ok(None),
                },
            },
        };
        Ok(Some(Route { index: found.index, mtu, gateway: found.gateway, local: found.local }))
    }
}

/// Blackhole is `EINVAL`, prohibit `EACCES`, throw at the end of the rules `EAGAIN`.
fn is_unreachable(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EINVAL
            | libc::EACCES
            | libc::EAGAIN
            | libc::ENETDOWN
            | libc::ESRCH
    )
}

/// A local route with protocol static. The local routes of the host's addresses have protocol
/// kernel and do not match.
fn local_route(prefix: IpNet, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(prefix.addr()),
        destination_prefix_length: prefix.prefix_len(),
        table: LOCAL_TABLE,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    let destination = match prefix.addr() {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    message.attributes.push(RouteAttribute::Destination(destination));
    message.attributes.extend(index.map(RouteAttribute::Oif));
    message
}

/// The egress interfaces of a route, if it is a default route of the main table.
fn default_interfaces(route: &RouteMessage) -> Vec<u32> {
    let header = &route.header;
    if header.kind != RouteType::Unicast
        || header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Vec::new();
    }
    let interfaces = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    interfaces.collect()
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn lookup_message(destination: IpAddr, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, bits) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    if let Some(source) = source {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    message
}

/// The decoded answer to a route lookup; `mtu` only if the route itself has one.
#[derive(Debug, PartialEq, Eq)]
struct RouteAnswer {
    index: u32,
    mtu: Option<u32>,
    gateway: Option<IpAddr>,
    local: bool,
}

fn decode_route(message: &RouteMessage) -> Option<RouteAnswer> {
    let local = match message.header.kind {
        RouteType::Unicast | RouteType::Anycast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let mut index = None;
    let mut mtu = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(RouteAnswer { index: index?, mtu, gateway, local })
}

#[cfg(test)]
mod tests {
    use super::*;

    use netlink_packet_route::route::RouteNextHop;

    fn answer(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn blackhole_unreachable_prohibit_and_multicast_are_no_routes() {
        for kind in [
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
            RouteType::Multicast,
        ] {
            assert_eq!(decode_route(&answer(kind, vec![RouteAttribute::Oif(1)])), None, "{kind:?}");
        }
    }

    #[test]
    fn a_route_with_its_own_mtu_and_a_gateway_of_the_other_family_is_decoded() {
        let gateway = "fe80::1".parse().unwrap();
        let message = answer(
            RouteType::Unicast,
            vec![
                RouteAttribute::Oif(3),
                RouteAttribute::Via(RouteVia::Inet6(gateway)),
                RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(64), RouteMetric::Mtu(1400)]),
            ],
        );
        let expected = RouteAnswer {
            index: 3,
            mtu: Some(1400),
            gateway: Some(IpAddr::V6(gateway)),
            local: false,
        };
        assert_eq!(decode_route(&message), Some(expected));
    }

    #[test]
    fn a_default_route_has_one_egress_interface_or_several() {
        let hop = |interface_index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface_index;
            hop
        };
        let mut route = answer(RouteType::Unicast, vec![RouteAttribute::Oif(3)]);
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        assert_eq!(default_interfaces(&route), [3]);
        route.attributes = vec![RouteAttribute::MultiPath(vec![hop(4), hop(5)])];
        assert_eq!(default_interfaces(&route), [4, 5]);
        let network = RouteHeader { destination_prefix_length: 24, ..route.header.clone() };
        let other_table = RouteHeader { table: 7, ..route.header.clone() };
        let unreachable = RouteHeader { kind: RouteType::Unreachable, ..route.header.clone() };
        for header in [network, other_table, unreachable] {
            route.header = header;
            assert!(default_interfaces(&route).is_empty());
        }
    }

    #[test]
    fn an_mtu_of_zero_counts_as_absent() {
        let message = answer(
            RouteType::Local,
            vec![RouteAttribute::Oif(1), RouteAttribute::Metrics(vec![RouteMetric::Mtu(0)])],
        );
        assert_eq!(
            decode_route(&message),
            Some(RouteAnswer { index: 1, mtu: None, gateway: None, local: true })
        );
    }
}

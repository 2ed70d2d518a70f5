//! Where packets to an address would go.

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

/// The way to an address, as the kernel would choose it for a packet that this host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface through which packets leave; the loopback interface for a local address.
    pub index: u32,
    /// The largest packet that fits, in bytes from the outer IP header on: the route's own MTU
    /// where it has one (set, or learned from a router), the device's otherwise.
    pub mtu: u32,
    /// The router to which packets are handed; `None` when the address is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The address belongs to this very host, so packets to it never leave.
    pub local: bool,
}

/// MTUs of devices by index, as they were when first asked for.
#[derive(Debug, Default)]
pub struct DeviceMtus(BTreeMap<u32, u32>);

impl Netlink {
    /// Makes all addresses of a prefix this host's own: a route of type local, to the loopback
    /// interface `index`, in the table `local`.
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
    pub async fn add_local_route(&self, index: u32, prefix: IpNet) -> Result<AddressAdded, Error> {
        let request = RouteNetlinkMessage::NewRoute(local_route(prefix, Some(index)));
        let doing = || format!("make {prefix} local to this host");
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => Ok(AddressAdded::Created),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(AddressAdded::Existed),
            Err(error) => Err(error),
        }
    }

    /// Removes what [`Self::add_local_route`] made.
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
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

    /// Whether there is such a route.
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
    pub async fn has_local_route(&self, prefix: IpNet) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(prefix.addr());
        let doing = || format!("look for the local route to {prefix}");
        let answers =
            self.request(RouteNetlinkMessage::GetRoute(message), Mode::Dump, doing).await?;
        let wanted = local_route(prefix, None);
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewRoute(found) => {
                let destination = |message: &RouteMessage| {
                    message
                        .attributes
                        .iter()
                        .find(|attribute| matches!(attribute, RouteAttribute::Destination(_)))
                        .cloned()
                };
                found.header.kind == RouteType::Local
                    && found.header.destination_prefix_length
                        == wanted.header.destination_prefix_length
                    && destination(found) == destination(&wanted)
            }
            _ => false,
        }))
    }

    /// Indexes of the interfaces through which the main table's default routes of both families
    /// lead, each once, in no order.
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
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
    /// `None` when it cannot be reached: no route, or one that says blackhole, unreachable or
    /// prohibit, or an address that is not one host's (broadcast, multicast).
    ///
    /// # Errors
    /// [`Error::SourceNotLocal`] when `source` is not an address of this host; the kernel's
    /// refusal; no answer.
    pub async fn route(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Option<Route>, Error> {
        self.route_among(destination, source, &mut DeviceMtus::default()).await
    }

    /// As [`Self::route`], one of many asked in a row: each device's MTU is asked for once, which
    /// is the larger part of the work.
    ///
    /// # Errors
    /// As [`Self::route`].
    pub async fn route_among(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
        mtus: &mut DeviceMtus,
    ) -> Result<Option<Route>, Error> {
        let request = RouteNetlinkMessage::GetRoute(question(destination, source));
        let answer = self
            .request(request, Mode::One(0), || format!("look up the route to {destination}"))
            .await;
        let answers = match answer {
            Ok(answers) => answers,
            Err(error) if error.errno().is_some_and(is_unreachable) => {
                // The kernel gives the same numbers for a source that is not ours, and that is a
                // fault of the configuration.
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
            RouteNetlinkMessage::NewRoute(message) => Some(answered(message)),
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
                    // It vanished between the two questions, and the route with it.
                    None => return Ok(None),
                },
            },
        };
        Ok(Some(Route { index: found.index, mtu, gateway: found.gateway, local: found.local }))
    }
}

/// Blackhole is `EINVAL`, prohibit `EACCES`, throw at the end of the rules `EAGAIN`; the others say
/// what they mean.
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

/// A local route, as an administrator would make it: those of addresses are the kernel's, and not
/// meant.
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

/// The interfaces of a route, if it is a default route of the main table.
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

fn question(destination: IpAddr, source: Option<IpAddr>) -> RouteMessage {
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

/// The useful parts of an answer; `mtu` only where the route itself has one.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    index: u32,
    mtu: Option<u32>,
    gateway: Option<IpAddr>,
    local: bool,
}

fn answered(message: &RouteMessage) -> Option<Answer> {
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
    Some(Answer { index: index?, mtu, gateway, local })
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
    fn refusing_routes_are_no_routes() {
        for kind in [
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
            RouteType::Multicast,
        ] {
            assert_eq!(answered(&answer(kind, vec![RouteAttribute::Oif(1)])), None, "{kind:?}");
        }
    }

    #[test]
    fn a_routes_own_mtu_and_a_gateway_of_the_other_family_are_read() {
        let gateway = "fe80::1".parse().unwrap();
        let message = answer(
            RouteType::Unicast,
            vec![
                RouteAttribute::Oif(3),
                RouteAttribute::Via(RouteVia::Inet6(gateway)),
                RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(64), RouteMetric::Mtu(1400)]),
            ],
        );
        let expected =
            Answer { index: 3, mtu: Some(1400), gateway: Some(IpAddr::V6(gateway)), local: false };
        assert_eq!(answered(&message), Some(expected));
    }

    #[test]
    fn default_routes_lead_through_one_interface_or_several() {
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
        let to_a_network = RouteHeader { destination_prefix_length: 24, ..route.header.clone() };
        let of_another_table = RouteHeader { table: 7, ..route.header.clone() };
        let refusing = RouteHeader { kind: RouteType::Unreachable, ..route.header.clone() };
        for header in [to_a_network, of_another_table, refusing] {
            route.header = header;
            assert!(default_interfaces(&route).is_empty());
        }
    }

    #[test]
    fn an_mtu_of_zero_is_none() {
        let message = answer(
            RouteType::Local,
            vec![RouteAttribute::Oif(1), RouteAttribute::Metrics(vec![RouteMetric::Mtu(0)])],
        );
        assert_eq!(
            answered(&message),
            Some(Answer { index: 1, mtu: None, gateway: None, local: true })
        );
    }
}

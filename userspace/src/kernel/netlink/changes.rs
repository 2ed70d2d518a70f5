//! Notifications of changes to links, addresses, routes, rules and filters.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use futures_util::FutureExt as _;
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;
use super::decode::{destination, own_address};

/// The groups that report changes of routes, of their devices, and of filters.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
    MulticastGroup::Tc,
];

/// Room for one notification; the kernel's are at most this long.
const MAX_DATAGRAM: usize = 32 * 1024;

/// The largest number of route destinations that are kept apart; of more, any route may differ.
const MAX_ROUTES: usize = 4096;

/// Changes that notifications have reported.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HostChanges {
    /// Links, rules or next hop objects: any route may differ.
    pub links: bool,
    /// Qdiscs or filters.
    pub filters: bool,
    /// Addresses that were added or removed.
    pub addresses: BTreeSet<IpAddr>,
    /// Destinations of routes that were added, changed or removed.
    pub routes: BTreeSet<IpNet>,
}

impl HostChanges {
    /// Everything may have changed, for example because notifications were lost.
    pub fn everything() -> Self {
        Self { links: true, filters: true, ..Self::default() }
    }

    /// Adds later changes.
    pub fn merge(&mut self, mut later: Self) {
        self.links |= later.links;
        self.filters |= later.filters;
        self.addresses.append(&mut later.addresses);
        self.routes.append(&mut later.routes);
        if self.routes.len() + self.addresses.len() > MAX_ROUTES {
            *self = Self::everything();
        }
    }

    /// The changes in a datagram.
    fn decode(bytes: &[u8]) -> Self {
        /// Message types of rtnetlink (include/uapi/linux/rtnetlink.h).
        const FILTERS: [RangeInclusive<u16>; 2] = [36..=46, 100..=102];
        const NEW_ADDRESS: u16 = 20;
        const DEL_ROUTE: u16 = 25;

        let mut changes = Self::default();
        let Some(kind) = bytes.get(4..6).and_then(|kind| kind.first_chunk()) else {
            return Self::everything();
        };
        let kind = u16::from_ne_bytes(*kind);
        if FILTERS.iter().any(|types| types.contains(&kind)) {
            changes.filters = true;
            return changes;
        }
        if !(NEW_ADDRESS..=DEL_ROUTE).contains(&kind) {
            changes.links = true;
            return changes;
        }
        match NetlinkMessage::deserialize(bytes).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message),
            )) => changes.addresses.extend(own_address(&message).map(|(_, address, _)| address)),
            Ok(NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message),
            )) => match destination(&message) {
                Some(destination) => drop(changes.routes.insert(destination)),
                None => return Self::everything(),
            },
            _ => return Self::everything(),
        }
        changes
    }
}

/// Receives change notifications. Many may arrive at once: [`Self::gather`].
pub struct Changes {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Changes {
    pub(super) fn subscribe() -> Result<Self, Error> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::Connect)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0)).map_err(Error::Connect)?;
        for group in GROUPS {
            inner.add_membership(group as u32).map_err(Error::Connect)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(MAX_DATAGRAM) })
    }

    /// Waits for the next change. Dropping the future loses no notification. An unknown or
    /// truncated message stands for any change, and so do messages that the kernel dropped
    /// (`ENOBUFS`).
    ///
    /// # Errors
    /// Any other socket error.
    pub async fn changed(&mut self) -> io::Result<HostChanges> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer).await {
            Ok(_) => Ok(HostChanges::decode(&self.buffer)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                Ok(HostChanges::everything())
            }
            Err(error) => Err(error),
        }
    }

    /// Reads all pending notifications, so that one look at the host covers them. A full routing
    /// table that appears or disappears causes thousands of messages.
    pub fn gather(&mut self) -> io::Result<HostChanges> {
        /// More than the socket buffer holds, so that a steady stream of changes does not block
        /// forever.
        const MOST: usize = 1 << 16;

        let mut gathered = HostChanges::default();
        for _ in 0..MOST {
            // Without tokio's cooperative budget, which would end the loop early.
            match tokio::task::unconstrained(self.changed()).now_or_never() {
                Some(change) => gathered.merge(change?),
                None => break,
            }
        }
        Ok(gathered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decoded_stands_for_any_change() {
        assert_eq!(HostChanges::decode(&[]), HostChanges::everything());
        let mut route = [0; 28];
        route[..4].copy_from_slice(&28_u32.to_ne_bytes());
        route[4..6].copy_from_slice(&24_u16.to_ne_bytes());
        route[16] = libc::AF_INET as u8;
        let default =
            HostChanges { routes: ["0.0.0.0/0".parse().unwrap()].into(), ..HostChanges::default() };
        assert_eq!(HostChanges::decode(&route), default);
        assert_eq!(HostChanges::decode(&route[..27]), HostChanges::everything());
        route[17] = 24;
        assert_eq!(HostChanges::decode(&route), HostChanges::everything(), "a prefix without one");
    }

    #[test]
    fn many_routes_stand_for_any_change() {
        let mut changes = HostChanges::default();
        for number in 0..=MAX_ROUTES as u32 {
            let routes = [IpNet::from(IpAddr::from(number.to_be_bytes()))].into();
            changes.merge(HostChanges { routes, ..HostChanges::default() });
        }
        assert_eq!(changes, HostChanges::everything());
    }
}

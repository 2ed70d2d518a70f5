//! Notifications of changes to links, addresses, routes, rules and filters.

use std::io;

use futures_util::FutureExt as _;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;

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

/// Receives change notifications.
///
/// Messages are not decoded: an unknown message is a change, and so are messages that the kernel
/// dropped (`ENOBUFS`). Many changes may arrive at once: [`Self::gather`].
pub struct Changes {
    socket: TokioSocket,
}

impl Changes {
    pub(super) fn subscribe() -> Result<Self, Error> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(Error::Connect)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0)).map_err(Error::Connect)?;
        for group in GROUPS {
            inner.add_membership(group as u32).map_err(Error::Connect)?;
        }
        Ok(Self { socket })
    }

    /// Waits for the next change. Dropping the future loses no notification.
    ///
    /// # Errors
    /// Any socket error except lost messages, which count as a change.
    pub async fn changed(&mut self) -> io::Result<()> {
        // The content is not used, so the message may be truncated.
        let mut buffer = Vec::with_capacity(64);
        match self.socket.recv_from(&mut buffer).await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads all pending notifications, so that one look at the host covers them. A full routing
    /// table that appears or disappears causes thousands of messages.
    pub fn gather(&mut self) -> io::Result<()> {
        /// More than the socket buffer holds, so that a steady stream of changes does not block
        /// forever.
        const MOST: usize = 1 << 16;

        // Without tokio's cooperative budget, which would end the loop early.
        (0..MOST).map_while(|_| tokio::task::unconstrained(self.changed()).now_or_never()).collect()
    }
}

//! "Something about links, addresses, routes, rules or filters has changed": when to look again.

use std::io;

use futures_util::FutureExt as _;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;

/// What can move a route or the device it leads through, and what can take a filter away.
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

/// A receiver of change notifications.
///
/// The messages themselves are not decoded: a message of a kind that this version does not know is
/// a change all the same, and so are messages that the kernel had to drop. Many changes may arrive
/// at once: [`Self::gather`].
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

    /// Waits for the next change. Dropping the future loses nothing.
    ///
    /// # Errors
    /// An error of the socket other than lost messages, which count as a change.
    pub async fn changed(&mut self) -> io::Result<()> {
        // Only the fact counts, so the message may be cut to this buffer.
        let mut buffer = Vec::with_capacity(64);
        match self.socket.recv_from(&mut buffer).await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes what has arrived already: who looks after this sees all of it. A full routing table
    /// that comes and goes is thousands of messages.
    ///
    /// # Errors
    /// As [`Self::changed`].
    pub fn gather(&mut self) -> io::Result<()> {
        /// More than the socket holds: changes that go on and on are looked at all the same.
        const MOST: usize = 1 << 16;

        // One after the other as long as there are any, however many a task may usually take in a
        // row.
        (0..MOST).map_while(|_| tokio::task::unconstrained(self.changed()).now_or_never()).collect()
    }
}

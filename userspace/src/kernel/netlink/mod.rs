//! rtnetlink requests: interfaces, addresses, tunnel devices, routes, qdiscs and filters.
//!
//! Only this module uses the crates `rtnetlink` and `netlink-packet-route`: their message types,
//! builders and connection. Requests go through one private function of [`Netlink`], which
//! distinguishes an acknowledgement, an error and a missing answer; the crates' own helpers report
//! a closed connection as success. The kernel's error, or a missing answer, is an [`Error`] of
//! every request.

mod address;
mod changes;
mod decode;
mod direction;
mod error;
mod link;
mod route;
mod tc;
mod tunnel;
mod tunnel_data;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, NlasIterator, parse_string,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use tracing::warn;

use self::error::{ANSWER_WITHIN, DUMP_ATTEMPTS};
use crate::progress;

pub use self::address::{AddressAdded, AddressRemoved};
pub use self::changes::{Changes, HostChanges};
pub use self::direction::Direction;
pub use self::error::Error;
pub use self::link::Interface;
pub use self::route::{DeviceMtus, Route};
pub(crate) use self::tc::is_sluice_filter;
pub use self::tc::{Attached, Clsact, Detached, Filter, FilterSpec};
pub use self::tunnel::{Tunnel, TunnelError};
pub use self::tunnel_data::TunnelKind;

/// Flags of an error message: request echo cut to its header, attributes present
/// (include/uapi/linux/netlink.h).
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NETLINK_HEADER_LEN: usize = 16;

/// A connection to the kernel's routing socket, in the network namespace of the thread that opened
/// it. Clones share it.
///
/// A socket error, such as `ENOBUFS` on a send, ends a connection. The next one is opened at once.
/// Lookups are repeated over it; changes fail, because they may or may not have been made.
#[derive(Clone, Debug)]
pub struct Netlink {
    connection: Arc<Mutex<Connection>>,
}

/// The present connection.
#[derive(Debug)]
struct Connection {
    handle: rtnetlink::Handle,
    /// The number of connections that were lost before it.
    lost: u64,
    /// Whether it is lost, too, and no other could be opened.
    is_closed: bool,
}

/// The form of the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// At most one message and an acknowledgement. These flags are set in addition to
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    One(u16),
    /// A dump, ended by `NLMSG_DONE`.
    Dump,
}

impl Netlink {
    /// Opens the connection and spawns the task that drives it on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without its I/O and time drivers.
    pub fn connect() -> Result<Self, Error> {
        let connection = Connection { handle: open()?, lost: 0, is_closed: false };
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// The number of connections that were lost and replaced.
    pub fn lost_connections(&self) -> u64 {
        self.present().lost
    }

    /// Whether the connection is lost, and no other could be opened.
    pub fn is_closed(&self) -> bool {
        self.present().is_closed
    }

    fn present(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the connection after `lost` others, unless another request has done so.
    fn reconnect(&self, lost: u64) -> Result<(), Error> {
        let mut present = self.present();
        if present.lost == lost {
            present.is_closed = true;
            present.handle = open()?;
            present.is_closed = false;
            present.lost += 1;
            warn!(lost = present.lost, "netlink connection lost, opened another one");
        }
        Ok(())
    }

    /// Subscribes to changes of links, addresses, routes, rules and filters, on a socket of its
    /// own.
    pub fn changes(&self) -> Result<Changes, Error> {
        Changes::subscribe()
    }

    /// Sends one request and collects its answers. `doing` completes the sentence "cannot ...".
    async fn request(
        &self,
        message: RouteNetlinkMessage,
        mode: Mode,
        doing: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut is_second = false;
        for _ in 0..DUMP_ATTEMPTS {
            let (handle, lost) = {
                let present = self.present();
                (present.handle.clone(), present.lost)
            };
            progress::report();
            let exchange = exchange(handle, message.clone(), mode, &doing);
            match tokio::time::timeout(ANSWER_WITHIN, exchange).await {
                Err(_) => return Err(Error::NoAnswer { doing: doing() }),
                Ok(Ok(Some(answers))) => return Ok(answers),
                Ok(Ok(None)) => {}
                Ok(Err(error @ Error::Closed { .. })) => {
                    self.reconnect(lost)?;
                    if is_second || !is_lookup(&message) {
                        return Err(error);
                    }
                    is_second = true;
                }
                Ok(Err(error)) => return Err(error),
            }
        }
        Err(Error::Unsteady { doing: doing() })
    }
}

/// Opens a connection and spawns the task that drives it on the current tokio runtime.
fn open() -> Result<rtnetlink::Handle, Error> {
    let (mut connection, handle, _) = rtnetlink::new_connection().map_err(Error::Connect)?;
    // By default empty answers are dropped, so that a closed connection looks like success.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    connection.socket_mut().socket_mut().set_ext_ack(true).map_err(Error::Connect)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Whether a request changes nothing.
fn is_lookup(message: &RouteNetlinkMessage) -> bool {
    matches!(
        message,
        RouteNetlinkMessage::GetLink(_)
            | RouteNetlinkMessage::GetAddress(_)
            | RouteNetlinkMessage::GetRoute(_)
            | RouteNetlinkMessage::GetQueueDiscipline(_)
            | RouteNetlinkMessage::GetTrafficFilter(_)
    )
}

/// One attempt of a request: `None` if a change interrupted the dump, which must be repeated.
async fn exchange(
    mut handle: rtnetlink::Handle,
    message: RouteNetlinkMessage,
    mode: Mode,
    doing: &impl Fn() -> String,
) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST
        | match mode {
            // An acknowledgement ends every exchange, also one whose answer cannot be decoded.
            Mode::One(flags) => NLM_F_ACK | flags,
            Mode::Dump => NLM_F_DUMP,
        };
    let closed = |_| Error::Closed { doing: doing() };
    let mut responses = handle.request(request).map_err(closed)?;
    let mut answers = Vec::new();
    let mut interrupted = false;
    while let Some(response) = responses.next().await {
        let flags = response.header.flags;
        interrupted |= mode == Mode::Dump && flags & NLM_F_DUMP_INTR != 0;
        match response.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(Some(answers)),
            NetlinkPayload::Error(error) => {
                let detail = kernel_message(&error, flags);
                return Err(Error::Refused { doing: doing(), source: error.to_io(), detail });
            }
            NetlinkPayload::Done(done) if done.code < 0 => {
                let source = io::Error::from_raw_os_error(-done.code);
                return Err(Error::Refused { doing: doing(), source, detail: None });
            }
            NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(answers)),
            _ => {}
        }
    }
    Err(Error::Closed { doing: doing() })
}

/// The kernel's text in an error message. It follows the echo of the request, which may be cut to
/// its header.
fn kernel_message(error: &ErrorMessage, flags: u16) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request_len = match flags & NLM_F_CAPPED {
        0 => u32::from_ne_bytes(*error.header.first_chunk::<4>()?) as usize,
        _ => NETLINK_HEADER_LEN,
    };
    let attributes = error.header.get(request_len.next_multiple_of(4)..)?;
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| parse_string(attribute.value()).ok())
}

/// The name of an interface for messages; its index if no interface has that index.
pub(crate) fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        // For an unused index nix returns an empty name, not an error.
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("interface number {index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: i32, echo: &[u8], text: &str) -> ErrorMessage {
        let mut message = ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(code);
        message.header = echo.to_vec();
        let attribute_len = 4 + text.len() + 1;
        message.header.extend((attribute_len as u16).to_ne_bytes());
        message.header.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        message.header.extend(text.as_bytes());
        message.header.resize(message.header.len() + 1, 0);
        message
    }

    fn echo_of(len: u32) -> Vec<u8> {
        let mut echo = len.to_ne_bytes().to_vec();
        echo.resize((len as usize).next_multiple_of(4), 0xaa);
        echo
    }

    #[test]
    fn the_kernel_message_follows_the_whole_request() {
        let message = refusal(-libc::EOPNOTSUPP, &echo_of(61), "Unknown device type");
        assert_eq!(
            kernel_message(&message, NLM_F_ACK_TLVS).as_deref(),
            Some("Unknown device type")
        );
    }

    #[test]
    fn the_kernel_message_follows_a_request_cut_to_its_header() {
        let mut echo = echo_of(NETLINK_HEADER_LEN as u32);
        echo[..4].copy_from_slice(&400u32.to_ne_bytes());
        let message = refusal(-libc::EINVAL, &echo, "no");
        assert_eq!(kernel_message(&message, NLM_F_ACK_TLVS | NLM_F_CAPPED).as_deref(), Some("no"));
    }

    #[test]
    fn a_truncated_error_or_one_without_text_has_no_message() {
        let mut message = refusal(-libc::EINVAL, &echo_of(61), "x");
        assert_eq!(kernel_message(&message, 0), None);
        message.header.truncate(3);
        assert_eq!(kernel_message(&message, NLM_F_ACK_TLVS), None);
        message.header = 4000u32.to_ne_bytes().to_vec();
        assert_eq!(kernel_message(&message, NLM_F_ACK_TLVS), None);
    }
}

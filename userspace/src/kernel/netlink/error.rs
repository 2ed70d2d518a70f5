//! Errors of netlink requests.

use std::io;
use std::time::Duration;

use super::direction::Direction;

/// How long a request waits for its answer. The kernel answers at once unless another process holds
/// the RTNL lock.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How often a dump is repeated that changed while it was read (`NLM_F_DUMP_INTR`).
pub(super) const DUMP_ATTEMPTS: u32 = 8;

/// Why a request failed. Each message is one sentence that names the object and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Connect(#[source] io::Error),
    /// The connection was lost before the answer.
    #[error("cannot {doing}: the netlink connection was lost; try again")]
    Closed {
        /// The request, such as "add 192.0.2.1/32 to lo".
        doing: String,
    },
    /// The kernel did not answer.
    #[error("cannot {doing}: the kernel did not answer within {} s; look for a process that holds the RTNL lock", ANSWER_WITHIN.as_secs())]
    NoAnswer {
        /// The request.
        doing: String,
    },
    /// A dump changed each time while it was read.
    #[error(
        "cannot {doing}: the list changed each of the {DUMP_ATTEMPTS} times it was read; try again"
    )]
    Unsteady {
        /// The request.
        doing: String,
    },
    /// The kernel refused.
    #[error("cannot {doing}: {source}{}{}", detail_text(.detail), remedy(.source))]
    Refused {
        /// The request.
        doing: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's message, if any (extended acknowledgement).
        detail: Option<String>,
    },
    /// No interface has this name.
    #[error("there is no interface {name} on this host: it has {}", .existing.join(", "))]
    NoInterface {
        /// The requested name.
        name: String,
        /// The names of the interfaces that exist.
        existing: Vec<String>,
    },
    /// An egress filter on an interface with an `ingress` qdisc, which has ingress filters only.
    #[error(
        "cannot attach to the egress side of {interface}: it has an `ingress` qdisc, which has no egress side; replace it with \
         `tc qdisc del dev {interface} ingress && tc qdisc add dev {interface} clsact` (this removes the filters on it)"
    )]
    IngressOnly {
        /// The interface's name.
        interface: String,
    },
    /// Another program's filter is at this priority.
    #[error(
        "cannot put filter {ours} on {interface} {direction} at priority {priority}: {holder} is there already{}",
        removal(*.is_sluice, .interface, *.direction, *.priority)
    )]
    Held {
        /// The interface's name.
        interface: String,
        /// Which side of the interface.
        direction: Direction,
        /// The requested priority.
        priority: u16,
        /// The name of our filter.
        ours: String,
        /// The filter at that priority: kind, name, handle and protocol.
        holder: String,
        /// Whether that filter is another instance's of Sluice, which is not to be removed by hand.
        is_sluice: bool,
    },
    /// A route lookup with a source address that this host does not have.
    #[error(
        "cannot look up the route to {destination} from {from}: {from} is not an address of this host; add it or correct the underlay address"
    )]
    SourceNotLocal {
        /// The destination.
        destination: std::net::IpAddr,
        /// The missing source address.
        from: std::net::IpAddr,
    },
    /// A prefix length above the address length.
    #[error("{address}/{prefix_len} is not a prefix: the length of {address} is at most {}", if .address.is_ipv4() { 32 } else { 128 })]
    PrefixLength {
        /// The address.
        address: std::net::IpAddr,
        /// The length.
        prefix_len: u8,
    },
}

/// The remedy for a filter in the way, as the end of a message.
fn removal(is_sluice: bool, interface: &str, direction: Direction, priority: u16) -> String {
    match is_sluice {
        true => String::new(),
        false => format!(
            "; remove that filter with `tc filter del dev {interface} {direction} pref {priority}`"
        ),
    }
}

impl Error {
    /// The kernel's error number, when the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Connect(source) => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the request certainly changed nothing. Without an answer it may have.
    pub fn changed_nothing(&self) -> bool {
        !matches!(self, Self::Closed { .. } | Self::NoAnswer { .. })
    }
}

fn detail_text(detail: &Option<String>) -> String {
    detail.as_ref().map(|text| format!(" ({})", text.trim_end_matches('.'))).unwrap_or_default()
}

/// The remedy for an error number.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; run as root, or with CAP_NET_ADMIN",
        Some(libc::EACCES) => {
            "; the host forbids it: look at the address family's disable_ipv6 sysctls and at the routes"
        }
        Some(libc::ENODEV | libc::ENXIO) => "; the interface is gone",
        Some(libc::EOPNOTSUPP) => "; this kernel lacks the feature",
        Some(libc::ENOENT) => "; it does not exist, or the kernel lacks the module for it",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_request_the_reason_and_the_remedy() {
        let error = Error::Refused {
            doing: "add 192.0.2.1/32 to lo".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
            detail: Some("Not allowed.".into()),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("cannot add 192.0.2.1/32 to lo: Operation not permitted"),
            "{text}"
        );
        assert!(text.ends_with("(Not allowed); run as root, or with CAP_NET_ADMIN"), "{text}");
    }
}

//! VIPs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::address;
use super::syntax::TextSyntax;

/// A transport protocol that Sluice balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The protocol's number in the IP header (IANA's "Protocol Numbers").
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A VIP: VIP address, port and protocol, written as `203.0.113.10:443/tcp` or
/// `[2001:db8::10]:443/udp`.
///
/// The address is a routable unicast address, or a prefix of such addresses as in
/// `203.0.113.0/24:443/tcp`. Port 0 is any port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    prefix: IpNet,
    port: u16,
    protocol: Protocol,
}

impl Vip {
    /// `port` is in host byte order, 0 for any port.
    ///
    /// # Errors
    ///
    /// [`VipError`] when the prefix has bits beyond its length, or when its first or last address
    /// is not a routable unicast address.
    pub fn new(prefix: impl Into<IpNet>, port: u16, protocol: Protocol) -> Result<Self, VipError> {
        let prefix = prefix.into();
        if prefix.trunc() != prefix {
            return Err(VipError::Bits { prefix, right: prefix.trunc() });
        }
        for address in [prefix.network(), prefix.broadcast()] {
            if let Some(kind) = address::unusable(address) {
                return Err(VipError::Address { address, kind });
            }
        }
        Ok(Self { prefix, port, protocol })
    }

    /// The VIP address or prefix. A single address is a prefix of full length.
    #[must_use]
    pub const fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The VIP address, or the first address of the prefix.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.prefix.addr()
    }

    /// Whether the VIP has more than one address.
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        self.prefix.prefix_len() < self.prefix.max_prefix_len()
    }

    /// The port in host byte order, 0 for any port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The transport protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, protocol, .. } = self;
        let length = self.prefix.prefix_len();
        match (self.address(), self.is_prefix()) {
            (IpAddr::V4(address), false) => write!(f, "{address}:{port}/{protocol}"),
            (IpAddr::V6(address), false) => write!(f, "[{address}]:{port}/{protocol}"),
            (IpAddr::V4(address), true) => write!(f, "{address}/{length}:{port}/{protocol}"),
            (IpAddr::V6(address), true) => write!(f, "[{address}/{length}]:{port}/{protocol}"),
        }
    }
}

/// The reason why a text or its parts are not a [`Vip`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipError {
    /// The text has another form.
    #[error(
        "{0:?} is not a VIP; write it as \"203.0.113.10:443/tcp\" or \"[2001:db8::10]:443/udp\""
    )]
    Form(String),
    /// The protocol is not balanced.
    #[error(
        "{0:?} is not a protocol that Sluice balances; write \"tcp\" or \"udp\" after the slash"
    )]
    Protocol(String),
    /// The address cannot be a VIP address.
    #[error(
        "{address} is {kind}, which cannot be a VIP address; use a unicast address that is routed to the balancers"
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// The kind of address, with its article.
        kind: &'static str,
    },
    /// The prefix has bits beyond its length.
    #[error("{prefix} has bits beyond its length; write {right}")]
    Bits {
        /// The prefix as written.
        prefix: IpNet,
        /// The prefix without these bits.
        right: IpNet,
    },
}

impl FromStr for Vip {
    type Err = VipError;

    fn from_str(text: &str) -> Result<Self, VipError> {
        let form = || VipError::Form(text.to_owned());
        let (socket, protocol) = text.rsplit_once('/').ok_or_else(form)?;
        let (address, port) = socket.rsplit_once(':').ok_or_else(form)?;
        let prefix = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6
                .parse()
                .map(IpNet::V6)
                .ok()
                .or_else(|| v6.parse().map(|v6: Ipv6Addr| IpAddr::V6(v6).into()).ok()),
            None => address
                .parse()
                .map(IpNet::V4)
                .ok()
                .or_else(|| address.parse().map(|v4: Ipv4Addr| IpAddr::V4(v4).into()).ok()),
        }
        .ok_or_else(form)?;
        // `parse` accepts "+443" and "0443" as well, and one VIP would have several spellings.
        let plain = port.bytes().all(|byte| byte.is_ascii_digit())
            && (port == "0" || !port.starts_with('0'));
        let port = port.parse().ok().filter(|_| plain).ok_or_else(form)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(VipError::Protocol(other.to_owned())),
        };
        Self::new(prefix, port, protocol)
    }
}

impl TextSyntax for Vip {
    const EXPECTED: &'static str = "a VIP such as \"203.0.113.10:443/tcp\"";
    const EXAMPLES: &'static [&'static str] =
        &["203.0.113.10:443/tcp", "[2001:db8::10]:443/udp", "203.0.113.0/24:0/tcp"];

    fn message(error: &VipError) -> Option<String> {
        Some(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::syntax::Text;

    fn error(text: &str) -> String {
        text.parse::<Vip>().unwrap_err().to_string()
    }

    #[test]
    fn a_vip_is_displayed_in_canonical_form() {
        let vip: Vip = "[2001:db8:0::10]:53/udp".parse().unwrap();
        assert_eq!(vip.address(), "2001:db8::10".parse::<IpAddr>().unwrap());
        assert_eq!((vip.port(), vip.protocol()), (53, Protocol::Udp));
        assert_eq!(vip.protocol().number(), 17);
        assert_eq!(vip.to_string(), "[2001:db8::10]:53/udp");
    }

    #[test]
    fn a_text_of_another_form_is_refused_with_an_example() {
        for text in [
            "",
            "203.0.113.10",
            "203.0.113.10:443",
            "203.0.113.10/tcp",
            "203.0.113.10:/tcp",
            "203.0.113.10:+443/tcp",
            "203.0.113.10:0443/tcp",
            "203.0.113.10:65536/tcp",
            "[203.0.113.10]:443/tcp",
            "2001:db8::10:443/tcp",
            "[2001:db8::10%2]:443/tcp",
            "www.example.com:443/tcp",
            " 203.0.113.10:443/tcp",
        ] {
            let error = error(text);
            assert!(
                error.contains("is not a VIP") && error.contains("203.0.113.10:443/tcp"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn port_0_is_any_port_and_a_prefix_precedes_the_port() {
        assert_eq!("203.0.113.10:0/tcp".parse::<Vip>().unwrap().port(), 0);
        for text in ["203.0.113.0/24:443/tcp", "[2001:db8:1::/48]:0/udp"] {
            let vip: Vip = text.parse().unwrap();
            assert_eq!((vip.to_string().as_str(), vip.is_prefix()), (text, true));
        }
        // A prefix of full length is the same VIP as the address.
        assert_eq!("203.0.113.10/32:443/tcp".parse::<Vip>(), "203.0.113.10:443/tcp".parse());
        assert!(error("203.0.113.10/24:443/tcp").contains("write 203.0.113.0/24"));
        for text in
            ["0.0.0.0/0:443/tcp", "[::/0]:443/tcp", "224.0.0.0/4:443/tcp", "126.0.0.0/7:443/tcp"]
        {
            assert!(error(text).contains("cannot be a VIP address"), "{text}");
        }
    }

    #[test]
    fn other_protocols_are_refused_with_the_supported_ones() {
        for text in ["203.0.113.10:443/sctp", "203.0.113.10:443/TCP"] {
            assert!(error(text).contains("write \"tcp\" or \"udp\""), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_vip_is_equal_after_text_and_json(
            address in prop_oneof![
                any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
                any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            ],
            length in 0..=128u8,
            port: u16,
            protocol in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
        ) {
            let prefix = IpNet::new(address, length).unwrap_or(address.into()).trunc();
            prop_assume!(address::unusable(prefix.network()).is_none() && address::unusable(prefix.broadcast()).is_none());
            let vip = Vip::new(prefix, port, protocol).unwrap();
            prop_assert_eq!(vip.to_string().parse(), Ok(vip));
            let json = serde_json::to_string(&Text(vip)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Text<Vip>>(&json).unwrap(), Text(vip));
        }

        #[test]
        fn the_parser_never_panics(text in "[\\[\\]:./0-9a-ftcpud%+]{0,40}") {
            if let Ok(vip) = text.parse::<Vip>() {
                prop_assert_eq!(vip.to_string().parse(), Ok(vip));
            }
        }
    }
}

//! An address or a prefix as it is written in a document.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::syntax::TextSyntax;

/// An address, or a prefix without bits beyond its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOrPrefix(pub IpNet);

/// The reason why a text is not an [`AddressOrPrefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// The text has another form.
    Form,
    /// The prefix has bits beyond its length.
    HostBits(IpNet),
}

impl FromStr for AddressOrPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let address = text.parse().map(|address: IpAddr| IpNet::from(address));
        let prefix: IpNet = address.or_else(|_| text.parse()).map_err(|_| PrefixError::Form)?;
        if prefix.trunc() == prefix { Ok(Self(prefix)) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

/// A prefix of full length is written as an address.
impl fmt::Display for AddressOrPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl TextSyntax for AddressOrPrefix {
    const EXPECTED: &'static str =
        "an address such as \"203.0.113.10\" or a prefix such as \"2001:db8:1::/48\"";
    const EXAMPLES: &'static [&'static str] = &["203.0.113.10", "2001:db8:1::/48"];

    fn message(error: &PrefixError) -> Option<String> {
        match error {
            PrefixError::Form => None,
            PrefixError::HostBits(prefix) => {
                Some(format!("{prefix} has bits beyond its length; write {}", prefix.trunc()))
            }
        }
    }
}

impl TextSyntax for Ipv4Net {
    const EXPECTED: &'static str = "an IPv4 prefix such as \"10.0.9.0/24\"";
    const EXAMPLES: &'static [&'static str] = &["10.0.9.0/24"];
}

impl TextSyntax for Ipv6Net {
    const EXPECTED: &'static str = "an IPv6 prefix such as \"2001:db8:9::/64\"";
    const EXAMPLES: &'static [&'static str] = &["2001:db8:9::/64"];
}

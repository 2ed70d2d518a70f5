//! What becomes of packets to a VIP address that no VIP takes.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{self, Unexpected};
use serde::{Deserialize, Deserializer};

use super::{Service, Vip};

/// What becomes of pings to a VIP address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ping {
    /// The balancer answers them.
    #[default]
    Answer,
    /// They go to a backend: of those of the service that has the address's lowest port, TCP before
    /// UDP, the one that the hash of source and destination selects.
    Forward,
    /// They go on to the host.
    Host,
}

/// What becomes of TCP and UDP to a port of a VIP address that no service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlisted {
    /// It goes on to the host.
    #[default]
    Pass,
    /// It is dropped.
    Drop,
}

/// What becomes of packets to a VIP address, or to a prefix of them, that no VIP takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPolicy {
    pub(super) prefix: IpNet,
    pub(super) ping: Ping,
    pub(super) unlisted: Unlisted,
    pub(super) force: bool,
}

impl AddressPolicy {
    /// The VIP address, or the prefix, exactly as at least one VIP has it.
    #[must_use]
    pub const fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// What becomes of pings.
    #[must_use]
    pub const fn ping(&self) -> Ping {
        self.ping
    }

    /// What becomes of unlisted ports.
    #[must_use]
    pub const fn unlisted(&self) -> Unlisted {
        self.unlisted
    }

    /// Whether unlisted ports may be dropped although the host itself has the address.
    #[must_use]
    pub const fn force(&self) -> bool {
        self.force
    }
}

/// An address policy as it was typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Typed {
    #[serde(deserialize_with = "prefix")]
    pub(super) address: IpNet,
    #[serde(default, deserialize_with = "word")]
    ping: Ping,
    #[serde(default, deserialize_with = "word")]
    unlisted: Unlisted,
    #[serde(default)]
    force: bool,
}

impl super::document::Example for Typed {
    const EXAMPLE: &'static str =
        "an object such as { \"address\": \"203.0.113.10\", \"ping\": \"host\" }";
}

impl Typed {
    /// What was meant, if a VIP has the address; else the problem.
    pub(super) fn meant(&self, services: &[Service]) -> Result<AddressPolicy, String> {
        let Self { address: prefix, ping, unlisted, force } = *self;
        if !services.iter().flat_map(Service::vips).map(Vip::prefix).any(|has| has == prefix) {
            let written = if prefix.prefix_len() == prefix.max_prefix_len() {
                prefix.addr().to_string()
            } else {
                prefix.to_string()
            };
            return Err(format!(
                "no VIP has the address {written}; write an address or prefix as it stands in a service's \"vips\""
            ));
        }
        Ok(AddressPolicy { prefix, ping, unlisted, force })
    }
}

/// One of a few words. Derived enums would call `true` "not JSON".
trait Word: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

impl Word for Ping {
    const WORDS: &'static [(&'static str, Self)] =
        &[("answer", Self::Answer), ("forward", Self::Forward), ("host", Self::Host)];
}

impl Word for Unlisted {
    const WORDS: &'static [(&'static str, Self)] = &[("pass", Self::Pass), ("drop", Self::Drop)];
}

fn word<'de, D: Deserializer<'de>, T: Word>(deserializer: D) -> Result<T, D::Error> {
    struct Visitor<T>(PhantomData<T>);

    impl<T: Word> de::Visitor<'_> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let words: Vec<_> = T::WORDS.iter().map(|(word, _)| format!("{word:?}")).collect();
            write!(f, "one of {}", words.join(", "))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            let found = T::WORDS.iter().find(|(word, _)| *word == text);
            found
                .map(|(_, value)| *value)
                .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Visitor(PhantomData))
}

/// An address, or a prefix without bits behind its length.
pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = IpNet;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "an address such as \"203.0.113.10\" or a prefix such as \"2001:db8:1::/48\"",
            )
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<IpNet, E> {
            let address = text.parse().map(|address: IpAddr| IpNet::from(address));
            let prefix: IpNet = address
                .or_else(|_| text.parse())
                .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
            if prefix.trunc() == prefix {
                Ok(prefix)
            } else {
                Err(E::custom(format!(
                    "{prefix} has bits behind its {} that count; write {}",
                    prefix.prefix_len(),
                    prefix.trunc()
                )))
            }
        }
    }

    deserializer.deserialize_str(Visitor)
}

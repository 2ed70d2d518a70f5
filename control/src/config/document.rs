//! What was typed: the JSON document as serde reads it. Types and ranges of single values are
//! checked here, everything that needs two values in `meaning`.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Unexpected};
use serde::{Deserialize, de::IgnoredAny};
use sluice_maglev::TableSize;

use super::vip::Vip;
use super::{Encapsulation, Hash, TooBig, Tracking, limits};

/// The only `version` there is.
pub(super) const VERSION: u64 = 1;

/// The document's version alone, read before the rest: fields that another version has are not
/// "unknown".
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) version: Option<serde_json::Value>,
}

/// The whole document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    // Read, and judged, as part of `Header`.
    #[serde(rename = "version")]
    _version: IgnoredAny,
    pub(super) instance: Option<String>,
    pub(super) interfaces: Vec<String>,
    pub(super) underlay: Object<Underlay>,
    #[serde(default = "yes")]
    pub(super) clamp_mss: bool,
    pub(super) hash_key_file: PathBuf,
    pub(super) limits: Option<Object<Limits>>,
    pub(super) deny_file: Option<PathBuf>,
    pub(super) allow_file: Option<PathBuf>,
    pub(super) backends: Vec<Object<Backend>>,
    pub(super) services: Vec<Object<Service>>,
    #[serde(default)]
    pub(super) addresses: Vec<Object<super::policy::Typed>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Underlay {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    pub(super) gue_port: Option<Whole<1, { u16::MAX as u32 }>>,
    pub(super) mtu: Option<Whole<{ limits::MIN_MTU }, { limits::MAX_MTU }>>,
    #[serde(default, deserialize_with = "v4_prefix")]
    pub(super) v4_sources: Option<Ipv4Net>,
    #[serde(default, deserialize_with = "v6_prefix")]
    pub(super) v6_sources: Option<Ipv6Net>,
}

fn v4_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv4Net>, D::Error> {
    prefix(deserializer, "an IPv4 prefix such as \"10.0.9.0/24\"")
}

fn v6_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv6Net>, D::Error> {
    prefix(deserializer, "an IPv6 prefix such as \"2001:db8:9::/64\"")
}

fn prefix<'de, D: Deserializer<'de>, N: FromStr>(
    deserializer: D,
    example: &'static str,
) -> Result<Option<N>, D::Error> {
    let typed = String::deserialize(deserializer)?;
    typed.parse().map(Some).map_err(|_| de::Error::invalid_value(Unexpected::Str(&typed), &example))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) services: Option<Whole<1, { limits::MAX_SERVICES }>>,
    pub(super) backends: Option<Whole<1, { limits::MAX_BACKENDS }>>,
    pub(super) vips: Option<Whole<1, { limits::MAX_VIPS }>>,
    pub(super) connections: Option<Whole<{ limits::MIN_CONNECTIONS }, { limits::MAX_CONNECTIONS }>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) address: Address,
    #[serde(default)]
    pub(super) draining: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) vips: Vec<Vip>,
    #[serde(default, deserialize_with = "table_size")]
    pub(super) table_size: TableSize,
    #[serde(default)]
    pub(super) tracking: Tracking,
    #[serde(default)]
    pub(super) hash: Hash,
    #[serde(default)]
    pub(super) encapsulation: Encapsulation,
    pub(super) udp_zero_checksum: Option<bool>,
    pub(super) rate: Option<Object<Rates>>,
    #[serde(default)]
    pub(super) too_big: TooBig,
    #[serde(default)]
    pub(super) routes: Vec<Object<super::routes::Typed>>,
    #[serde(default)]
    pub(super) quic: Vec<Object<super::quic::Typed>>,
    pub(super) deny_file: Option<PathBuf>,
    pub(super) allow_file: Option<PathBuf>,
    pub(super) backends: Vec<Object<ServiceBackend>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rates {
    pub(super) packets: Option<Rate>,
    pub(super) new_flows: Option<Rate>,
    pub(super) source_packets: Option<Rate>,
    pub(super) source_new_flows: Option<Rate>,
}

/// A rate: tokens a second, and in a full bucket.
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceBackend {
    pub(super) name: String,
    pub(super) weight: Option<Whole<0, { limits::MAX_WEIGHT }>>,
}

/// A backend's address: one, or one of each family.
pub(super) struct Address {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

/// What an object must look like, for errors.
pub(super) trait Example {
    const EXAMPLE: &'static str;
}

impl Example for Header {
    const EXAMPLE: &'static str = "an object: { \"version\": 1, ... }";
}
impl Example for Document {
    const EXAMPLE: &'static str = Header::EXAMPLE;
}
impl Example for Underlay {
    const EXAMPLE: &'static str =
        "an object such as { \"v4\": \"192.0.2.1\", \"v6\": \"2001:db8::1\" }";
}
impl Example for Limits {
    const EXAMPLE: &'static str = "an object such as { \"connections\": 65536 }";
}
impl Example for Backend {
    const EXAMPLE: &'static str =
        "an object such as { \"name\": \"web-1\", \"address\": \"10.0.1.11\" }";
}
impl Example for Service {
    const EXAMPLE: &'static str =
        "an object such as { \"name\": \"web\", \"vips\": [...], \"backends\": [...] }";
}
impl Example for Rates {
    const EXAMPLE: &'static str = "an object such as { \"source_new_flows\": 50 }";
}
impl Example for ServiceBackend {
    const EXAMPLE: &'static str = "an object such as { \"name\": \"web-1\", \"weight\": 100 }";
}

/// A `T` written as a JSON object. Derived structs would take an array of the fields' values, too.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de> + Example> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Example> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXAMPLE)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy)]
pub(super) struct Whole<const MIN: u32, const MAX: u32>(pub(super) u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> de::Visitor<'_> for Visitor<MIN, MAX> {
            type Value = Whole<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                u32::try_from(number)
                    .ok()
                    .filter(|number| (MIN..=MAX).contains(number))
                    .map(Whole)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_u64(Visitor)
    }
}

/// What counts of a switch that is not written.
const fn yes() -> bool {
    true
}

fn table_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TableSize, D::Error> {
    let Whole(slots) = Whole::<0, { u32::MAX }>::deserialize(deserializer)?;
    TableSize::new(slots).map_err(de::Error::custom)
}

impl<'de> Deserialize<'de> for Tracking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Tracking;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"always\" or \"never\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Tracking, E> {
                match text {
                    "always" => Ok(Tracking::Always),
                    "never" => Ok(Tracking::Never),
                    "transitions" => Err(E::custom(
                        "tracking \"transitions\" is not supported; write \"always\" to keep flows in place while backends change, or \"never\"",
                    )),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Hash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"flow\", \"client\" or \"source\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hash, E> {
                match text {
                    "flow" => Ok(Hash::Flow),
                    "client" => Ok(Hash::Client),
                    "source" => Ok(Hash::Source),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// What is said beside is not known here.
impl<'de> Deserialize<'de> for Encapsulation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Encapsulation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"ipip\" or \"gue\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Encapsulation, E> {
                match text {
                    "ipip" => Ok(Encapsulation::Ipip),
                    "gue" => Ok(Encapsulation::Gue { zero_checksum: false }),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The object form.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            v4: Option<Ipv4Addr>,
            v6: Option<Ipv6Addr>,
        }

        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an IP address such as \"10.0.1.11\", or { \"v4\": \"10.0.1.11\", \"v6\": \"2001:db8:1::11\" } for a backend with both",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Address, E> {
                match text.parse() {
                    Ok(IpAddr::V4(v4)) => Ok(Address { v4: Some(v4), v6: None }),
                    Ok(IpAddr::V6(v6)) => Ok(Address { v4: None, v6: Some(v6) }),
                    Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Address, A::Error> {
                match Both::deserialize(MapAccessDeserializer::new(map))? {
                    Both { v4: None, v6: None } => Err(de::Error::custom(
                        "no address; write \"v4\", \"v6\" or both, such as { \"v4\": \"10.0.1.11\" }",
                    )),
                    Both { v4, v6 } => Ok(Address { v4, v6 }),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type PerSecond = Whole<1, { limits::MAX_RATE }>;

        /// The object form.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Both {
            per_second: PerSecond,
            burst: Whole<1, { limits::MAX_BURST }>,
        }

        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "a whole number a second, from 1 to {}, or {{ \"per_second\": 50, \"burst\": 200 }}",
                    limits::MAX_RATE
                )
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Rate, E> {
                let rate =
                    u32::try_from(number).ok().filter(|rate| (1..=limits::MAX_RATE).contains(rate));
                let rate =
                    rate.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))?;
                Ok(Rate { per_second: rate, burst: rate })
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Rate, E> {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rate, A::Error> {
                let both = Both::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Rate { per_second: both.per_second.0, burst: both.burst.0 })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

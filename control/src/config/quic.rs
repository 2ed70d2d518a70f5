//! QUIC server IDs: which connection IDs name which backend (QUIC-LB,
//! draft-ietf-quic-load-balancers).

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, de};
use sluice_datapath::quic::IdLengths;

use super::document::{Example, Object, Whole};
use super::validate::{Problem, Seen, at};
use super::{Limits, Service, ServiceBackend, limits, names};

/// The largest number of a configuration: the next one says that a connection ID names nobody.
const MAX_ROTATION: u32 = IdLengths::ROTATIONS as u32 - 1;
/// The most octets of a server ID.
const MAX_LENGTH: u32 = IdLengths::MOST as u32;

/// A configuration of plaintext connection IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicConfig {
    rotation: u8,
    servers: Vec<(Vec<u8>, usize)>,
}

impl QuicConfig {
    /// Its server IDs: the number that connection IDs of this configuration begin with, 0 to 6; the
    /// ID, 1 to 15 octets, as many in all of them; and the index in [`super::Config::backends`] of
    /// the backend that has it.
    pub fn server_ids(&self) -> impl Iterator<Item = (u8, Vec<u8>, usize)> {
        self.servers.iter().map(|(id, backend)| (self.rotation, id.clone(), *backend))
    }
}

/// A configuration as it was typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Typed {
    rotation: Whole<0, MAX_ROTATION>,
    server_id_length: Whole<1, MAX_LENGTH>,
    server_ids: Vec<Object<ServerId>>,
}

/// A server ID as it was typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerId {
    backend: String,
    id: Octets,
}

impl Example for Typed {
    const EXAMPLE: &'static str = "an object such as { \"rotation\": 0, \"server_id_length\": 3, \"server_ids\": [{ \"backend\": \"web-1\", \"id\": \"c4605e\" }] }";
}
impl Example for ServerId {
    const EXAMPLE: &'static str =
        "an object such as { \"backend\": \"web-1\", \"id\": \"c4605e\" }";
}

/// Octets, two hexadecimal digits each.
struct Octets(Vec<u8>);

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let typed = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            typed.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let octets = digits
            .filter(|digits| digits.len().is_multiple_of(2))
            .map(|digits| digits.chunks_exact(2).map(|two| two[0] << 4 | two[1]).collect());
        octets.map(Self).ok_or_else(|| {
            let expected = "two hexadecimal digits for each octet, such as \"c4605e\"";
            de::Error::invalid_value(de::Unexpected::Str(&typed), &expected)
        })
    }
}

/// The configurations of the service at `place`, whose backends are `members`.
pub(super) fn meant(
    typed: &[Object<Typed>],
    place: &str,
    members: &[ServiceBackend],
    by_name: &HashMap<&str, usize>,
) -> Result<Vec<QuicConfig>, Problem> {
    let mut rotations = Seen::new();
    let mut configs = Vec::with_capacity(typed.len());
    for (index, Object(typed)) in typed.iter().enumerate() {
        let place = format!("{place}.quic[{index}]");
        let rotation = typed.rotation.0;
        rotations.first_time(rotation, format!("{place}.rotation"), |rotation| {
            format!("rotation {rotation}")
        })?;
        if typed.server_ids.is_empty() {
            let problem =
                "empty; give a server ID to at least one backend, or remove the configuration";
            return Err(at(&format!("{place}.server_ids"))(problem.to_owned()));
        }
        let mut ids = Seen::new();
        let mut servers = Vec::with_capacity(typed.server_ids.len());
        for (number, Object(ServerId { backend: name, id: Octets(id) })) in
            typed.server_ids.iter().enumerate()
        {
            let place = format!("{place}.server_ids[{number}]");
            let member = by_name
                .get(name.as_str())
                .filter(|index| members.iter().any(|m| m.backend == **index));
            let Some(&backend) = member else {
                let known = by_name
                    .iter()
                    .filter(|(_, index)| members.iter().any(|m| m.backend == **index));
                let remedy = match names::closest(name, known.map(|(known, _)| *known)) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "list it among the service's \"backends\", with a weight of 0 if it is to get nothing else"
                        .to_owned(),
                };
                return Err(at(&format!("{place}.backend"))(format!(
                    "the service has no backend {name:?}; {remedy}"
                )));
            };
            let length = typed.server_id_length.0;
            if id.len() != length as usize {
                return Err(at(&format!("{place}.id"))(format!(
                    "{} octets, and server_id_length is {length}; all server IDs of a configuration have that length",
                    id.len()
                )));
            }
            ids.first_time(id.clone(), format!("{place}.id"), |_| "the server ID".to_owned())?;
            servers.push((id.clone(), backend));
        }
        configs.push(QuicConfig { rotation: rotation as u8, servers });
    }
    Ok(configs)
}

/// Refuses more server IDs than the map has room for.
pub(super) fn check_limit(services: &[Service], limits: Limits) -> Result<(), Problem> {
    let count = services
        .iter()
        .flat_map(|service| &service.quic)
        .map(|config| config.servers.len())
        .sum::<usize>();
    if count <= limits.backends as usize {
        return Ok(());
    }
    Err(at("services")(format!(
        "{count} QUIC server IDs are more than limits.backends, {}, which counts them, too; raise it (to at most {}) or remove some",
        limits.backends,
        limits::MAX_BACKENDS
    )))
}

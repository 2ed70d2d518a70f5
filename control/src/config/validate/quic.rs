//! Checks `services[].quic`.

use std::collections::HashMap;

use crate::capacities::Capacities;
use crate::config::document::{HexOctets, RawQuicConfig, RawServerId};
use crate::config::model::{QuicConfig, ServiceBackend, ServiceConfig};
use crate::config::problem::{Problem, Unique};
use crate::config::syntax::{JsonObject, Text};
use crate::config::{limits, names};

/// Checks the QUIC-LB configurations of the service at `location` with the backends `members`.
pub(super) fn validate(
    raw: &[JsonObject<RawQuicConfig>],
    location: &str,
    members: &[ServiceBackend],
    by_name: &HashMap<&str, usize>,
) -> Result<Vec<QuicConfig>, Problem> {
    let mut rotations = Unique::new();
    let mut configs = Vec::with_capacity(raw.len());
    for (index, JsonObject(raw)) in raw.iter().enumerate() {
        let location = format!("{location}.quic[{index}]");
        let rotation = raw.rotation.0;
        rotations.insert(rotation, format!("{location}.rotation"), |rotation| {
            format!("rotation {rotation}")
        })?;
        if raw.server_ids.is_empty() {
            return Err(Problem::new(
                format!("{location}.server_ids"),
                "empty; give a server ID to at least one backend, or remove the configuration",
            ));
        }
        let mut ids = Unique::new();
        let mut servers = Vec::with_capacity(raw.server_ids.len());
        for (number, JsonObject(RawServerId { backend, id })) in raw.server_ids.iter().enumerate() {
            let location = format!("{location}.server_ids[{number}]");
            let backend = member(backend, members, by_name)
                .map_err(|message| Problem::new(format!("{location}.backend"), message))?;
            let Text(HexOctets(id)) = id;
            let length = raw.server_id_length.0;
            if id.len() != length as usize {
                return Err(Problem::new(
                    format!("{location}.id"),
                    format!(
                        "{} octets, and server_id_length is {length}; all server IDs of a configuration have that length",
                        id.len()
                    ),
                ));
            }
            ids.insert(id.clone(), format!("{location}.id"), |_| "the server ID".to_owned())?;
            servers.push((id.clone(), backend));
        }
        configs.push(QuicConfig { rotation: rotation as u8, servers });
    }
    Ok(configs)
}

/// The index of the service's backend with the name `name`.
fn member(
    name: &str,
    members: &[ServiceBackend],
    by_name: &HashMap<&str, usize>,
) -> Result<usize, String> {
    let is_member = |index: usize| members.iter().any(|member| member.backend == index);
    if let Some(&index) = by_name.get(name)
        && is_member(index)
    {
        return Ok(index);
    }
    let known = by_name.iter().filter(|(_, index)| is_member(**index)).map(|(known, _)| *known);
    let remedy = match names::closest(name, known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "list it among the service's \"backends\", with a weight of 0 if it is to take no other packets"
            .to_owned(),
    };
    Err(format!("the service has no backend {name:?}; {remedy}"))
}

/// Refuses more server IDs than the map is sized for.
pub(super) fn check_server_id_count(
    services: &[ServiceConfig],
    capacities: Capacities,
) -> Result<(), Problem> {
    let configs = services.iter().flat_map(|service| &service.quic);
    let count: usize = configs.map(|config| config.servers.len()).sum();
    if count <= capacities.backends as usize {
        return Ok(());
    }
    Err(Problem::new(
        "services",
        format!(
            "{count} QUIC server IDs are more than limits.backends, {}, which also limits server IDs; raise it (to at most {}) or remove some",
            capacities.backends,
            limits::MAX_BACKENDS
        ),
    ))
}

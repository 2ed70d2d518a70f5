//! The configuration files the lab generates, and the changes it makes to them.

use super::lab::Scale;
use super::topology::{
    DRAINED, ECHO, ECHO_PORT, Family, Host, INSTANCE, INTERFACE, JOINING, Role, UNDERLAY_MTU, WEB,
    WEB_PORT, backends, balancers, joining_is_v4_only,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What becomes of packets that do not fit the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooBig {
    /// Their senders are told.
    #[default]
    Reject,
    /// Merged ones are cut smaller.
    Resegment,
    /// There are none: the underlay is said to be large enough.
    Jumbo,
}

impl TooBig {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Reject, Self::Resegment, Self::Jumbo];

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Resegment => "resegment",
            Self::Jumbo => "jumbo",
        }
    }
}

/// Which backends the services have, which of them is draining, how packets travel and what becomes
/// of those that do not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether [`JOINING`] belongs to the services.
    pub joined: bool,
    /// Whether [`DRAINED`] takes no new flows.
    pub drained: bool,
    /// What becomes of packets that do not fit.
    pub too_big: TooBig,
    /// Whether packets travel in UDP, merged ones without a checksum.
    pub in_udp: bool,
    /// Whether QUIC connection IDs of [`ROTATION`] name backends of the service [`ECHO`]: a server
    /// ID is the backend's name.
    pub server_ids: bool,
}

/// The rotation of connection IDs that name backends: their first octet is a letter.
pub const ROTATION: u8 = 2;

/// The VIP address of a service that nobody asks for anything.
const UNUSED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

impl Wanted {
    /// The backends of the services, draining ones among them.
    pub fn listed(self) -> impl Iterator<Item = &'static Host> {
        backends().filter(move |host| self.joined || host.name != JOINING)
    }

    /// Whether the backend takes new flows.
    pub fn takes_new_flows(self, name: &str) -> bool {
        self.listed().any(|host| host.name == name) && !(self.drained && name == DRAINED)
    }

    /// The share of new flows that a backend is due by its weight, 0 to 1.
    pub fn share(self, name: &str) -> f64 {
        let weight = |host: &Host| if self.takes_new_flows(host.name) { host.weight() } else { 0 };
        let total: u32 = self.listed().map(weight).sum();
        let own: u32 = self.listed().filter(|host| host.name == name).map(weight).sum();
        f64::from(own) / f64::from(total)
    }

    /// Bytes of the outer header, that of UDP included.
    pub fn outer(self, family: Family) -> usize {
        let outer = match family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        outer + if self.in_udp { 8 } else { 0 }
    }

    /// The configuration for one host. Backends read the same file as the first balancer.
    pub fn configuration(self, host: &Host, scale: Scale, key: &Path) -> Value {
        let first = balancers().next();
        let balancer = if host.role == Role::Balancer { Some(host) } else { first };
        let defined: Vec<_> = self
            .listed()
            .map(|host| {
                let v4_only = host.name == JOINING && joining_is_v4_only();
                let address =
                    if v4_only { json!(host.v4) } else { json!({ "v4": host.v4, "v6": host.v6 }) };
                if self.drained && host.name == DRAINED {
                    json!({ "name": host.name, "address": address, "draining": true })
                } else {
                    json!({ "name": host.name, "address": address })
                }
            })
            .collect();
        let members: Vec<_> = self
            .listed()
            .map(|host| json!({ "name": host.name, "weight": host.weight() }))
            .collect();
        let service = |name: &str, port: u16, protocol: &str| {
            let vip =
                |family: Family| format!("{}/{protocol}", SocketAddr::new(family.vip(), port));
            let mut service = json!({
                "name": name,
                "vips": Family::BOTH.map(vip),
                "table_size": scale.table_size,
                // Connections must stay where they are while the tables change.
                "tracking": "always",
                "too_big": self.too_big.name(),
                "backends": members,
            });
            if self.in_udp {
                service["encapsulation"] = json!("gue");
                service["udp_zero_checksum"] = json!(true);
            }
            if self.server_ids && name == ECHO {
                service["quic"] = self.quic();
            }
            service
        };
        let mut services = vec![service(WEB, WEB_PORT, "tcp"), service(ECHO, ECHO_PORT, "udp")];
        if scale.every_feature && host.role == Role::Balancer {
            services.push(json!({
                "name": "unused",
                "vips": [format!("{UNUSED}:{WEB_PORT}/udp")],
                "table_size": scale.table_size,
                "tracking": "always",
                "too_big": TooBig::Resegment.name(),
                "encapsulation": "gue",
                "quic": self.quic(),
                "backends": members,
            }));
        }
        let underlay = balancer.map(|lb| {
            let mut underlay = json!({ "v4": lb.v4, "v6": lb.v6 });
            if self.too_big == TooBig::Jumbo {
                underlay["mtu"] = json!(UNDERLAY_MTU);
            }
            underlay
        });
        json!({
            "version": 1,
            "instance": INSTANCE,
            "interfaces": [INTERFACE],
            "underlay": underlay,
            "hash_key_file": key,
            "backends": defined,
            "services": services,
        })
    }

    /// The connection IDs that name backends: a server ID is the backend's name.
    fn quic(self) -> Value {
        let id =
            |host: &Host| host.name.bytes().map(|octet| format!("{octet:02x}")).collect::<String>();
        let ids: Vec<_> =
            self.listed().map(|host| json!({ "backend": host.name, "id": id(host) })).collect();
        let length = self.listed().map(|host| host.name.len()).max();
        json!([{ "rotation": ROTATION, "server_id_length": length, "server_ids": ids }])
    }

    /// Writes every host's file, each replaced at once so that no reader sees half of it.
    pub fn write(self, directory: &Path, scale: Scale) -> Result<()> {
        for host in balancers().chain(backends()) {
            let value = self.configuration(host, scale, &key_file(directory));
            let path = file(directory, host);
            let text = serde_json::to_string_pretty(&value)? + "\n";
            let beside = path.with_extension("new");
            std::fs::write(&beside, text)
                .with_context(|| format!("cannot write {}", beside.display()))?;
            std::fs::rename(&beside, &path)
                .with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Ok(())
    }
}

/// Where a host's configuration lies.
pub fn file(directory: &Path, host: &Host) -> PathBuf {
    directory.join(format!("{}.json", host.name))
}

/// Where the fleet's hash key lies.
pub fn key_file(directory: &Path) -> PathBuf {
    directory.join("hash.key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::host;

    #[test]
    fn shares_follow_the_weights_and_add_up_to_one() {
        let start = Wanted::default();
        assert_eq!(start.share("web-1"), 0.5);
        assert_eq!(start.share(JOINING), 0.0);
        let end = Wanted { joined: true, drained: true, ..start };
        assert_eq!(end.share("web-1"), 0.5);
        assert_eq!((end.share(JOINING), end.share(DRAINED)), (0.25, 0.0));
        for wanted in [start, end, Wanted { joined: true, ..start }] {
            let total: f64 = backends().map(|host| wanted.share(host.name)).sum();
            assert!((total - 1.0).abs() < 1e-12, "{wanted:?}");
        }
    }

    #[test]
    fn balancers_differ_in_their_underlay_only() {
        let key = Path::new("/etc/sluice/hash.key");
        let wanted = Wanted { joined: true, drained: true, ..Wanted::default() };
        let mut first = wanted.configuration(host("lb1").unwrap(), Scale::FULL, key);
        let second = wanted.configuration(host("lb2").unwrap(), Scale::FULL, key);
        assert_ne!(first, second);
        first["underlay"] = second["underlay"].clone();
        assert_eq!(first, second);
        assert_eq!(
            second["services"][1]["vips"],
            json!(["203.0.113.10:7/udp", "[2001:db8:ff::10]:7/udp"])
        );
        assert_eq!(second["backends"][1]["draining"], json!(true));
    }

    #[test]
    fn on_slow_machines_balancers_have_a_service_with_every_feature_that_steps_switch() {
        let named = |host_name, scale| {
            let value = Wanted::default().configuration(
                host(host_name).unwrap(),
                scale,
                Path::new("/etc/hash.key"),
            );
            value["services"]
                .as_array()
                .unwrap()
                .iter()
                .map(|service| service["name"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(named("lb1", Scale::SMALL), [WEB, ECHO, "unused"]);
        assert_eq!(named("lb1", Scale::FULL), [WEB, ECHO]);
        assert_eq!(named("web-1", Scale::SMALL), [WEB, ECHO]);
    }
}

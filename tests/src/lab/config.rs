//! The configuration files that the lab generates, and the changes that scenarios make to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::scale::Scale;
use super::topology::{
    ECHO_PORT, HostRole, INTERFACE, IpVersion, LabHost, Topology, UNDERLAY_MTU, WEB_PORT,
};

/// Instance name of every `sluice` in the lab.
pub const INSTANCE: &str = "edge";
/// Name of the HTTP service.
pub const WEB: &str = "web";
/// Name of the UDP echo service.
pub const ECHO: &str = "echo";
/// The backend that is added to the services while connections are open.
pub const ADDED: &str = "web-5";
/// The backend that is drained while connections are open.
pub const DRAINED: &str = "web-2";
/// The config rotation (draft-ietf-quic-load-balancers) of the generated QUIC connection IDs. With
/// it their first octet is a letter.
pub const ROTATION: u8 = 2;

/// The VIP address of a service without traffic.
const UNUSED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

/// A service's `too_big`: the handling of packets that exceed the underlay MTU once encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OversizePolicy {
    /// The packet is dropped and its sender gets an ICMP error.
    #[default]
    Reject,
    /// GSO packets are cut into smaller segments.
    Resegment,
    /// The configured underlay MTU is large enough for every packet.
    Jumbo,
}

impl OversizePolicy {
    /// All policies.
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

/// The variable parts of the lab's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabConfig {
    /// Whether [`ADDED`] is a backend of the services.
    pub added: bool,
    /// Whether [`DRAINED`] is draining.
    pub drained: bool,
    /// `too_big` of the services.
    pub oversize: OversizePolicy,
    /// Whether packets are encapsulated in GUE, GSO packets without an outer UDP checksum.
    pub gue: bool,
    /// Whether the service [`ECHO`] routes by QUIC connection ID. A server ID is the backend's
    /// name.
    pub quic: bool,
}

impl LabConfig {
    /// The backends of the services, draining ones included.
    pub fn members(self, topology: &Topology) -> impl Iterator<Item = &LabHost> {
        topology.backends().iter().filter(move |host| self.added || host.name != ADDED)
    }

    /// Whether a member takes new flows.
    pub fn takes_new_flows(self, host: &LabHost) -> bool {
        (self.added || host.name != ADDED) && !(self.drained && host.name == DRAINED)
    }

    /// The share of new flows that follows from a backend's weight, 0 to 1.
    pub fn share(self, topology: &Topology, host: &LabHost) -> f64 {
        let weight = |host: &LabHost| if self.takes_new_flows(host) { host.weight() } else { 0 };
        let total: u32 = topology.backends().iter().map(weight).sum();
        f64::from(weight(host)) / f64::from(total)
    }

    /// Bytes that encapsulation adds to a packet.
    pub fn overhead(self, version: IpVersion) -> usize {
        let ip = match version {
            IpVersion::V4 => 20,
            IpVersion::V6 => 40,
        };
        ip + if self.gue { 8 } else { 0 }
    }

    /// The configuration of one host. Backends read the same file as the first balancer.
    pub fn document(self, topology: &Topology, host: &LabHost, scale: Scale, key: &Path) -> Value {
        let is_balancer = host.role == HostRole::Balancer;
        let balancer = if is_balancer { Some(host) } else { topology.balancers().first() };
        let backends: Vec<_> = self.members(topology).map(|host| self.backend(host)).collect();
        let members: Vec<_> = self
            .members(topology)
            .map(|host| json!({ "name": host.name, "weight": host.weight() }))
            .collect();
        let service = |name: &str, port: u16, protocol: &str| {
            let vip =
                |version: IpVersion| format!("{}/{protocol}", SocketAddr::new(version.vip(), port));
            let mut service = json!({
                "name": name,
                "vips": IpVersion::BOTH.map(vip),
                "table_size": scale.table_size,
                // Open connections must keep their backend while the tables change.
                "tracking": "always",
                "too_big": self.oversize.name(),
                "backends": members,
            });
            if self.gue {
                service["encapsulation"] = json!("gue");
                service["udp_zero_checksum"] = json!(true);
            }
            if self.quic && name == ECHO {
                service["quic"] = self.quic(topology);
            }
            service
        };
        let mut services = vec![service(WEB, WEB_PORT, "tcp"), service(ECHO, ECHO_PORT, "udp")];
        if scale.preload_features && is_balancer {
            services.push(json!({
                "name": "unused",
                "vips": [format!("{UNUSED}:{WEB_PORT}/udp")],
                "table_size": scale.table_size,
                "tracking": "always",
                "too_big": OversizePolicy::Resegment.name(),
                "encapsulation": "gue",
                "quic": self.quic(topology),
                "backends": members,
            }));
        }
        let underlay = balancer.map(|lb| {
            let mut underlay = json!({ "v4": lb.v4, "v6": lb.v6 });
            if self.oversize == OversizePolicy::Jumbo {
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
            "backends": backends,
            "services": services,
        })
    }

    fn backend(self, host: &LabHost) -> Value {
        let v4_only = host.name == ADDED && added_is_v4_only();
        let address =
            if v4_only { json!(host.v4) } else { json!({ "v4": host.v4, "v6": host.v6 }) };
        let mut backend = json!({ "name": host.name, "address": address });
        if self.drained && host.name == DRAINED {
            backend["draining"] = json!(true);
        }
        backend
    }

    fn quic(self, topology: &Topology) -> Value {
        let id = |name: &str| name.bytes().map(|octet| format!("{octet:02x}")).collect::<String>();
        let ids: Vec<_> = self
            .members(topology)
            .map(|host| json!({ "backend": host.name, "id": id(&host.name) }))
            .collect();
        let length = self.members(topology).map(|host| host.name.len()).max();
        json!([{ "rotation": ROTATION, "server_id_length": length, "server_ids": ids }])
    }

    /// Writes every host's file. A reader sees the old or the new content, never a part.
    pub fn write(self, topology: &Topology, directory: &Path, scale: Scale) -> Result<()> {
        for host in topology.balancers().iter().chain(topology.backends()) {
            let document = self.document(topology, host, scale, &key_file(directory));
            let path = file(directory, host);
            let temporary = path.with_extension("new");
            std::fs::write(&temporary, serde_json::to_string_pretty(&document)? + "\n")
                .with_context(|| format!("cannot write {}", temporary.display()))?;
            std::fs::rename(&temporary, &path)
                .with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Ok(())
    }
}

/// Whether [`ADDED`] has an IPv4 address only, so that IPv6 packets are encapsulated in IPv4. That
/// needs a kernel that can decapsulate across address families, by a tunnel device or by the flags
/// of `bpf_skb_adjust_room` that Sluice's program needs.
pub fn added_is_v4_only() -> bool {
    let device = std::env::var("LAB_DECAPSULATION").is_ok_and(|by| by == "device");
    device || sluice::kernel::bpf::decapsulates_across_families()
}

/// The path of a host's configuration.
pub fn file(directory: &Path, host: &LabHost) -> PathBuf {
    directory.join(format!("{}.json", host.name))
}

/// The path of the hash key, which all balancers share.
pub fn key_file(directory: &Path) -> PathBuf {
    directory.join("hash.key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(config: LabConfig, name: &str) -> f64 {
        let topology = Topology::standard();
        config.share(&topology, topology.host(name).unwrap())
    }

    fn document(config: LabConfig, name: &str, scale: Scale) -> Value {
        let topology = Topology::standard();
        let host = topology.host(name).unwrap();
        config.document(&topology, host, scale, Path::new("/etc/sluice/hash.key"))
    }

    #[test]
    fn shares_follow_the_weights_and_add_up_to_one() {
        let start = LabConfig::default();
        assert_eq!(share(start, "web-1"), 0.5);
        assert_eq!(share(start, ADDED), 0.0);
        let end = LabConfig { added: true, drained: true, ..start };
        assert_eq!(share(end, "web-1"), 0.5);
        assert_eq!((share(end, ADDED), share(end, DRAINED)), (0.25, 0.0));
        let topology = Topology::standard();
        for config in [start, end, LabConfig { added: true, ..start }] {
            let total: f64 =
                topology.backends().iter().map(|host| config.share(&topology, host)).sum();
            assert!((total - 1.0).abs() < 1e-12, "{config:?}");
        }
    }

    #[test]
    fn the_files_of_balancers_differ_only_in_the_underlay() {
        let config = LabConfig { added: true, drained: true, ..LabConfig::default() };
        let mut first = document(config, "lb1", Scale::FULL);
        let second = document(config, "lb2", Scale::FULL);
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
    fn at_small_scale_balancers_have_an_unused_service_with_all_features() {
        let services = |name, scale| {
            let document = document(LabConfig::default(), name, scale);
            let services = document["services"].as_array().unwrap().iter();
            services.map(|service| service["name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(services("lb1", Scale::SMALL), [WEB, ECHO, "unused"]);
        assert_eq!(services("lb1", Scale::FULL), [WEB, ECHO]);
        assert_eq!(services("web-1", Scale::SMALL), [WEB, ECHO]);
    }
}

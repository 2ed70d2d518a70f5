//! The lab's topology: hosts, addresses and the `ip` commands that create their links.
//!
//! Pure functions over plain values; nothing here needs root. Addresses are from the ranges
//! reserved for documentation (RFC 5737, RFC 3849) and for private use (RFC 1918), and exist inside
//! the lab's namespaces only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// MTU of the underlay in bytes: a client's 1500-byte packet with an outer IPv6 header (40 bytes)
/// fits.
pub const UNDERLAY_MTU: u32 = 1600;
/// MTU of the links between clients and router, in bytes.
pub const CLIENT_MTU: u32 = 1500;
/// UDP destination port of GUE (the default of `underlay.gue_port`).
pub const GUE_PORT: u16 = 6080;
/// TCP port of the HTTP service.
pub const WEB_PORT: u16 = 80;
/// UDP port of the echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// The interface that every host except the router has, besides `lo`.
pub const INTERFACE: &str = "eth0";
/// The bridge in the router that connects balancers and backends.
pub const BRIDGE: &str = "br0";
/// The VIP address of the IPv4 services.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The VIP address of the IPv6 services.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10);

/// Prefix length of a client's IPv4 network.
const CLIENT_PREFIX: u8 = 28;
/// Clients that fit the IPv4 documentation network.
const MAX_CLIENTS: u8 = 16;
/// Balancers that fit between the router's address and those of the backends.
const MAX_BALANCERS: u8 = 9;
/// Backends that fit the rest of the IPv4 underlay network.
const MAX_BACKENDS: u8 = 244;

/// An IP version; most scenarios run once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Both versions, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The VIP address of this version.
    pub fn vip(self) -> IpAddr {
        match self {
            Self::V4 => VIP_V4.into(),
            Self::V6 => VIP_V6.into(),
        }
    }

    /// Address and port of the HTTP service.
    pub fn web(self) -> SocketAddr {
        SocketAddr::new(self.vip(), WEB_PORT)
    }

    /// Address and port of the UDP echo service.
    pub fn echo(self) -> SocketAddr {
        SocketAddr::new(self.vip(), ECHO_PORT)
    }

    /// `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Prefix length of a host route.
    pub fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// The function of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRole {
    /// Sends requests.
    Client,
    /// Distributes packets to the VIPs over the balancers by ECMP, and forwards replies.
    Router,
    /// Runs `sluice lb`.
    Balancer,
    /// Runs `sluice backend` and the HTTP and UDP servers.
    Backend {
        /// Weight within each of the lab's services.
        weight: u32,
    },
}

/// One host: a network, mount and UTS namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabHost {
    /// Short name, also the host name inside.
    pub name: String,
    /// Its function.
    pub role: HostRole,
    /// IPv4 address of [`INTERFACE`] (router: of [`BRIDGE`]).
    pub v4: Ipv4Addr,
    /// IPv6 address of [`INTERFACE`] (router: of [`BRIDGE`]).
    pub v6: Ipv6Addr,
}

/// All hosts of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    router: LabHost,
    clients: Vec<LabHost>,
    balancers: Vec<LabHost>,
    backends: Vec<LabHost>,
}

impl Topology {
    /// Clients `client1`, ..., balancers `lb1`, ... and one backend `web-1`, ... for each weight.
    ///
    /// # Panics
    ///
    /// On more hosts than the address ranges hold: 16 clients, 9 balancers, 244 backends.
    pub fn new(clients: u8, balancers: u8, weights: &[u32]) -> Self {
        assert!(clients <= MAX_CLIENTS, "at most {MAX_CLIENTS} clients");
        assert!(balancers <= MAX_BALANCERS, "at most {MAX_BALANCERS} balancers");
        assert!(weights.len() <= MAX_BACKENDS.into(), "at most {MAX_BACKENDS} backends");
        let balancer =
            |n: u8| underlay_host(format!("lb{n}"), HostRole::Balancer, 1 + n, 1 + u16::from(n));
        let backend = |(n, weight): (u8, u32)| {
            let role = HostRole::Backend { weight };
            underlay_host(format!("web-{n}"), role, 10 + n, 0x10 + u16::from(n))
        };
        Self {
            router: underlay_host("router".into(), HostRole::Router, 1, 1),
            clients: (1..=clients).map(client_host).collect(),
            balancers: (1..=balancers).map(balancer).collect(),
            backends: (1..).zip(weights.iter().copied()).map(backend).collect(),
        }
    }

    /// The topology of `make lab`: 2 clients, 2 balancers, 5 backends of different weights.
    pub fn standard() -> Self {
        Self::new(2, 2, &[100, 50, 25, 25, 50])
    }

    /// All hosts. The router is first, because it creates the links of the others.
    pub fn hosts(&self) -> impl Iterator<Item = &LabHost> {
        let others = [&self.clients, &self.balancers, &self.backends];
        std::iter::once(&self.router).chain(others.into_iter().flatten())
    }

    /// The host that connects the others.
    pub fn router(&self) -> &LabHost {
        &self.router
    }

    /// The hosts that send requests.
    pub fn clients(&self) -> &[LabHost] {
        &self.clients
    }

    /// The hosts that run `sluice lb`.
    pub fn balancers(&self) -> &[LabHost] {
        &self.balancers
    }

    /// The hosts that can run `sluice backend`.
    pub fn backends(&self) -> &[LabHost] {
        &self.backends
    }

    /// The first client.
    pub fn first_client(&self) -> Result<&LabHost> {
        self.clients.first().context("the topology has no client")
    }

    /// The last client.
    pub fn last_client(&self) -> Result<&LabHost> {
        self.clients.last().context("the topology has no client")
    }

    /// The host of that name, or an error that lists all names.
    pub fn host(&self, name: &str) -> Result<&LabHost> {
        self.hosts().find(|host| host.name == name).with_context(|| {
            let names: Vec<_> = self.hosts().map(|host| host.name.as_str()).collect();
            format!("unknown host `{name}`; hosts of the lab: {}", names.join(", "))
        })
    }

    /// Whether a backend has that name.
    pub fn has_backend(&self, name: &str) -> bool {
        self.backends.iter().any(|backend| backend.name == name)
    }

    /// Input of `ip -batch` for one host. `pid` returns the process whose network namespace is the
    /// named host's: the router creates all links and moves one end into each host.
    pub fn ip_batch(&self, host: &LabHost, pid: impl Fn(&str) -> i32) -> String {
        match host.role {
            HostRole::Router => self.router_batch(pid),
            HostRole::Client => {
                let (v4, v6) = host.client_gateway();
                edge_batch(host, CLIENT_PREFIX, CLIENT_MTU, v4, v6)
            }
            HostRole::Balancer | HostRole::Backend { .. } => {
                edge_batch(host, 24, UNDERLAY_MTU, self.router.v4, self.router.v6)
            }
        }
    }

    fn router_batch(&self, pid: impl Fn(&str) -> i32) -> String {
        let LabHost { v4, v6, .. } = &self.router;
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"),
            format!("link set {BRIDGE} mtu {UNDERLAY_MTU} up"),
            format!("addr add {v4}/24 dev {BRIDGE}"),
            format!("addr add {v6}/64 dev {BRIDGE} nodad"),
        ];
        for host in self.hosts().filter(|host| host.role != HostRole::Router) {
            let mtu = if host.role == HostRole::Client { CLIENT_MTU } else { UNDERLAY_MTU };
            let name = &host.name;
            let pid = pid(name);
            lines.push(format!(
                "link add {name} mtu {mtu} type veth peer name {INTERFACE} mtu {mtu} netns {pid}"
            ));
            if host.role == HostRole::Client {
                let (v4, v6) = host.client_gateway();
                lines.push(format!("addr add {v4}/{CLIENT_PREFIX} dev {name}"));
                lines.push(format!("addr add {v6}/64 dev {name} nodad"));
                lines.push(format!("link set {name} up"));
            } else {
                lines.push(format!("link set {name} master {BRIDGE} up"));
            }
        }
        for version in IpVersion::BOTH {
            let next_hop = |lb: &LabHost| format!(" nexthop via {} weight 1", lb.address(version));
            let next_hops: String = self.balancers.iter().map(next_hop).collect();
            let prefix = version.host_prefix();
            lines.push(format!("route add {}/{prefix}{next_hops}", version.vip()));
        }
        lines.join("\n") + "\n"
    }

    /// The topology as an ASCII drawing for 100 columns. `note` is appended to a backend's line.
    pub fn picture(&self, note: impl Fn(&LabHost) -> String) -> String {
        let columns = |host: &LabHost| {
            format!("{:<8} {:<15} {:<15}", host.name, host.v4.to_string(), host.v6.to_string())
        };
        let mut text = String::new();
        for client in &self.clients {
            text += &format!("   {} --+\n", columns(client));
        }
        text += &format!("{:46}|\n", "");
        text += &format!("   {:<43}v\n", format!("VIPs {VIP_V4}, {VIP_V6}"));
        text += &format!(
            "   {} --+-- static routes to the VIPs, ECMP by 5-tuple\n",
            columns(&self.router)
        );
        text += &format!("{:46}|   bridge {BRIDGE}, MTU {UNDERLAY_MTU}\n", "");
        for balancer in &self.balancers {
            text += &format!("   {} --+-- sluice lb\n", columns(balancer));
        }
        text += &format!("{:46}|\n", "");
        for backend in &self.backends {
            let weight = backend.weight();
            text += &format!(
                "   {} --+-- sluice backend, weight {weight}{}\n",
                columns(backend),
                note(backend)
            );
        }
        text
    }
}

fn underlay_host(name: String, role: HostRole, v4_last: u8, v6_last: u16) -> LabHost {
    LabHost {
        name,
        role,
        v4: Ipv4Addr::new(10, 0, 1, v4_last),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, v6_last),
    }
}

fn client_host(number: u8) -> LabHost {
    let network = (number - 1) << (32 - CLIENT_PREFIX);
    LabHost {
        name: format!("client{number}"),
        role: HostRole::Client,
        v4: Ipv4Addr::new(198, 51, 100, network + 10),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0xc0 + u16::from(number), 0, 0, 0, 0, 0x10),
    }
}

fn edge_batch(
    host: &LabHost,
    v4_prefix: u8,
    mtu: u32,
    gateway_v4: Ipv4Addr,
    gateway_v6: Ipv6Addr,
) -> String {
    let LabHost { v4, v6, .. } = host;
    format!(
        "link set lo up\n\
         addr add {v4}/{v4_prefix} dev {INTERFACE}\n\
         addr add {v6}/64 dev {INTERFACE} nodad\n\
         link set {INTERFACE} mtu {mtu} up\n\
         route add default via {gateway_v4}\n\
         route add ::/0 via {gateway_v6}\n"
    )
}

impl LabHost {
    /// The weight as a backend; 0 for any other role.
    pub fn weight(&self) -> u32 {
        match self.role {
            HostRole::Backend { weight } => weight,
            _ => 0,
        }
    }

    /// The host's own address of this version.
    pub fn address(&self, version: IpVersion) -> IpAddr {
        match version {
            IpVersion::V4 => self.v4.into(),
            IpVersion::V6 => self.v6.into(),
        }
    }

    /// The router's addresses on the link to this client: host number 1 of the client's networks.
    fn client_gateway(&self) -> (Ipv4Addr, Ipv6Addr) {
        let network = self.v4.to_bits() >> (32 - CLIENT_PREFIX) << (32 - CLIENT_PREFIX);
        let mut segments = self.v6.segments();
        segments[7] = 1;
        (Ipv4Addr::from_bits(network + 1), Ipv6Addr::from(segments))
    }

    /// Sysctls as paths under `/proc/sys/net/` and values. They are written before the host gets
    /// its links, so that the links inherit the defaults.
    pub fn sysctls(&self) -> Vec<(String, &'static str)> {
        let mut values = Vec::new();
        for conf in ["all", "default"] {
            // The lab's addresses are unique by construction; duplicate address detection would
            // make them unusable for a second.
            values.push((format!("ipv6/conf/{conf}/disable_ipv6"), "0"));
            values.push((format!("ipv6/conf/{conf}/accept_dad"), "0"));
            values.push((format!("ipv6/conf/{conf}/accept_ra"), "0"));
            // Strict on backends, the default of many distributions: `sluice backend` must handle
            // it.
            let strict = matches!(self.role, HostRole::Backend { .. });
            values.push((format!("ipv4/conf/{conf}/rp_filter"), if strict { "1" } else { "0" }));
            if self.role == HostRole::Router {
                values.push((format!("ipv6/conf/{conf}/forwarding"), "1"));
            }
            if self.role == HostRole::Balancer {
                // All hosts share one link, so the router would redirect balancers away from a
                // detour that a scenario configures.
                for family in ["ipv4", "ipv6"] {
                    values.push((format!("{family}/conf/{conf}/accept_redirects"), "0"));
                }
            }
        }
        if self.role == HostRole::Router {
            values.push(("ipv4/ip_forward".into(), "1"));
            for family in ["ipv4", "ipv6"] {
                // The ECMP hash includes ports, as on a hardware router.
                values.push((format!("{family}/fib_multipath_hash_policy"), "1"));
            }
        }
        values
    }

    /// Sysctls that older kernels lack; written after [`sysctls`](Self::sysctls), errors ignored.
    ///
    /// Policy 1 uses the hash that the client's socket left in the skb, which no physical link
    /// carries. The socket changes it with every retransmission timeout, and the flow would move to
    /// the other balancer. Policy 3 (Linux 5.14) hashes the packet; 55 (0x37) selects both
    /// addresses, the protocol and both ports, see ip-sysctl in the kernel's documentation.
    pub fn optional_sysctls(&self) -> Vec<(String, &'static str)> {
        if self.role != HostRole::Router {
            return Vec::new();
        }
        let sysctls = |family: &str| {
            let name = format!("{family}/fib_multipath_hash");
            [(format!("{name}_fields"), "55"), (format!("{name}_policy"), "3")]
        };
        ["ipv4", "ipv6"].into_iter().flat_map(sysctls).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_addresses_are_unique() {
        for topology in [Topology::standard(), Topology::new(16, 9, &[1; 244])] {
            let hosts: Vec<_> = topology.hosts().collect();
            let names: HashSet<_> = hosts.iter().map(|host| &host.name).collect();
            let v4: HashSet<_> = hosts.iter().map(|host| host.v4).collect();
            let v6: HashSet<_> = hosts.iter().map(|host| host.v6).collect();
            assert_eq!([names.len(), v4.len(), v6.len()], [hosts.len(); 3]);
            assert!(hosts.iter().all(|host| host.v4 != VIP_V4 && host.v6 != VIP_V6));
        }
    }

    #[test]
    fn every_client_shares_a_network_with_its_gateway() {
        for client in Topology::new(16, 1, &[1]).clients() {
            let (v4, v6) = client.client_gateway();
            assert_eq!(client.v4.to_bits() >> 4, v4.to_bits() >> 4, "{}", client.name);
            assert_eq!(client.v6.segments()[..4], v6.segments()[..4], "{}", client.name);
            assert!(v4 != client.v4 && v6 != client.v6);
        }
    }

    #[test]
    fn the_router_has_an_ecmp_route_over_all_balancers_for_each_vip() {
        let topology = Topology::standard();
        let batch = topology.ip_batch(topology.router(), |_| 7);
        assert!(batch.contains(
            "route add 203.0.113.10/32 nexthop via 10.0.1.2 weight 1 \
             nexthop via 10.0.1.3 weight 1\n"
        ));
        assert!(batch.contains(
            "route add 2001:db8:ff::10/128 nexthop via 2001:db8:1::2 weight 1 \
             nexthop via 2001:db8:1::3"
        ));
        assert_eq!(batch.matches("type veth").count(), topology.hosts().count() - 1);
    }

    #[test]
    fn an_unknown_host_is_refused_with_the_list_of_names() {
        let text = Topology::standard().host("web-9").unwrap_err().to_string();
        assert!(text.contains("web-9") && text.contains("client1, client2"), "{text}");
    }

    #[test]
    fn the_picture_contains_every_host_and_is_plain_ascii() {
        let topology = Topology::standard();
        let picture = topology.picture(|_| String::new());
        assert!(picture.is_ascii());
        assert!(picture.lines().all(|line| line.len() <= 100));
        for host in topology.hosts() {
            assert!(picture.contains(&host.name) && picture.contains(&host.v6.to_string()));
        }
    }
}

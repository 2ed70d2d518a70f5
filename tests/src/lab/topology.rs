//! The lab's fixed shape: hosts, addresses, weights, and the commands that wire them.
//!
//! Everything here is plain data and pure functions, so it can be read and tested without root.
//! Addresses come from the ranges reserved for documentation (RFC 5737, RFC 3849) and from RFC
//! 1918, and exist inside the lab's namespaces only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// MTU of the underlay in bytes: a client's 1500-byte packet plus an outer IPv6 header (40) fits,
/// so nothing needs to shrink.
pub const UNDERLAY_MTU: u32 = 1600;
/// MTU of the links between clients and router, in bytes.
pub const CLIENT_MTU: u32 = 1500;
/// UDP port to which packets in UDP go (`underlay.gue_port`, as it is by default).
pub const GUE_PORT: u16 = 6080;
/// TCP port of the service [`WEB`].
pub const WEB_PORT: u16 = 80;
/// UDP port of the service [`ECHO`] (the echo port of RFC 862).
pub const ECHO_PORT: u16 = 7;
/// Name of the HTTP service in the generated configuration.
pub const WEB: &str = "web";
/// Name of the UDP service in the generated configuration.
pub const ECHO: &str = "echo";
/// Instance name of every `sluice` in the lab.
pub const INSTANCE: &str = "edge";
/// The interface that every host has besides `lo`.
pub const INTERFACE: &str = "eth0";
/// The bridge in the router that joins balancers and backends.
pub const BRIDGE: &str = "br0";
/// The VIP address of the IPv4 services.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The VIP address of the IPv6 services.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10);
/// Name of the router.
pub const ROUTER: &str = "router";
/// The backend that exists from the start and joins the services while connections are open.
pub const JOINING: &str = "web-5";
/// The backend that is drained while connections are open.
pub const DRAINED: &str = "web-2";

/// An IP version; tests run once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both versions, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The VIP address of this version.
    pub fn vip(self) -> IpAddr {
        match self {
            Self::V4 => VIP_V4.into(),
            Self::V6 => VIP_V6.into(),
        }
    }

    /// Where the HTTP service of this version answers.
    pub fn web(self) -> SocketAddr {
        SocketAddr::new(self.vip(), WEB_PORT)
    }

    /// Where the UDP service of this version answers.
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
}

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends requests.
    Client,
    /// Spreads packets for the VIPs over the balancers, and carries replies.
    Router,
    /// Runs `sluice lb`.
    Balancer,
    /// Runs `sluice backend`, HTTP and UDP servers. The weight counts within each service.
    Backend {
        /// Weight in the lab's services.
        weight: u32,
    },
}

/// One host: a network, mount and UTS namespace of its own.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Short name, also the host name inside.
    pub name: &'static str,
    /// What it does.
    pub role: Role,
    /// Address of [`INTERFACE`] (the router: of [`BRIDGE`]).
    pub v4: Ipv4Addr,
    /// Address of [`INTERFACE`] (the router: of [`BRIDGE`]).
    pub v6: Ipv6Addr,
}

const fn underlay(name: &'static str, role: Role, last: u8, last6: u16) -> Host {
    Host {
        name,
        role,
        v4: Ipv4Addr::new(10, 0, 1, last),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last6),
    }
}

const fn client(name: &'static str, number: u8) -> Host {
    let last = 10 + 128 * (number - 1);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xc0 + number as u16, 0, 0, 0, 0, 0x10);
    Host { name, role: Role::Client, v4: Ipv4Addr::new(198, 51, 100, last), v6 }
}

/// All hosts. The router comes first, because it makes the links of the others.
pub const HOSTS: [Host; 10] = [
    underlay(ROUTER, Role::Router, 1, 0x1),
    client("client1", 1),
    client("client2", 2),
    underlay("lb1", Role::Balancer, 2, 0x2),
    underlay("lb2", Role::Balancer, 3, 0x3),
    underlay("web-1", Role::Backend { weight: 100 }, 11, 0x11),
    underlay("web-2", Role::Backend { weight: 50 }, 12, 0x12),
    underlay("web-3", Role::Backend { weight: 25 }, 13, 0x13),
    underlay("web-4", Role::Backend { weight: 25 }, 14, 0x14),
    underlay(JOINING, Role::Backend { weight: 50 }, 15, 0x15),
];

/// The host of that name, or an error that lists the names there are.
pub fn host(name: &str) -> anyhow::Result<&'static Host> {
    HOSTS.iter().find(|host| host.name == name).ok_or_else(|| {
        let names: Vec<_> = HOSTS.iter().map(|host| host.name).collect();
        anyhow::anyhow!("the lab has no host `{name}`; there are: {}", names.join(", "))
    })
}

/// The hosts that send requests.
pub fn clients() -> impl Iterator<Item = &'static Host> {
    HOSTS.iter().filter(|host| host.role == Role::Client)
}

/// The hosts that run `sluice lb`.
pub fn balancers() -> impl Iterator<Item = &'static Host> {
    HOSTS.iter().filter(|host| host.role == Role::Balancer)
}

/// Whether [`JOINING`] has an IPv4 address only, so that IPv6 packets reach it in IPv4 ones: where
/// its kernel can take them out, by a tunnel device or by the flags that Sluice's program needs.
pub fn joining_is_v4_only() -> bool {
    let device = std::env::var("LAB_DECAPSULATION").is_ok_and(|by| by == "device");
    device || sluice::kernel::bpf::decapsulates_across_families()
}

/// The hosts that can run `sluice backend`, [`JOINING`] among them.
pub fn backends() -> impl Iterator<Item = &'static Host> {
    HOSTS.iter().filter(|host| matches!(host.role, Role::Backend { .. }))
}

impl Host {
    /// The host's weight as a backend; 0 for any other role.
    pub fn weight(&self) -> u32 {
        match self.role {
            Role::Backend { weight } => weight,
            _ => 0,
        }
    }

    /// The host's own address of this version.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The router's addresses on the link to this client: the same network, host number 1.
    fn client_gateway(&self) -> (Ipv4Addr, Ipv6Addr) {
        let [a, b, c, d] = self.v4.octets();
        let mut segments = self.v6.segments();
        segments[7] = 1;
        (Ipv4Addr::new(a, b, c, d - 9), Ipv6Addr::from(segments))
    }

    /// Values under `/proc/sys/net/`, written before the host gets its links, so that the links
    /// inherit the defaults.
    pub fn sysctls(&self) -> Vec<(String, &'static str)> {
        let mut values = Vec::new();
        for conf in ["all", "default"] {
            // The lab's addresses are unique by construction; detection would keep them unusable
            // for a second.
            values.push((format!("ipv6/conf/{conf}/disable_ipv6"), "0"));
            values.push((format!("ipv6/conf/{conf}/accept_dad"), "0"));
            values.push((format!("ipv6/conf/{conf}/accept_ra"), "0"));
            // Strict on backends, as distributions ship it: `sluice backend` has to cope. Elsewhere
            // off.
            let strict = matches!(self.role, Role::Backend { .. });
            values.push((format!("ipv4/conf/{conf}/rp_filter"), if strict { "1" } else { "0" }));
            if self.role == Role::Router {
                values.push((format!("ipv6/conf/{conf}/forwarding"), "1"));
            }
            if self.role == Role::Balancer {
                // All hosts are on one link; a detour by the router, where a step makes one, is
                // meant.
                for family in ["ipv4", "ipv6"] {
                    values.push((format!("{family}/conf/{conf}/accept_redirects"), "0"));
                }
            }
        }
        if self.role == Role::Router {
            values.push(("ipv4/ip_forward".into(), "1"));
            for family in ["ipv4", "ipv6"] {
                // Ports belong to the ECMP hash, as on a hardware router.
                values.push((format!("{family}/fib_multipath_hash_policy"), "1"));
            }
        }
        values
    }

    /// Values like [`sysctls`](Self::sysctls), written after them where the kernel has them.
    ///
    /// Policy 1 trusts a hash that the client's socket left in the packet, which no real wire would
    /// carry, and which changes with every retransmission timeout: the flow would move to the other
    /// balancer. Policy 3 (Linux 5.14) hashes the packet; 55 (0x37) is both addresses, the protocol
    /// and both ports, see ip-sysctl in the kernel's documentation.
    pub fn optional_sysctls(&self) -> Vec<(String, &'static str)> {
        if self.role != Role::Router {
            return Vec::new();
        }
        let of = |family: &str| {
            let name = format!("{family}/fib_multipath_hash");
            [(format!("{name}_fields"), "55"), (format!("{name}_policy"), "3")]
        };
        ["ipv4", "ipv6"].into_iter().flat_map(of).collect()
    }

    /// Lines for `ip -batch` inside this host. `pid` names a host's namespace for the router, which
    /// makes all links.
    pub fn wiring(&self, pid: impl Fn(&str) -> i32) -> String {
        match self.role {
            Role::Router => router_wiring(self, pid),
            Role::Client => {
                let (v4, v6) = self.client_gateway();
                edge_wiring(self, 25, CLIENT_MTU, v4, v6)
            }
            Role::Balancer | Role::Backend { .. } => {
                let router = &HOSTS[0];
                edge_wiring(self, 24, UNDERLAY_MTU, router.v4, router.v6)
            }
        }
    }
}

fn edge_wiring(
    host: &Host,
    v4_length: u8,
    mtu: u32,
    gateway_v4: Ipv4Addr,
    gateway_v6: Ipv6Addr,
) -> String {
    let Host { v4, v6, .. } = host;
    format!(
        "link set lo up\n\
         addr add {v4}/{v4_length} dev {INTERFACE}\n\
         addr add {v6}/64 dev {INTERFACE} nodad\n\
         link set {INTERFACE} mtu {mtu} up\n\
         route add default via {gateway_v4}\n\
         route add ::/0 via {gateway_v6}\n"
    )
}

fn router_wiring(router: &Host, pid: impl Fn(&str) -> i32) -> String {
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"),
        format!("link set {BRIDGE} mtu {UNDERLAY_MTU} up"),
        format!("addr add {}/24 dev {BRIDGE}", router.v4),
        format!("addr add {}/64 dev {BRIDGE} nodad", router.v6),
    ];
    for host in HOSTS.iter().filter(|host| host.role != Role::Router) {
        let mtu = if host.role == Role::Client { CLIENT_MTU } else { UNDERLAY_MTU };
        let name = host.name;
        let holder = pid(name);
        lines.push(format!(
            "link add {name} mtu {mtu} type veth peer name {INTERFACE} mtu {mtu} netns {holder}"
        ));
        if host.role == Role::Client {
            let (v4, v6) = host.client_gateway();
            lines.push(format!("addr add {v4}/25 dev {name}"));
            lines.push(format!("addr add {v6}/64 dev {name} nodad"));
            lines.push(format!("link set {name} up"));
        } else {
            lines.push(format!("link set {name} master {BRIDGE} up"));
        }
    }
    for (family, length) in [(Family::V4, 32), (Family::V6, 128)] {
        let hops: String =
            balancers().map(|lb| format!(" nexthop via {} weight 1", lb.address(family))).collect();
        lines.push(format!("route add {}/{length}{hops}", family.vip()));
    }
    lines.join("\n") + "\n"
}

/// The topology as a drawing for a terminal of 100 columns, pure ASCII.
pub fn picture() -> String {
    let link = |name: &str, v4: &str, v6: &str| format!("{name:<8} {v4:<15} {v6:<15}");
    let mut text = String::new();
    for client in clients() {
        text += &format!(
            "   {} --+\n",
            link(client.name, &client.v4.to_string(), &client.v6.to_string())
        );
    }
    let router = &HOSTS[0];
    text += &format!("{:46}|\n", "");
    text += &format!("   {:<43}v\n", format!("VIPs {VIP_V4}, {VIP_V6}"));
    text += &format!(
        "   {} --+-- ECMP by 5-tuple, static routes\n",
        link(router.name, &router.v4.to_string(), &router.v6.to_string())
    );
    text += &format!("{:46}|   bridge {BRIDGE}, MTU {UNDERLAY_MTU}\n", "");
    for lb in balancers() {
        text += &format!(
            "   {} --+-- sluice lb\n",
            link(lb.name, &lb.v4.to_string(), &lb.v6.to_string())
        );
    }
    text += &format!("{:46}|\n", "");
    for backend in backends() {
        let note = if backend.name == JOINING { ", joins later" } else { "" };
        text += &format!(
            "   {} --+-- sluice backend, weight {}{note}\n",
            link(backend.name, &backend.v4.to_string(), &backend.v6.to_string()),
            backend.weight()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_addresses_are_unique() {
        let names: HashSet<_> = HOSTS.iter().map(|host| host.name).collect();
        let v4: HashSet<_> = HOSTS.iter().map(|host| host.v4).collect();
        let v6: HashSet<_> = HOSTS.iter().map(|host| host.v6).collect();
        assert_eq!((names.len(), v4.len(), v6.len()), (HOSTS.len(), HOSTS.len(), HOSTS.len()));
        assert!(HOSTS.iter().all(|host| host.v4 != VIP_V4 && host.v6 != VIP_V6));
    }

    #[test]
    fn every_client_shares_a_network_with_its_gateway() {
        for client in clients() {
            let (v4, v6) = client.client_gateway();
            assert_eq!(client.v4.to_bits() >> 7, v4.to_bits() >> 7, "{}", client.name);
            assert_eq!(client.v6.segments()[..4], v6.segments()[..4], "{}", client.name);
            assert!(v4 != client.v4 && v6 != client.v6);
        }
    }

    #[test]
    fn the_router_spreads_each_vip_over_both_balancers() {
        let wiring = HOSTS[0].wiring(|_| 7);
        assert!(
            wiring.contains("route add 203.0.113.10/32 nexthop via 10.0.1.2 weight 1 nexthop via 10.0.1.3 weight 1\n")
        );
        assert!(
            wiring
                .contains("route add 2001:db8:ff::10/128 nexthop via 2001:db8:1::2 weight 1 nexthop via 2001:db8:1::3")
        );
        assert_eq!(wiring.matches("type veth").count(), HOSTS.len() - 1);
    }

    #[test]
    fn an_unknown_host_is_refused_with_the_names_there_are() {
        let text = host("web-9").unwrap_err().to_string();
        assert!(text.contains("web-9") && text.contains("client1, client2"), "{text}");
    }

    #[test]
    fn the_picture_names_every_host_and_is_plain_ascii() {
        let picture = picture();
        assert!(picture.is_ascii());
        assert!(picture.lines().all(|line| line.len() <= 100));
        assert!(
            HOSTS
                .iter()
                .all(|host| picture.contains(host.name) && picture.contains(&host.v6.to_string()))
        );
    }
}

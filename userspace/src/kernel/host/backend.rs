//! What makes a host a backend: VIP addresses that it has but does not announce, and somebody to
//! decapsulate.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_datapath::Family;

use super::{Host, HostError, LOOPBACK};
use crate::kernel::host::journal::Change;
use crate::kernel::host::sysctl::{Sysctl, SysctlError};
use crate::kernel::netlink::{AddressAdded, Interface, Tunnel, TunnelError, TunnelKind};

/// The tunnel device for IPv4 in IPv4, unless told otherwise.
pub const TUNNEL_V4: &str = "sluice4";
/// The tunnel device for IPv4 and IPv6 in IPv6, unless told otherwise.
pub const TUNNEL_V6: &str = "sluice6";
/// The tunnel device for IPv6 in IPv4, unless told otherwise.
pub const TUNNEL_V6_IN_V4: &str = "sluice64";

/// How packets that reach this backend are decapsulated, for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decapsulation {
    /// The kernel's tunnel device does it.
    Device(Tunnel),
    /// A BPF program has to be attached to the interfaces for it.
    Program {
        /// Why: a sentence for the log.
        reason: String,
    },
}

impl fmt::Display for Decapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(Tunnel { name, created: true, .. }) => {
                write!(f, "tunnel device {name} (created)")
            }
            Self::Device(Tunnel { name, created: false, .. }) => {
                write!(f, "tunnel device {name} (found)")
            }
            Self::Program { reason } => write!(f, "BPF program ({reason})"),
        }
    }
}

/// What a backend needs.
#[derive(Clone, Copy, Debug)]
pub struct BackendSetup<'a> {
    /// The interfaces through which encapsulated packets arrive: they must not announce VIP
    /// addresses.
    pub interfaces: &'a [String],
    /// The addresses of this backend that balancers send to, at most one of each family.
    pub local: &'a [IpAddr],
    /// The VIP addresses and prefixes of the services it serves.
    pub vips: &'a [IpNet],
    /// Whether tunnel devices may be used; otherwise everything is left to BPF programs.
    pub tunnels: bool,
    /// The name of the IPv4 tunnel device, [`TUNNEL_V4`] by default.
    pub tunnel_v4: &'a str,
    /// The name of the IPv6 tunnel device, [`TUNNEL_V6`] by default.
    pub tunnel_v6: &'a str,
    /// The name of the tunnel device for IPv6 in IPv4, [`TUNNEL_V6_IN_V4`] by default.
    pub tunnel_v6_in_v4: &'a str,
}

impl BackendSetup<'_> {
    /// Whether it serves a VIP of a family.
    fn serves(&self, family: Family) -> bool {
        self.vips.iter().any(|vip| Family::of(vip.addr()) == family)
    }
}

/// What [`Host::prepare_backend`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendReport {
    /// For each address of [`BackendSetup::local`] and each family of VIPs that needs a device of
    /// its own, who decapsulates what is sent to it.
    pub decapsulation: Vec<(IpAddr, Decapsulation)>,
    /// What was changed, a sentence each; empty when everything was right already.
    pub changed: Vec<String>,
}

impl Host {
    /// Makes this host a backend: VIP addresses on `lo` that nobody announces, and a tunnel device
    /// for each family where the kernel can.
    ///
    /// The order matters: the interfaces fall silent before there is a VIP address to answer for,
    /// and there is a VIP address before anything is decapsulated. Everything is checked before
    /// anything is changed.
    ///
    /// IPv6 needs no setting: the kernel answers neighbour solicitations for addresses of the
    /// interface that they arrive on only.
    ///
    /// # Errors
    /// [`HostError`]: what was done until then is in the journal, and a second call continues.
    pub async fn prepare_backend(
        &mut self,
        setup: &BackendSetup<'_>,
    ) -> Result<BackendReport, HostError> {
        let interfaces = self.check(setup).await?;
        let mut report = BackendReport::default();
        if setup.serves(Family::V4) {
            for interface in &interfaces {
                self.silence(&interface.name, &mut report)?;
            }
        }
        for vip in setup.vips {
            if vip.prefix_len() == vip.max_prefix_len() {
                if self.ensure_vip(vip.addr()).await? == AddressAdded::Created {
                    report.changed.push(format!("put VIP address {} on {LOOPBACK}", vip.addr()));
                }
            } else if self.ensure_vip_prefix(*vip).await? == AddressAdded::Created {
                report.changed.push(format!("made VIP prefix {vip} local"));
            }
        }
        for local in setup.local {
            // In its own family packets may come whatever is served now; in the other, when a VIP
            // of that is.
            let own = Family::of(*local);
            for inner in [own, own.other()] {
                if inner == own || setup.serves(inner) {
                    self.decapsulate_to(setup, *local, inner, &interfaces, &mut report).await?;
                }
            }
        }
        Ok(report)
    }

    /// Sees to it that packets of the family `inner` are taken out of those sent to `local`.
    async fn decapsulate_to(
        &mut self,
        setup: &BackendSetup<'_>,
        local: IpAddr,
        inner: Family,
        interfaces: &[Interface],
        report: &mut BackendReport,
    ) -> Result<(), HostError> {
        let kind = TunnelKind::of(local, inner);
        let decapsulation = self.decapsulate(setup, local, kind).await?;
        match &decapsulation {
            Decapsulation::Device(Tunnel { name, created, .. }) => {
                if *created {
                    report.changed.push(format!("created {kind} device {name} for {local}"));
                }
                let vips = setup.vips.iter().map(IpNet::addr);
                let mut own = setup.local.iter().copied().chain(vips).filter(IpAddr::is_ipv4);
                if inner == Family::V4
                    && let Some(address) = own.next()
                {
                    // Loose filtering drops all that arrives on a device without any IPv4 address,
                    // and whether filtering is on may change later.
                    if self.ensure_address(name, address).await? == AddressAdded::Created {
                        report.changed.push(format!("put {address} on {name}"));
                    }
                    self.loosen(name, report)?;
                }
            }
            // Decapsulated in BPF, the client's packet arrives on the interface itself, and its
            // answer may leave by another.
            Decapsulation::Program { .. } if inner == Family::V4 => {
                for interface in interfaces {
                    self.loosen(&interface.name, report)?;
                }
            }
            Decapsulation::Program { .. } => {}
        }
        // One `ip6tnl` device does both families, and so does the program.
        let same = |(address, by): &(IpAddr, Decapsulation)| match (by, &decapsulation) {
            (Decapsulation::Device(one), Decapsulation::Device(other)) => one.index == other.index,
            (Decapsulation::Program { .. }, Decapsulation::Program { .. }) => *address == local,
            _ => false,
        };
        if !report.decapsulation.iter().any(same) {
            report.decapsulation.push((local, decapsulation));
        }
        Ok(())
    }

    /// Finds what is wrong with a set-up while nothing has been touched yet.
    async fn check(&self, setup: &BackendSetup<'_>) -> Result<Vec<Interface>, HostError> {
        let mut interfaces = Vec::new();
        for name in setup.interfaces {
            interfaces.push(self.netlink.interface(name).await?);
        }
        let loopback = self.netlink.interface(LOOPBACK).await?.index;
        let addresses = self.netlink.local_addresses().await?;
        for local in setup.local {
            if !addresses.iter().any(|(_, address)| address == local) {
                return Err(HostError::NotLocal(*local));
            }
        }
        for (index, address) in addresses {
            let is_vip = setup.vips.iter().any(|vip| vip.contains(&address));
            if index != loopback && is_vip && !self.put_there(index, address) {
                let found = self.netlink.interface_at(index).await?;
                let interface =
                    found.map_or_else(|| format!("interface number {index}"), |found| found.name);
                return Err(HostError::VipAnnounced { address, interface });
            }
        }
        Ok(interfaces)
    }

    /// Whether the journal says that we gave an interface an address.
    fn put_there(&self, index: u32, address: IpAddr) -> bool {
        let ours = |change: &Change| matches!(change, Change::Address { index: on, address: own, .. } if (*on, *own) == (index, address));
        self.journal.changes().iter().any(ours)
    }

    async fn decapsulate(
        &mut self,
        setup: &BackendSetup<'_>,
        local: IpAddr,
        kind: TunnelKind,
    ) -> Result<Decapsulation, HostError> {
        if !setup.tunnels {
            return Ok(Decapsulation::Program { reason: "tunnel devices are switched off".into() });
        }
        let name = match kind {
            TunnelKind::Ipip => setup.tunnel_v4,
            TunnelKind::Sit => setup.tunnel_v6_in_v4,
            TunnelKind::Ip6Tnl => setup.tunnel_v6,
        };
        match self.ensure_tunnel(name, kind, local).await {
            Ok(tunnel) => Ok(Decapsulation::Device(tunnel)),
            Err(HostError::Tunnel(TunnelError::Unsupported { kind })) => {
                Ok(Decapsulation::Program { reason: format!("this kernel has no {kind} devices") })
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps an interface from answering and asking by ARP in the name of addresses on `lo`.
    fn silence(&mut self, interface: &str, report: &mut BackendReport) -> Result<(), HostError> {
        let (all, own) = Setting::pair(interface, "arp_ignore")?;
        match arp_ignore(all.value, own.value) {
            Need::Nothing => {}
            Need::Set(value) => self.set(&own.key, value, report)?,
            Need::Impossible => {
                return Err(HostError::ArpForced { key: all.key, value: all.value });
            }
        }
        let (all, own) = Setting::pair(interface, "arp_announce")?;
        if all.value.max(own.value) < 2 {
            self.set(&own.key, "2", report)?;
        }
        Ok(())
    }

    /// Lets an interface take packets whose answers leave by another one, unless it already does.
    fn loosen(&mut self, interface: &str, report: &mut BackendReport) -> Result<(), HostError> {
        let (all, own) = Setting::pair(interface, "rp_filter")?;
        // 0 is off, 1 is strict, 2 is loose, and the larger of both wins.
        if all.value.max(own.value) == 1 {
            self.set(&own.key, "2", report)?;
        }
        Ok(())
    }

    fn set(
        &mut self,
        key: &Sysctl,
        value: &str,
        report: &mut BackendReport,
    ) -> Result<(), HostError> {
        if self.ensure_sysctl(key, value)? {
            report.changed.push(format!("set {key} to {value}"));
        }
        Ok(())
    }
}

/// One kernel setting and its value.
struct Setting {
    key: Sysctl,
    value: i64,
}

impl Setting {
    fn read(interface: &str, setting: &str) -> Result<Self, SysctlError> {
        let key = Sysctl::ipv4_interface(interface, setting)?;
        let value = key.read_number()?;
        Ok(Self { key, value })
    }

    /// A setting of all interfaces, and the same of one: the kernel takes the larger.
    fn pair(interface: &str, setting: &str) -> Result<(Self, Self), SysctlError> {
        Ok((Self::read("all", setting)?, Self::read(interface, setting)?))
    }
}

/// What has to be done to one interface's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Set(&'static str),
    Impossible,
}

/// 1 and 2 answer for addresses of the asked interface only, 8 never answers. 0 answers for all
/// addresses, 3 for all but those of host scope, and 4 to 7 have no meaning, which is 0's
/// (Documentation/networking/ip-sysctl.rst).
fn arp_ignore(all: i64, own: i64) -> Need {
    let silent = |value| matches!(value, 1 | 2 | 8);
    match (silent(all.max(own)), all) {
        (true, _) => Need::Nothing,
        (false, ..=1) => Need::Set("1"),
        (false, 2 | 8) => Need::Set("0"),
        (false, _) => Need::Impossible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_falls_silent_for_addresses_on_lo() {
        for (all, own) in [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (0, 8), (8, 3)] {
            assert_eq!(arp_ignore(all, own), Need::Nothing, "all {all}, own {own}");
        }
        assert_eq!(arp_ignore(0, 0), Need::Set("1"));
    }

    #[test]
    fn a_value_that_answers_for_lo_is_replaced_where_the_larger_of_both_allows() {
        for (all, own, set) in [(0, 3, "1"), (1, 3, "1"), (2, 3, "0"), (0, 7, "1")] {
            assert_eq!(arp_ignore(all, own), Need::Set(set), "all {all}, own {own}");
            assert_eq!(
                arp_ignore(all, set.parse().unwrap()),
                Need::Nothing,
                "all {all}, own {own}"
            );
        }
        for all in [3, 4, 7] {
            assert_eq!(arp_ignore(all, 0), Need::Impossible, "all {all}");
        }
    }

    #[test]
    fn who_decapsulates_is_said_in_words() {
        let tunnel = Tunnel { index: 4, name: "sluice4".into(), created: true };
        assert_eq!(Decapsulation::Device(tunnel).to_string(), "tunnel device sluice4 (created)");
        let program = Decapsulation::Program { reason: "this kernel has no ipip devices".into() };
        assert_eq!(program.to_string(), "BPF program (this kernel has no ipip devices)");
    }
}

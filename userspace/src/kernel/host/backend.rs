//! Host set-up of a backend: VIP addresses that are local but not announced, and decapsulation.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_datapath::Family;

use super::{Host, HostError, LOOPBACK};
use crate::kernel::host::journal::Change;
use crate::kernel::host::sysctl::{Sysctl, SysctlError};
use crate::kernel::netlink::{AddressAdded, Tunnel, TunnelError, TunnelKind, interface_name};

/// Default name of the tunnel device for IPv4 in IPv4.
pub const TUNNEL_V4: &str = "sluice4";
/// Default name of the tunnel device for IPv4 and IPv6 in IPv6.
pub const TUNNEL_V6: &str = "sluice6";
/// Default name of the tunnel device for IPv6 in IPv4.
pub const TUNNEL_V6_IN_V4: &str = "sluice64";

/// How packets that reach this backend are decapsulated, for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decapsulation {
    /// By a tunnel device of the kernel.
    Device(Tunnel),
    /// By a BPF program on the interfaces.
    Program {
        /// Why no tunnel device is used.
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

/// The set-up of a backend.
#[derive(Clone, Copy, Debug)]
pub struct BackendSetup<'a> {
    /// The interfaces through which encapsulated packets arrive: they must not announce VIP
    /// addresses.
    pub interfaces: &'a [String],
    /// The addresses of this backend that balancers send to, at most one of each family.
    pub local: &'a [IpAddr],
    /// The VIP addresses and prefixes of the services it serves.
    pub vips: &'a [IpNet],
    /// Whether tunnel devices may be used; otherwise BPF programs decapsulate.
    pub tunnels: bool,
    /// Whether a BPF program decapsulates GUE, also beside tunnel devices.
    pub gue: bool,
    /// Whether strict reverse-path filtering of the interfaces stays where BPF programs
    /// decapsulate. Tunnel devices always get loose filtering: they are the backend's own.
    pub keep_rp_filter: bool,
    /// The name of the IPv4 tunnel device, [`TUNNEL_V4`] by default.
    pub tunnel_v4: &'a str,
    /// The name of the IPv6 tunnel device, [`TUNNEL_V6`] by default.
    pub tunnel_v6: &'a str,
    /// The name of the tunnel device for IPv6 in IPv4, [`TUNNEL_V6_IN_V4`] by default.
    pub tunnel_v6_in_v4: &'a str,
}

impl BackendSetup<'_> {
    /// Whether the backend serves a VIP of a family.
    fn serves(&self, family: Family) -> bool {
        self.vips.iter().any(|vip| Family::of(vip.addr()) == family)
    }
}

/// The outcome of [`Host::prepare_backend`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendReport {
    /// How packets are decapsulated, for each address of [`BackendSetup::local`] and each inner
    /// family that needs a device of its own.
    pub decapsulation: Vec<(IpAddr, Decapsulation)>,
    /// The changes, a sentence each; empty if the host needed none.
    pub changed: Vec<String>,
    /// The interfaces where reverse-path filtering must not be strict.
    pub loose_rp_filter: Vec<String>,
    /// The state that [`Host::repair_backend`] cannot restore, and why.
    pub problem: Option<String>,
}

impl Host {
    /// Makes this host a backend: VIP addresses on `lo` that are not announced, and tunnel devices
    /// where the kernel supports them.
    ///
    /// The order matters: ARP is restricted before a VIP address is added, and VIP addresses are
    /// added before packets are decapsulated. All checks come before the first change.
    ///
    /// IPv6 needs no sysctl: the kernel answers neighbour solicitations only for addresses of the
    /// receiving interface.
    ///
    /// # Errors
    /// [`HostError`]. Changes made before the failure are in the journal; a second call continues.
    pub async fn prepare_backend(
        &mut self,
        setup: &BackendSetup<'_>,
    ) -> Result<BackendReport, HostError> {
        self.check(setup).await?;
        self.set_up_backend(setup).await
    }

    /// Makes the changes of [`Self::prepare_backend`], without the checks.
    pub(super) async fn set_up_backend(
        &mut self,
        setup: &BackendSetup<'_>,
    ) -> Result<BackendReport, HostError> {
        self.share_backend(setup)?;
        let mut report = BackendReport::default();
        if setup.serves(Family::V4) {
            for interface in setup.interfaces {
                self.restrict_arp(interface, &mut report.changed)?;
            }
        }
        for vip in self.ensure_vips(setup.vips).await? {
            report.changed.push(match vip.prefix_len() == vip.max_prefix_len() {
                true => format!("added VIP address {} to {LOOPBACK}", vip.addr()),
                false => format!("made VIP prefix {vip} local"),
            });
        }
        for local in setup.local {
            // Packets of the address's own family may arrive whatever is served now; packets of the
            // other family only if a VIP of that family is served.
            let own = Family::of(*local);
            for inner in [own, own.other()] {
                if inner == own || setup.serves(inner) {
                    self.decapsulate_to(setup, *local, inner, &mut report).await?;
                }
            }
        }
        if setup.gue && !setup.local.is_empty() && setup.serves(Family::V4) {
            self.loosen_interfaces(setup, &mut report)?;
        }
        self.forget_lost_addresses().await?;
        Ok(report)
    }

    /// Drops the addresses of removed interfaces from the journal: a tunnel device that was made
    /// again is another interface.
    async fn forget_lost_addresses(&mut self) -> Result<(), HostError> {
        // The VIP addresses, of which there may be thousands, are on the loopback interface.
        let of_devices = self.journal.changes().iter().filter_map(|change| match change {
            Change::Address { interface, index, .. } if interface != LOOPBACK => {
                Some((*index, change.clone()))
            }
            _ => None,
        });
        let mut lost = Vec::new();
        for (index, change) in of_devices.collect::<Vec<_>>() {
            if self.netlink.interface_at(index).await?.is_none() {
                lost.push(change);
            }
        }
        Ok(self.journal.forget_all(&lost)?)
    }

    /// Sets up decapsulation of inner packets of the family `inner` sent to `local`.
    async fn decapsulate_to(
        &mut self,
        setup: &BackendSetup<'_>,
        local: IpAddr,
        inner: Family,
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
                    // Loose reverse-path filtering drops all packets that arrive on a device
                    // without an IPv4 address, and filtering may be enabled later.
                    if self.ensure_address(name, address).await? == AddressAdded::Created {
                        report.changed.push(format!("added {address} to {name}"));
                    }
                    self.loosen_rp_filter(name, &mut report.changed)?;
                    report.loose_rp_filter.push(name.clone());
                }
            }
            Decapsulation::Program { .. } if inner == Family::V4 => {
                self.loosen_interfaces(setup, report)?;
            }
            Decapsulation::Program { .. } => {}
        }
        // One `ip6tnl` device handles both families, and so does the program.
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

    /// Sets reverse-path filtering of the interfaces to loose. With BPF decapsulation, the client's
    /// packet arrives on the interface itself, and the reply may leave through another one.
    fn loosen_interfaces(
        &mut self,
        setup: &BackendSetup<'_>,
        report: &mut BackendReport,
    ) -> Result<(), HostError> {
        if setup.keep_rp_filter {
            return Ok(());
        }
        for interface in setup.interfaces {
            if !report.loose_rp_filter.contains(interface) {
                self.loosen_rp_filter(interface, &mut report.changed)?;
                report.loose_rp_filter.push(interface.clone());
            }
        }
        Ok(())
    }

    /// Checks a set-up against the host before the first change.
    pub(super) async fn check(&self, setup: &BackendSetup<'_>) -> Result<(), HostError> {
        for name in setup.interfaces {
            self.netlink.interface(name).await?;
        }
        let loopback = self.netlink.interface(LOOPBACK).await?.index;
        let addresses = self.netlink.local_addresses().await?;
        for local in setup.local {
            if !addresses.iter().any(|(_, address)| address == local) {
                return Err(HostError::NotLocal(*local));
            }
        }
        for (index, address) in addresses {
            if index != loopback
                && setup.vips.iter().any(|vip| vip.contains(&address))
                && !self.added_by_sluice(index, address)
            {
                let interface = interface_name(index);
                return Err(HostError::VipAnnounced { address, interface });
            }
        }
        Ok(())
    }

    /// Whether the journal lists the address as added to the interface.
    fn added_by_sluice(&self, index: u32, address: IpAddr) -> bool {
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
            Err(HostError::Tunnel(TunnelError::Mismatch { .. }))
                if self.is_device_of_another(name) =>
            {
                Ok(Decapsulation::Program {
                    reason: format!("another instance uses {name} for another address"),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Restricts ARP on an interface: no replies for addresses on `lo`, and no requests with such a
    /// sender address.
    pub(super) fn restrict_arp(
        &mut self,
        interface: &str,
        changed: &mut Vec<String>,
    ) -> Result<(), HostError> {
        let (all, own) = Setting::pair(interface, "arp_ignore")?;
        match arp_ignore(all.value, own.value) {
            Need::Nothing => {}
            Need::Set(value) => self.set(&own.key, value, changed)?,
            Need::Impossible => {
                return Err(HostError::ArpForced { key: all.key, value: all.value });
            }
        }
        let (all, own) = Setting::pair(interface, "arp_announce")?;
        if all.value.max(own.value) < 2 {
            self.set(&own.key, "2", changed)?;
        }
        Ok(())
    }

    /// Sets reverse-path filtering of an interface to loose if it is strict, because replies may
    /// leave through another interface.
    pub(super) fn loosen_rp_filter(
        &mut self,
        interface: &str,
        changed: &mut Vec<String>,
    ) -> Result<(), HostError> {
        let (all, own) = Setting::pair(interface, "rp_filter")?;
        // 0 is off, 1 is strict, 2 is loose, and the larger of both wins.
        if all.value.max(own.value) == 1 {
            self.set(&own.key, "2", changed)?;
        }
        Ok(())
    }

    fn set(
        &mut self,
        key: &Sysctl,
        value: &str,
        changed: &mut Vec<String>,
    ) -> Result<(), HostError> {
        if self.ensure_sysctl(key, value)? {
            changed.push(format!("set {key} to {value}"));
        }
        Ok(())
    }
}

/// A sysctl and its value.
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

    /// The sysctl of `all` and that of one interface; the larger value applies.
    fn pair(interface: &str, setting: &str) -> Result<(Self, Self), SysctlError> {
        Ok((Self::read("all", setting)?, Self::read(interface, setting)?))
    }
}

/// The change that one interface's sysctl needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Set(&'static str),
    Impossible,
}

/// With 1 and 2 the kernel answers only for addresses of the receiving interface, with 8 never.
/// With 0 it answers for all addresses, with 3 for all but those of host scope; 4 to 7 are reserved
/// and act as 0 (Documentation/networking/ip-sysctl.rst).
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
    fn arp_ignore_is_set_only_if_the_interface_answers_for_addresses_on_lo() {
        for (all, own) in [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (0, 8), (8, 3)] {
            assert_eq!(arp_ignore(all, own), Need::Nothing, "all {all}, own {own}");
        }
        assert_eq!(arp_ignore(0, 0), Need::Set("1"));
    }

    #[test]
    fn an_arp_ignore_that_answers_for_lo_is_replaced_unless_all_forbids_it() {
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
    fn decapsulation_is_displayed_in_words() {
        let tunnel = Tunnel { index: 4, name: "sluice4".into(), created: true };
        assert_eq!(Decapsulation::Device(tunnel).to_string(), "tunnel device sluice4 (created)");
        let program = Decapsulation::Program { reason: "this kernel has no ipip devices".into() };
        assert_eq!(program.to_string(), "BPF program (this kernel has no ipip devices)");
    }
}

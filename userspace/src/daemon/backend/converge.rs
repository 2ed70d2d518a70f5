//! Brings the host, the maps and the programs to the assignment.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use sluice_datapath::Family;
use sluice_datapath::abi::maps::backend;
use sluice_datapath::abi::{LocalAddress, Port};
use tracing::{info, warn};

use super::assignment::Assignment;
use super::{BackendDaemon, presence};
use crate::daemon::core::RoleDaemon as _;
use crate::daemon::programs::Programs;
use crate::error::CliError;
use crate::kernel::bpf::{self, BackendMaps, LoadParameters};
use crate::kernel::host::{
    BackendReport, BackendSetup, Decapsulation, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4,
};

/// Capacity of the map of this host's addresses: one of each family.
const LOCAL_ADDRESSES: u32 = 2;

/// The largest number of changes of the host that are logged one by one.
const MAX_LOGGED: usize = 32;

/// Logs changes of the host, and of many the number of the others.
fn log_changes(mut changes: impl Iterator<Item = impl Display>) {
    for change in changes.by_ref().take(MAX_LOGGED) {
        info!("{change}");
    }
    let more = changes.count();
    if more > 0 {
        info!(more, "more changes of the host");
    }
}

/// The host's set-up for an assignment, with tunnel devices or without.
pub(super) fn setup(assignment: &Assignment, tunnels: bool) -> BackendSetup<'_> {
    BackendSetup {
        interfaces: &assignment.interfaces,
        local: &assignment.local,
        vips: &assignment.vips,
        tunnels,
        gue: assignment.gue_port.is_some(),
        keep_rp_filter: assignment.keep_rp_filter,
        tunnel_v4: TUNNEL_V4,
        tunnel_v6: TUNNEL_V6,
        tunnel_v6_in_v4: TUNNEL_V6_IN_V4,
    }
}

impl BackendDaemon {
    /// Brings the host to the assignment: first adds what is new, then removes what is not wanted
    /// any more.
    pub(super) async fn apply_assignment(&mut self) -> Result<(), CliError> {
        let by_program = self.prepare_host().await?;
        self.load(&by_program).await?;
        self.attach().await?;
        let removed = self.host.remove_vips_except(&self.assignment.vips).await;
        let removed = removed.map_err(CliError::operation)?;
        log_changes(removed.iter().map(|vip| format!("removed VIP {vip} from lo")));
        Ok(())
    }

    /// Adds VIP addresses and tunnel devices, on the interfaces and for the addresses that exist.
    /// Returns the addresses for which the program must decapsulate.
    async fn prepare_host(&mut self) -> Result<Vec<IpAddr>, CliError> {
        let present = presence::present(&self.assignment, self.host.netlink()).await?;
        let setup = BackendSetup {
            interfaces: &present.interfaces,
            local: &present.local,
            ..setup(&self.assignment, true)
        };
        let report = self.host.prepare_backend(&setup).await.map_err(CliError::operation)?;
        log_changes(report.changed.iter());
        for (address, decapsulation) in &report.decapsulation {
            info!(%address, by = %decapsulation, "packets are decapsulated");
        }
        if let Some(port) = self.assignment.gue_port {
            info!(port, by = "BPF program", "GUE packets are decapsulated");
        }
        if self.assignment.balancers.is_empty() {
            info!(
                "encapsulated packets are accepted from any source; list the balancers in \
                 `underlay.balancers`"
            );
        }
        let by_program = self.decapsulated_by_program(&report);
        let is_device = |(_, by): &(IpAddr, Decapsulation)| matches!(by, Decapsulation::Device(_));
        if !present.local.is_empty() {
            self.by_device = report.decapsulation.iter().any(is_device);
        }
        self.note_problem(present.problem);
        self.loose_rp_filter = report.loose_rp_filter;
        let assignment = &self.assignment;
        let crosses_families = |local: &IpAddr| {
            assignment.vips.iter().any(|vip| vip.addr().is_ipv4() != local.is_ipv4())
        };
        if by_program.iter().any(crosses_families) && !bpf::decapsulates_across_families() {
            warn!(
                "this kernel cannot decapsulate across address families without a tunnel device \
                 (it lacks BPF_F_ADJ_ROOM_DECAP_L3_*, Linux 6.3), and there is none, or none for \
                 GUE; give this backend an address of each family that it serves"
            );
        }
        Ok(by_program)
    }

    /// The addresses for which the program must decapsulate.
    pub(super) fn decapsulated_by_program(&self, report: &BackendReport) -> Vec<IpAddr> {
        let mut by_program: BTreeSet<IpAddr> = report
            .decapsulation
            .iter()
            .filter(|(_, decapsulation)| matches!(decapsulation, Decapsulation::Program { .. }))
            .map(|(address, _)| *address)
            .collect();
        if self.assignment.gue_port.is_some() {
            by_program.extend(&self.assignment.local);
        }
        // Addresses that this host lacks at the moment.
        let is_missing = |local: &&IpAddr| {
            self.assignment.local.contains(local)
                && !report.decapsulation.iter().any(|(address, _)| address == *local)
        };
        by_program.extend(self.by_program.iter().filter(is_missing));
        by_program.into_iter().collect()
    }

    /// Loads the programs if one of them is needed, and fills their maps. `local` are the addresses
    /// for which the program decapsulates.
    ///
    /// No packet meets a map without its entries: maps of an earlier daemon, too, are filled before
    /// the programs are attached over them. Only the VIPs may not fit before a resize.
    pub(super) async fn load(&mut self, local: &[IpAddr]) -> Result<(), CliError> {
        self.by_program = local.to_vec();
        let is_needed = self.filters_ingress() || self.assignment.clamping.is_some();
        let gue_port = Port::new(self.assignment.gue_port.unwrap_or(0));
        let parameters = LoadParameters::backend(LOCAL_ADDRESSES, self.capacities.vips, gue_port);
        if is_needed {
            match &mut self.loaded {
                Some(_) if self.gue_port == gue_port => {}
                Some((programs, _)) => programs.reload(&parameters)?,
                None => {
                    let programs = Programs::load(Self::ROLE, &self.pins, &parameters)?;
                    let maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
                    self.loaded = Some((programs, maps));
                }
            }
            self.gue_port = gue_port;
        }
        self.fill(local).await?;
        self.finish_resize().await?;
        if is_needed
            && let Some((programs, maps)) = &mut self.loaded
            && let Some(resized) = programs.resize(&parameters)?
        {
            programs.adopt(resized);
            *maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
        }
        if let Some((_, maps)) = &mut self.loaded {
            maps.set_vips(&self.assignment.vips).map_err(CliError::operation)?;
        }
        self.finish_resize().await
    }

    /// Fills the maps but that of the VIPs.
    async fn fill(&mut self, local: &[IpAddr]) -> Result<(), CliError> {
        if let Some((_, maps)) = &mut self.loaded {
            let entries = self.assignment.local.iter().map(|address| {
                let is_own = local.contains(address);
                (*address, if is_own { LocalAddress::BY_PROGRAM } else { LocalAddress::BY_DEVICE })
            });
            maps.set_addresses(&entries.collect::<Vec<_>>(), &self.assignment.balancers)
                .map_err(CliError::operation)?;
        }
        self.set_largest_segments().await
    }

    /// Whether the program at ingress is needed: to decapsulate, or to check the sources of packets
    /// that a tunnel device decapsulates.
    pub(super) fn filters_ingress(&self) -> bool {
        !self.by_program.is_empty() || !self.assignment.balancers.is_empty()
    }

    /// Writes the largest segment of each family where it differs.
    pub(super) async fn set_largest_segments(&mut self) -> Result<(), CliError> {
        let Some((_, maps)) = &mut self.loaded else { return Ok(()) };
        let largest = match &self.assignment.clamping {
            Some(clamping) => clamping
                .largest_segments(self.host.netlink(), &self.assignment.interfaces)
                .await
                .map_err(CliError::operation)?,
            None => Some([(Family::V4, 0), (Family::V6, 0)]),
        };
        for (family, bytes) in largest.into_iter().flatten() {
            if maps
                .element(backend::MAX_SEGMENT_SIZES, family.index())
                .map_err(CliError::operation)?
                != bytes
            {
                maps.write(backend::MAX_SEGMENT_SIZES, &[(family.index(), bytes)])
                    .map_err(CliError::operation)?;
                match bytes {
                    0 => info!(%family, "MSS is not clamped"),
                    bytes => info!(%family, mss = bytes, "MSS is clamped"),
                }
            }
        }
        Ok(())
    }

    /// Attaches the programs where they are wanted, and detaches them elsewhere.
    async fn attach(&mut self) -> Result<(), CliError> {
        self.find_reply_interfaces().await?;
        let programs = self.loaded.as_ref().map(|(programs, _)| programs);
        let decapsulate = programs
            .filter(|_| self.filters_ingress())
            .map(|programs| programs.get(bpf::DECAPSULATE));
        self.decapsulating.ensure(&mut self.host, &self.assignment.interfaces, decapsulate).await?;
        // Packets are served even if clamping cannot be attached, for example because of an
        // `ingress` qdisc.
        let Some(programs) = programs else {
            return self.clamping.detach_except(&mut self.host, &[]).await;
        };
        let clamp = programs.get(bpf::CLAMP);
        self.clamping.watch(&mut self.host, &self.reply_interfaces, clamp).await;
        self.clamping.detach_others(&mut self.host, &self.reply_interfaces, clamp).await
    }

    /// Finds the interfaces through which replies to clients leave.
    pub(super) async fn find_reply_interfaces(&mut self) -> Result<(), CliError> {
        self.reply_interfaces = match &self.assignment.clamping {
            Some(clamping) => clamping
                .reply_interfaces(self.host.netlink(), &self.assignment.interfaces)
                .await
                .map_err(CliError::operation)?,
            None => Vec::new(),
        };
        Ok(())
    }

    /// Attaches the programs over resized maps everywhere, then removes the old maps.
    async fn finish_resize(&mut self) -> Result<(), CliError> {
        if !self.loaded.as_ref().is_some_and(|(programs, _)| programs.is_resizing()) {
            return Ok(());
        }
        self.attach().await?;
        if let Some((programs, maps)) = &mut self.loaded {
            programs.finish_resize()?;
            *maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
            info!(vip_addresses = maps.capacities().vips, "maps resized");
        }
        Ok(())
    }
}

//! `sluice backend`: makes this host decapsulate packets for the VIPs that it serves.
//!
//! Tunnel devices of the kernel decapsulate where they can, the program at TC ingress otherwise. A
//! program at TC egress clamps the MSS option of SYN-ACKs, so that segments fit with an outer
//! header. As with the balancer, everything stays in place when the daemon stops.

mod assignment;
mod clamping;
mod presence;
mod repair;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;

use anyhow::anyhow;
use ipnet::IpNet;
use sluice_control::capacities::Capacities;
use sluice_control::config::Config;
use sluice_datapath::Family;
use sluice_datapath::abi::maps::backend;
use sluice_datapath::abi::{LocalAddress, Port};
use tracing::{info, warn};

use crate::args::{BackendArgs, WaitArgs};
use crate::config_file::{self, ConfigFile};
use crate::daemon::core::{self, RoleDaemon, StartContext};
use crate::daemon::input::Input;
use crate::daemon::preflight::check_interfaces;
use crate::daemon::presence::{self as host_presence, Missing};
use crate::daemon::programs::Programs;
use crate::daemon::roles::{self, RoleSpec};
use crate::error::CliError;
use crate::kernel::attach::Attachment;
use crate::kernel::bpf::{self, BackendMaps, LoadParameters, Pins};
use crate::kernel::host::{
    BackendReport, BackendSetup, Decapsulation, Host, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4,
};
use crate::kernel::netlink::{HostChanges, Netlink};
use crate::notice::Notice;
use crate::serve::protocol::RoleReport;

use assignment::Assignment;

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

/// Runs `sluice backend` until a signal stops it.
pub fn run(args: &BackendArgs) -> Result<(), CliError> {
    core::run::<BackendDaemon>(args)
}

/// The state of a backend.
struct BackendDaemon {
    instance: String,
    assignment: Assignment,
    /// Digest of the configuration's text.
    config_digest: u64,
    capacities: Capacities,
    host: Host,
    pins: Pins,
    decapsulating: Attachment,
    clamping: Attachment,
    /// The programs and their maps, if one of the programs is needed.
    loaded: Option<(Programs, BackendMaps)>,
    /// The port of GUE that the programs were loaded with.
    gue_port: Port,
    /// The addresses for which the program decapsulates.
    by_program: Vec<IpAddr>,
    /// Whether a tunnel device decapsulates.
    by_device: bool,
    /// The interfaces where reverse-path filtering must not be strict.
    loose_rp_filter: Vec<String>,
    /// The logged reason why the host cannot be restored.
    problem: Option<String>,
    /// The interfaces through which replies to clients leave.
    reply_interfaces: Vec<String>,
    pending: BackendPending,
    /// Failed changes, until they are tried again.
    failed: BackendPending,
}

/// The pending work of [`BackendDaemon::apply`].
#[derive(Debug, Default, Clone, Copy)]
struct BackendPending {
    /// Bring the host to the assignment.
    assignment: bool,
    /// Restore what other programs changed, and follow the MTU of interfaces.
    host: bool,
}

/// The host's set-up for an assignment, with tunnel devices or without.
fn setup(assignment: &Assignment, tunnels: bool) -> BackendSetup<'_> {
    BackendSetup {
        interfaces: &assignment.interfaces,
        local: &assignment.local,
        vips: &assignment.vips,
        tunnels,
        keep_rp_filter: assignment.keep_rp_filter,
        tunnel_v4: TUNNEL_V4,
        tunnel_v6: TUNNEL_V6,
        tunnel_v6_in_v4: TUNNEL_V6_IN_V4,
    }
}

impl RoleDaemon for BackendDaemon {
    type Args = BackendArgs;
    type Files = ConfigFile;
    type Prepared = (ConfigFile, Assignment);

    const ROLE: &'static RoleSpec = &roles::BACKEND;

    fn read(args: &BackendArgs) -> Result<ConfigFile, CliError> {
        Ok(config_file::load(&args.config)?)
    }

    fn instance(file: &ConfigFile) -> &str {
        file.config.instance()
    }

    fn wait(args: &BackendArgs) -> &WaitArgs {
        &args.wait
    }

    async fn missing(
        args: &BackendArgs,
        file: &ConfigFile,
        netlink: &Netlink,
    ) -> Result<Vec<Missing>, CliError> {
        presence::missing(args, &file.config, netlink).await
    }

    async fn prepare(
        args: &BackendArgs,
        file: ConfigFile,
        netlink: &Netlink,
    ) -> Result<Self::Prepared, CliError> {
        let assignment = presence::assignment(args, &file.config, netlink).await?;
        check_interfaces(netlink, &assignment.interfaces).await?;
        if let Some(clamping) = &assignment.clamping {
            check_interfaces(netlink, clamping.configured_interfaces()).await?;
        }
        Ok((file, assignment))
    }

    async fn start(
        (ConfigFile { config, digest }, assignment): Self::Prepared,
        StartContext { host, pins, .. }: StartContext,
    ) -> Result<Self, CliError> {
        let instance = config.instance().to_owned();
        let [decapsulating, clamping] = Self::attachments(&config);
        let by_program = presence::decapsulated_before(&instance, &assignment.local)?;
        let mut daemon = Self {
            decapsulating,
            clamping,
            instance,
            assignment,
            config_digest: digest,
            capacities: config.capacities(),
            host,
            pins,
            loaded: None,
            gue_port: Port::default(),
            by_program,
            by_device: true,
            loose_rp_filter: Vec::new(),
            problem: None,
            reply_interfaces: Vec::new(),
            pending: BackendPending { assignment: true, ..BackendPending::default() },
            failed: BackendPending::default(),
        };
        daemon.apply().await?;
        Ok(daemon)
    }

    async fn reload(&mut self, args: &BackendArgs, file: ConfigFile) -> Result<(), CliError> {
        if file.config.instance() != self.instance {
            return Err(CliError::bad_input(anyhow!(
                "the instance cannot change while the daemon runs; restart it"
            )));
        }
        let netlink = self.host.netlink();
        let missing = Self::missing(args, &file, netlink).await?;
        let known = presence::missing_of(&self.assignment, netlink).await?;
        host_presence::check_reload(&missing, &known)?;
        let (file, assignment) = Self::prepare(args, file, netlink).await?;
        let [decapsulating, clamping] = Self::attachments(&file.config);
        self.decapsulating.check_move(&self.host, &decapsulating).await?;
        self.clamping.check_move(&self.host, &clamping).await?;
        self.decapsulating.move_to(decapsulating);
        self.clamping.move_to(clamping);
        self.assignment = assignment;
        self.config_digest = file.digest;
        self.capacities = file.config.capacities();
        self.pending.assignment = true;
        Ok(())
    }

    async fn take(&mut self, input: Input) -> Result<(), CliError> {
        match input {
            // Routes of others change nothing here.
            Input::HostChanged(changes) if !self.is_concerned(&changes) => {}
            Input::HostChanged(_) | Input::Refresh => {
                self.pending.assignment |= std::mem::take(&mut self.failed).assignment;
                self.pending.host = true;
            }
            // Inputs of the core and of other roles.
            Input::Stop
            | Input::Reload(_)
            | Input::Inspect
            | Input::Failed(_)
            | Input::AclLoaded(_)
            | Input::PathErrors(_)
            | Input::PathMtuExpired => {}
        }
        Ok(())
    }

    fn inspect(&mut self) -> Result<(), CliError> {
        if let Some((programs, _)) = &self.loaded {
            self.host.count_repairs(programs.pin_again()?);
        }
        self.repair_sysctls();
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), CliError> {
        let pending = std::mem::take(&mut self.pending);
        if pending.assignment {
            self.apply_assignment().await.inspect_err(|_| self.failed.assignment = true)?;
        } else if pending.host {
            self.repair().await;
        }
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.failed.assignment
    }

    fn log_ready(&self) {
        info!(
            backend = %self.assignment.name,
            vip_addresses = self.assignment.vips.len(),
            "ready: serving"
        );
    }

    fn report(&self) -> RoleReport {
        let attachments = [&self.decapsulating, &self.clamping];
        let attaching = attachments.into_iter().flat_map(Attachment::problems);
        let problems = self.problem.as_deref().into_iter().chain(attaching);
        RoleReport {
            config_digest: format!("{:016x}", self.config_digest),
            interfaces: self.assignment.interfaces.clone(),
            notices: Notice::list(problems.map(Notice::problem)),
            repairs: self.host.repairs(),
        }
    }

    fn is_ephemeral(args: &BackendArgs) -> bool {
        args.ephemeral
    }

    fn config_file(args: &BackendArgs) -> &Path {
        &args.config
    }
}

impl BackendDaemon {
    /// Whether changes may concern the set-up: routes only if they are default routes, or those of
    /// VIP prefixes.
    fn is_concerned(&self, changes: &HostChanges) -> bool {
        let is_ours = |route: &IpNet| {
            route.prefix_len() == 0 || self.assignment.vips.binary_search(route).is_ok()
        };
        changes.links
            || changes.filters
            || !changes.addresses.is_empty()
            || changes.routes.iter().any(is_ours)
    }

    /// The attachments of the programs that decapsulate and clamp.
    fn attachments(config: &Config) -> [Attachment; 2] {
        let [decapsulating, clamping] = Self::ROLE.programs else {
            unreachable!("the role has two programs")
        };
        [decapsulating, clamping]
            .map(|program| Self::ROLE.attachment(program, config.instance(), config.priority()))
    }

    /// Brings the host to the assignment: first adds what is new, then removes what is not wanted
    /// any more.
    async fn apply_assignment(&mut self) -> Result<(), CliError> {
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
    fn decapsulated_by_program(&self, report: &BackendReport) -> Vec<IpAddr> {
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
    async fn load(&mut self, local: &[IpAddr]) -> Result<(), CliError> {
        self.by_program = local.to_vec();
        if self.filters_ingress() || self.assignment.clamping.is_some() {
            let gue_port = Port::new(self.assignment.gue_port.unwrap_or(0));
            let parameters =
                LoadParameters::backend(LOCAL_ADDRESSES, self.capacities.vips, gue_port);
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
            self.finish_resize().await?;
            if let Some((programs, maps)) = &mut self.loaded
                && let Some(resized) = programs.resize(&parameters)?
            {
                programs.adopt(resized);
                *maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
                self.finish_resize().await?;
            }
        }
        if let Some((_, maps)) = &mut self.loaded {
            let Assignment { vips, balancers, .. } = &self.assignment;
            let entries = self.assignment.local.iter().map(|address| {
                let is_own = local.contains(address);
                (*address, if is_own { LocalAddress::BY_PROGRAM } else { LocalAddress::BY_DEVICE })
            });
            maps.set(&entries.collect::<Vec<_>>(), vips, balancers).map_err(CliError::operation)?;
        }
        self.set_largest_segments().await
    }

    /// Whether the program at ingress is needed: to decapsulate, or to check the sources of packets
    /// that a tunnel device decapsulates.
    fn filters_ingress(&self) -> bool {
        !self.by_program.is_empty() || !self.assignment.balancers.is_empty()
    }

    /// Writes the largest segment of each family where it differs.
    async fn set_largest_segments(&mut self) -> Result<(), CliError> {
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
        self.reply_interfaces = match &self.assignment.clamping {
            Some(clamping) => clamping
                .reply_interfaces(self.host.netlink(), &self.assignment.interfaces)
                .await
                .map_err(CliError::operation)?,
            None => Vec::new(),
        };
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

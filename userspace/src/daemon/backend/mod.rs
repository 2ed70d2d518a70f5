//! `sluice backend`: makes this host decapsulate packets for the VIPs that it serves.
//!
//! Tunnel devices of the kernel decapsulate where they can, the program at TC ingress otherwise. A
//! program at TC egress clamps the MSS option of SYN-ACKs, so that segments fit with an outer
//! header. As with the balancer, everything stays in place when the daemon stops.

mod assignment;
mod clamping;
mod converge;
mod presence;
mod repair;

use std::net::IpAddr;
use std::path::Path;

use anyhow::anyhow;
use ipnet::IpNet;
use sluice_control::capacities::Capacities;
use sluice_control::config::Config;
use sluice_datapath::abi::Port;
use tracing::info;

use crate::args::{BackendArgs, WaitArgs};
use crate::config_file::{self, ConfigFile};
use crate::daemon::core::{self, RoleDaemon, StartContext};
use crate::daemon::input::Input;
use crate::daemon::preflight::check_interfaces;
use crate::daemon::presence::{self as host_presence, InterfaceList, Missing};
use crate::daemon::programs::Programs;
use crate::error::CliError;
use crate::kernel::attach::Attachment;
use crate::kernel::bpf::{BackendMaps, Pins};
use crate::kernel::host::Host;
use crate::kernel::netlink::{HostChanges, Netlink};
use crate::notice::Notice;
use crate::roles::{self, RoleSpec};
use crate::serve::protocol::RoleReport;
use crate::text;

use assignment::Assignment;

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
    /// With `host`: follow default routes, too.
    default_routes: bool,
}

impl RoleDaemon for BackendDaemon {
    type Args = BackendArgs;
    type Files = ConfigFile;
    type Prepared = (ConfigFile, Assignment);

    const ROLE: &'static RoleSpec = &roles::BACKEND;

    fn read(args: &BackendArgs) -> Result<ConfigFile, CliError> {
        Ok(config_file::load(&args.config)?)
    }

    fn digest(file: &ConfigFile) -> u64 {
        file.digest
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
        check_interfaces(netlink, &assignment.interfaces, &assignment.list).await?;
        if let Some(clamping) = &assignment.clamping {
            let list = InterfaceList::Option("--reply-interface");
            check_interfaces(netlink, clamping.configured_interfaces(), &list).await?;
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
                "{}: instance: the name cannot change while the daemon runs; restart it",
                args.config.display()
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
            Input::HostChanged(changes) => {
                self.look_at_host(changes.routes.iter().any(|route| route.prefix_len() == 0));
            }
            Input::Refresh => self.look_at_host(true),
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
            self.repair(pending.default_routes).await;
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
            config_digest: text::digest(self.config_digest),
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
    /// Notes that the host may have changed.
    fn look_at_host(&mut self, default_routes: bool) {
        self.pending.assignment |= std::mem::take(&mut self.failed).assignment;
        self.pending.host = true;
        self.pending.default_routes |= default_routes;
    }

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
}

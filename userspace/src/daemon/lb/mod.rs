//! `sluice lb`: fills the maps, attaches the program, and keeps both as configured.
//!
//! The maps are filled before the program is attached, so no packet meets empty maps. Packets only
//! need what is in the kernel, pinned or attached, so the daemon may stop or be killed at any time.
//! The next daemon adopts what it finds and changes what differs.

mod acl;
mod config;
mod converge;
mod path_mtus;
mod routing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::anyhow;
use sluice_control::config::Config;
use sluice_control::desired::Desired;
use sluice_control::have::Have;
use sluice_control::step::Step;
use sluice_datapath::abi::maps::balancer;
use sluice_datapath::abi::{Features, Settings};
use tracing::{info, warn};

use crate::args::{LbArgs, WaitArgs};
use crate::daemon::acl::{self as source_acls, AclLoader, AclScope};
use crate::daemon::core::{self, RoleDaemon, StartContext};
use crate::daemon::input::Input;
use crate::daemon::preflight::{check_interfaces, check_own_addresses};
use crate::daemon::presence::{self, InterfaceList, Missing};
use crate::daemon::programs::{Programs, Resized};
use crate::error::CliError;
use crate::kernel::attach::Attachment;
use crate::kernel::bpf::{BalancerMaps, LoadParameters, Pins};
use crate::kernel::host::Host;
use crate::kernel::netlink::Netlink;
use crate::kernel::routing::next_hops::NextHops;
use crate::notice::Notice;
use crate::roles::{self, RoleSpec};
use crate::serve::protocol::RoleReport;
use crate::text;

use config::LbConfig;
use path_mtus::PathMtuTracker;

/// Runs `sluice lb` until a signal stops it.
pub fn run(args: &LbArgs) -> Result<(), CliError> {
    core::run::<LbDaemon>(args)
}

/// The state of a balancer.
struct LbDaemon {
    config: LbConfig,
    host: Host,
    pins: Pins,
    programs: Programs,
    maps: BalancerMaps,
    /// The constants of the program that is loaded.
    settings: Settings,
    attachment: Attachment,
    next_hops: NextHops,
    /// The next hops that are out of date.
    lookups: Lookups,
    path_mtus: PathMtuTracker,
    /// The notices about next hops that were logged.
    noticed: BTreeSet<Notice>,
    acls: AclLoader,
    /// ACLs whose files could not be read again, with the errors. The ACLs in force are older.
    stale_acls: BTreeMap<AclScope, String>,
    /// Whether packets are forwarded. Before that, source ACLs are loaded first.
    is_forwarding: bool,
    /// ACLs that were put in place and are not marked yet.
    new_acls: Vec<AclScope>,
    /// Programs over resized maps, which a reload has loaded.
    resized: Option<Resized>,
    /// The plan that a reload has checked.
    planned: Option<Planned>,
    pending: LbPending,
    /// Failed changes, until they are tried again.
    failed: LbPending,
}

/// Desired state, and the steps to it.
struct Planned {
    desired: Desired,
    have: Have,
    steps: Vec<Step>,
}

/// The pending work of [`LbDaemon::apply`].
#[derive(Debug, Default, Clone, Copy)]
struct LbPending {
    /// Look at the interfaces, and attach where the filter is missing.
    attachments: bool,
    /// Bring the maps and the program to the configuration.
    configuration: bool,
    /// Write next hops.
    next_hops: bool,
    /// Start to load source ACLs.
    acls: bool,
}

impl LbPending {
    const CONFIGURATION: Self =
        Self { attachments: false, configuration: true, next_hops: true, acls: true };

    fn any(self) -> bool {
        self.attachments || self.configuration || self.next_hops || self.acls
    }

    fn or(self, other: Self) -> Self {
        Self {
            attachments: self.attachments || other.attachments,
            configuration: self.configuration || other.configuration,
            next_hops: self.next_hops || other.next_hops,
            acls: self.acls || other.acls,
        }
    }
}

impl RoleDaemon for LbDaemon {
    type Args = LbArgs;
    type Files = LbConfig;
    /// The configuration, and the next hops of its backends.
    type Prepared = (LbConfig, NextHops);

    const ROLE: &'static RoleSpec = &roles::LB;

    fn read(args: &LbArgs) -> Result<LbConfig, CliError> {
        LbConfig::read(args)
    }

    fn check_at_start(config: &LbConfig) -> Result<(), CliError> {
        source_acls::check(&config.config).map_err(CliError::bad_input)?;
        Ok(())
    }

    fn digest(config: &LbConfig) -> u64 {
        config.digest
    }

    fn instance(config: &LbConfig) -> &str {
        config.config.instance()
    }

    fn wait(args: &LbArgs) -> &WaitArgs {
        &args.wait
    }

    async fn missing(
        args: &LbArgs,
        config: &LbConfig,
        netlink: &Netlink,
    ) -> Result<Vec<Missing>, CliError> {
        let mut missing = presence::interfaces(netlink, &config.interfaces, &list(args)).await?;
        let own = netlink.usable_addresses().await.map_err(CliError::operation)?;
        let file = args.config.display();
        let sources = config.sources();
        let sources = sources.map(|(address, field)| (address, format!("{file}: {field}")));
        missing.extend(presence::addresses(&own, sources));
        Ok(missing)
    }

    async fn prepare(
        args: &LbArgs,
        config: LbConfig,
        netlink: &Netlink,
    ) -> Result<Self::Prepared, CliError> {
        check_interfaces(netlink, &config.interfaces, &list(args)).await?;
        check_own_addresses(netlink, &config.config, &args.config).await?;
        let next_hops = find_next_hops(netlink, &config).await?;
        Ok((config, next_hops))
    }

    async fn start(
        (config, next_hops): Self::Prepared,
        StartContext { host, pins, inputs }: StartContext,
    ) -> Result<Self, CliError> {
        let settings = config.settings(&config.desired()?);
        // The maps may hold entries of an earlier configuration. While they do, a program that
        // receives packets must have all features, because the features of the attached one are not
        // recorded.
        let all_features = Settings { features: Features::ALL, ..settings };
        let is_resizing = Self::ROLE.object.unfinished_resize(&pins).is_some();
        // If the maps cannot be opened, no entries of an earlier configuration are in use.
        let earlier =
            BalancerMaps::open(&pins).and_then(|maps| maps.element(balancer::INSTANCE, 0)).ok();
        let is_changed = earlier
            .is_some_and(|record| record.config_digest != config.digest || record.changing != 0);
        let settings = if is_resizing || is_changed { all_features } else { settings };
        let parameters = LoadParameters::balancer(&settings, &config.capacities());
        let programs = Programs::load(Self::ROLE, &pins, &parameters)?;
        let maps = BalancerMaps::open(&pins).map_err(CliError::operation)?;
        let before = maps.element(balancer::INSTANCE, 0).map_err(CliError::operation)?;
        if before.layout != 0 && before.key_fingerprint != config.fingerprint() {
            warn!("the hash key changed; flows of untracked services move to other backends");
        }
        let attachment = Self::attachment(&config.config);
        let loaded = inputs.clone();
        let acls = AclLoader::new(move |acls| {
            // The core is gone when the daemon ends.
            let _ = loaded.blocking_send(Input::AclLoaded(acls));
        });
        let is_forwarding = !attachment.targets(&host).await?.is_empty();
        let mut daemon = Self {
            path_mtus: PathMtuTracker::new(inputs),
            config,
            host,
            pins,
            programs,
            maps,
            settings,
            attachment,
            next_hops,
            lookups: Lookups::default(),
            noticed: BTreeSet::new(),
            acls,
            stale_acls: BTreeMap::new(),
            is_forwarding,
            new_acls: Vec::new(),
            resized: None,
            planned: None,
            // Without forwarding, the ACLs are loaded before the program is attached.
            pending: LbPending { acls: is_forwarding, ..LbPending::CONFIGURATION },
            failed: LbPending::default(),
        };
        let planned = daemon.plan(&daemon.config)?;
        daemon.path_mtus.restore(&daemon.maps, &planned.have.backends)?;
        daemon.path_mtus.listen(daemon.config.config.underlay());
        if daemon.programs.is_resizing() {
            info!("finishing the map resize of an earlier daemon");
            daemon.finish_resize().await?;
        }
        let parameters = LoadParameters::balancer(&all_features, &daemon.config.capacities());
        if let Some(resized) = daemon.programs.resize(&parameters)? {
            daemon.adopt(resized, all_features)?;
            daemon.finish_resize().await?;
        }
        if daemon.settings == all_features {
            daemon.replace_attached().await?;
        }
        daemon.planned = Some(planned);
        daemon.apply().await?;
        Ok(daemon)
    }

    async fn reload(&mut self, args: &LbArgs, config: LbConfig) -> Result<(), CliError> {
        self.take_config(args, config).await
    }

    async fn take(&mut self, input: Input) -> Result<(), CliError> {
        match input {
            // The core handles these. A balancer sets no sysctls.
            Input::Stop | Input::Failed(_) | Input::Reload(_) | Input::Inspect => {}
            Input::AclLoaded(loaded) => self.take_acls(loaded)?,
            Input::PathErrors(reports) => self.take_path_errors(&reports),
            Input::PathMtuExpired => {
                self.path_mtus.expire();
                self.pending.next_hops = true;
            }
            Input::HostChanged(changes) => {
                if changes.links || changes.filters {
                    self.retry();
                }
                self.note_route_changes(&changes);
            }
            Input::Refresh => {
                self.retry();
                self.lookups = Lookups::All;
            }
        }
        Ok(())
    }

    async fn look_up(&mut self) {
        self.look_up_routes().await;
    }

    fn inspect(&mut self) -> Result<(), CliError> {
        self.host.count_repairs(self.programs.pin_again()?);
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), CliError> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.any() {
            return Ok(());
        }
        let applied = self.converge(pending).await;
        if applied.is_err() {
            self.failed = self.failed.or(pending);
        }
        self.path_mtus.schedule_expiry();
        applied
    }

    fn is_pending(&self) -> bool {
        self.failed.any()
    }

    fn loaded(&self) -> Option<Result<(), String>> {
        if self.acls.is_running() {
            return None;
        }
        let errors: Vec<_> = self.stale_acls.values().map(String::as_str).collect();
        Some(if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) })
    }

    fn log_ready(&self) {
        let interfaces = self.config.interfaces.join(",");
        let config_digest = text::digest(self.config.digest);
        let waiting = self.waiting_for_acls();
        if waiting.is_empty() {
            info!(%interfaces, %config_digest, "ready: forwarding");
        } else {
            let services = waiting.join(",");
            info!(
                %interfaces,
                %config_digest,
                %services,
                "ready: forwarding, except for new services whose source ACL is not loaded yet"
            );
        }
    }

    fn report(&self) -> RoleReport {
        let attaching = self.attachment.problems().map(Notice::problem);
        let waiting = self.waiting_for_acls().into_iter().map(|service| {
            Notice::warning(format!(
                "service {service}: its source ACL is not loaded yet; a new service forwards \
                 nothing until then"
            ))
        });
        let stale = self.stale_acls.iter().map(|(scope, error)| {
            Notice::problem(format!("the source ACL of {scope} is older than its files: {error}"))
        });
        let next_hops = self.noticed.iter().cloned();
        RoleReport {
            config_digest: text::digest(self.config.digest),
            interfaces: self.config.interfaces.clone(),
            notices: Notice::list(attaching.chain(waiting).chain(stale).chain(next_hops)),
            repairs: self.host.repairs(),
        }
    }

    fn is_ephemeral(args: &LbArgs) -> bool {
        args.ephemeral
    }

    fn config_file(args: &LbArgs) -> &Path {
        &args.config
    }
}

/// Next hops that are out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lookups {
    /// Those to all backends.
    All,
    /// Those to some addresses.
    Some(BTreeSet<IpAddr>),
}

impl Default for Lookups {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

/// The place that names the interfaces.
fn list(args: &LbArgs) -> InterfaceList {
    InterfaceList::of(&args.interfaces, &args.config)
}

async fn find_next_hops(netlink: &Netlink, config: &LbConfig) -> Result<NextHops, CliError> {
    let underlay = config.config.underlay();
    NextHops::find(netlink, underlay, config.overhead(), config.backend_addresses())
        .await
        .map_err(CliError::operation)
}

impl LbDaemon {
    /// Looks at the interfaces, and makes failed changes pending again.
    fn retry(&mut self) {
        self.pending = self.pending.or(std::mem::take(&mut self.failed));
        self.pending.attachments = true;
    }

    /// Checks a configuration that was read again as a start does, and takes it as the state. A
    /// change that is impossible while packets are forwarded is refused here.
    async fn take_config(&mut self, args: &LbArgs, config: LbConfig) -> Result<(), CliError> {
        for (what, is_same) in [
            ("instance: the name", config.config.instance() == self.config.config.instance()),
            ("hash_key_file: the key", config.fingerprint() == self.config.fingerprint()),
        ] {
            if !is_same {
                return Err(CliError::bad_input(anyhow!(
                    "{}: {what} cannot change while the daemon runs; restart it",
                    args.config.display()
                )));
            }
        }
        let netlink = self.host.netlink();
        let missing = Self::missing(args, &config, netlink).await?;
        presence::check_reload(&missing, &Self::missing(args, &self.config, netlink).await?)?;
        let (config, next_hops) = Self::prepare(args, config, netlink).await?;
        let attachment = Self::attachment(&config.config);
        self.attachment.check_move(&self.host, &attachment).await?;
        let planned = self.plan(&config)?;
        let parameters = LoadParameters::balancer(&self.settings, &config.capacities());
        if self.programs.is_resizing() && !self.programs.fit(&parameters)? {
            // The earlier resize must end before another one, on the interfaces in force. With the
            // same limits it may also end on those of the new configuration.
            self.finish_resize().await?;
        }
        let resized = match self.programs.is_resizing() {
            true => None,
            false => self.programs.resize(&parameters)?,
        };
        // Nothing can be refused any more: the new configuration becomes the state.
        self.take_next_hops(next_hops);
        self.attachment.move_to(attachment);
        self.config = config;
        self.path_mtus.listen(self.config.config.underlay());
        self.resized = resized;
        self.planned = Some(planned);
        self.pending = LbPending::CONFIGURATION;
        self.failed = LbPending::default();
        Ok(())
    }

    fn attachment(config: &Config) -> Attachment {
        Self::ROLE.attachment(&Self::ROLE.programs[0], config.instance(), config.priority())
    }
}

//! `sluice lb`: fills the maps, attaches, and keeps both as the configuration says.
//!
//! Filling comes before attaching: no packet meets an empty program. Everything that packets need
//! is in the kernel, pinned or attached, so the daemon may end or die at any time; the next one
//! adopts what is there and changes only what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use sd_notify::NotifyState;
use siphasher::sip::SipHasher24;
use sluice_control::capacities::Capacities;
use sluice_control::config::Config;
use sluice_control::desired::Desired;
use sluice_control::have::Have;
use sluice_control::step::Step;
use sluice_control::{apply, plan};
use sluice_datapath::abi::{Features, InstanceRecord, Port, Rate, Settings};
use sluice_datapath::{Address, LAYOUT_VERSION};
use sluice_maglev::Seed;
use tracing::{debug, info, warn};

use crate::args::LbArgs;
use crate::clock;
use crate::config_file;
use crate::daemon::acl::{self as acl_files, Loader};
use crate::daemon::guard::InstanceGuard;
use crate::daemon::preflight::{self, check_interfaces, check_own_addresses};
use crate::daemon::runtime::{self, REFRESH, SETTLE};
use crate::daemon::signals::{Command, Signals};
use crate::daemon::teardown;
use crate::error::CliError;
use crate::kernel::attach::tc::Attachment;
use crate::kernel::bpf::{self, BalancerMaps, PendingResize, Pins, Program};
use crate::kernel::host::Host;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::kernel::netlink::{Direction, FilterSpec, Netlink};
use crate::kernel::routing::next_hops::{NextHops, Source};
use crate::kernel::routing::path_mtu::{Listener, Outcome, PathMtus};
use crate::key::HashKey;
use crate::role::Role;

mod acl;
mod path_mtus;

/// Priority of the filter: early, with room for others before it.
const PRIORITY: u16 = 100;

/// How often each CPU tells a client that its packet does not fit: as often as Linux sends ICMP by
/// default (`net.ipv4.icmp_msgs_per_sec`, `icmp_msgs_burst`).
const ERRORS: Rate = Rate::new(1_000, 50);

/// The balancer's filter on its interfaces.
pub(crate) fn filter(instance: &str) -> FilterSpec {
    FilterSpec { name: format!("sluice_lb:{instance}"), priority: PRIORITY }
}

/// Runs `sluice lb` until it is told to end.
///
/// # Errors
///
/// [`CliError::BadInput`] before anything was touched, [`CliError::Operation`] with what failed.
pub fn run(args: &LbArgs) -> Result<(), CliError> {
    let input = Input::read(args)?;
    acl_files::check(&input.config).map_err(CliError::bad_input)?;
    preflight::check()?;
    runtime::log();
    runtime::block_on(serve(args, input))
}

/// What the files say.
struct Input {
    config: Config,
    key: HashKey,
    interfaces: Vec<String>,
    /// Digest of the configuration's text, to tell whether a running instance has it.
    digest: u64,
}

impl Input {
    fn read(args: &LbArgs) -> Result<Self, CliError> {
        let config = config_file::load(&args.config)?;
        let key = HashKey::load(config.hash_key_file())?;
        let interfaces =
            if args.interfaces.is_empty() { config.interfaces() } else { &args.interfaces }
                .to_vec();
        Ok(Self { digest: digest_of(&args.config)?, config, key, interfaces })
    }

    /// What the maps should hold.
    fn want(&self) -> Result<Desired, CliError> {
        let want = Desired::new(&self.config, &Seed::new(self.key.table_seed()));
        want.map_err(|(service, error)| anyhow!("service {service}: {error}"))
            .map_err(CliError::BadInput)
    }

    /// What the program is loaded with.
    fn settings(&self, want: &Desired) -> Settings {
        let underlay = self.config.underlay();
        let (source_v4, source_bits_v4) =
            source(underlay.v4.map(Address::from), underlay.v4_sources.map(IpNet::V4));
        let (source_v6, source_bits_v6) =
            source(underlay.v6.map(Address::from), underlay.v6_sources.map(IpNet::V6));
        let spread = source_bits_v4 | source_bits_v6 != 0;
        Settings {
            features: want.features().with_if(spread, Features::SOURCE_SPREADING),
            hash_key: self.key.flow_key(),
            source_v4,
            source_v6,
            source_bits_v4,
            source_bits_v6,
            gue_port: Port::new(underlay.gue_port),
            errors: ERRORS,
        }
    }

    fn capacities(&self) -> Capacities {
        self.config.capacities()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let underlay = self.config.underlay();
        let addresses = self.config.backends().iter().flat_map(|backend| backend.addresses());
        addresses.filter(move |address| underlay.address_for(*address).is_some())
    }
}

/// The source of outer headers of one family, and the bits of its last word, wire order, that are
/// each flow's own.
fn source(own: Option<Address>, prefix: Option<IpNet>) -> (Address, u32) {
    let Some(prefix) = prefix else { return (own.unwrap_or(Address::NONE), 0) };
    let bits = prefix.max_prefix_len() - prefix.prefix_len();
    (Address::from(prefix.network()), u32::MAX.unbounded_shr(32 - u32::from(bits).min(32)).to_be())
}

/// Digest of a configuration's text, as `status` shows it.
pub(crate) fn digest_of(file: &Path) -> Result<u64, CliError> {
    let text =
        fs::read(file).with_context(|| file.display().to_string()).map_err(CliError::BadInput)?;
    Ok(SipHasher24::new().hash(&text))
}

/// The running balancer.
struct Balancer {
    input: Input,
    host: Host,
    pins: Pins,
    program: Program,
    maps: BalancerMaps,
    settings: Settings,
    next_hops: NextHops,
    /// MTUs that routers on the way to backends have told.
    path_mtus: PathMtus,
    /// Hears of them.
    listener: Listener,
    /// What was said of MTUs on the way to addresses, to say each once.
    warned_paths: BTreeSet<(IpAddr, Outcome)>,
    /// Warnings about next hops that were said, to say each once.
    warned: BTreeMap<IpAddr, String>,
    attachment: Attachment,
    /// The maps that were replaced by some of other sizes, until nothing reads them.
    replaced: Option<PendingResize>,
    lists: Loader,
    /// Whether the maps hold what the configuration says: a change that failed half-way is tried
    /// again.
    complete: bool,
}

async fn serve(args: &LbArgs, input: Input) -> Result<(), CliError> {
    let netlink = Netlink::connect().map_err(CliError::operation)?;
    check_interfaces(&netlink, &input.interfaces).await?;
    check_own_addresses(&netlink, &input.config).await?;
    // Asked before anything is touched: a wrong underlay address is bad input.
    let next_hops = find_next_hops(&netlink, &input, Source::MustBeLocal).await?;
    let mut signals = Signals::listen()?;
    let mut changes = netlink.changes().map_err(CliError::operation)?;

    let instance = input.config.instance().to_owned();
    let guard = InstanceGuard::take(&instance, Role::Lb)?;
    let mut balancer = match Balancer::start(input, netlink, &guard.pins, next_hops).await {
        Ok(balancer) => balancer,
        Err(failure) => return Err(guard.give_up(failure).await),
    };
    runtime::notify(NotifyState::Ready);
    info!("ready: forwarding on {}", balancer.input.interfaces.join(", "));

    let mut refresh = tokio::time::interval(REFRESH);
    let mut hearing = true;
    loop {
        let asked = tokio::select! {
            asked = signals.next() => Some(asked),
            loaded = balancer.lists.loaded() => {
                balancer.take_lists(loaded).await;
                continue;
            }
            heard = balancer.listener.next() => {
                balancer.hear(&heard);
                continue;
            }
            () = path_mtus::expiry(balancer.path_mtus.next_expiry()) => {
                balancer.expire_path_mtus();
                continue;
            }
            changed = changes.changed(), if hearing => {
                if let Err(error) = changed {
                    warn!("cannot hear of route changes, so they are looked up every {} s: {error}", REFRESH.as_secs());
                    hearing = false;
                }
                tokio::time::sleep(SETTLE).await;
                if hearing && let Err(error) = changes.gather() {
                    debug!("cannot take all changes at once: {error}");
                }
                None
            }
            _ = refresh.tick() => None,
        };
        match asked {
            Some(Command::End) => break,
            Some(Command::Reload) => {
                runtime::notify(NotifyState::Reloading);
                match balancer.reload(args).await {
                    Ok(()) => info!("ready: reloaded {}", args.config.display()),
                    Err(failure) => {
                        warn!(
                            "reload refused, nothing of it is in force beyond what was logged: {failure}"
                        )
                    }
                }
                runtime::notify(NotifyState::Ready);
            }
            None => {
                if let Err(failure) = balancer.refresh().await {
                    warn!("cannot refresh, so what was found last stays in use: {failure}");
                }
            }
        }
    }
    runtime::notify(NotifyState::Stopping);
    if args.ephemeral {
        info!("ending, and with it forwarding (--ephemeral)");
        drop(balancer);
        return teardown::role(&instance, Role::Lb, Some(guard.lock)).await.map(|_| ());
    }
    info!("ending; packets keep flowing until `sluice down --instance {instance}`");
    Ok(())
}

async fn find_next_hops(
    netlink: &Netlink,
    input: &Input,
    source: Source,
) -> Result<NextHops, CliError> {
    let overheads =
        input.config.services().iter().map(|service| service.encapsulation().overhead());
    let overhead = overheads.max().unwrap_or(0);
    let found =
        NextHops::find(netlink, input.config.underlay(), overhead, input.addresses(), source).await;
    found.map_err(CliError::bad_input)
}

impl Balancer {
    /// Loads, fills the maps, then attaches.
    async fn start(
        input: Input,
        netlink: Netlink,
        pins: &Pins,
        next_hops: NextHops,
    ) -> Result<Self, CliError> {
        let journal = Journal::open(Path::new(STATE_DIRECTORY), input.config.instance(), Role::Lb)
            .map_err(CliError::operation)?;
        let mut want = input.want()?;
        let settings = input.settings(&want);
        // As long as the maps hold what an earlier daemon was told, a program that packets meet
        // must find all of it, and nobody wrote down what the one that they meet now was loaded
        // with.
        let every_feature = Settings { features: Features::ALL, ..settings };
        let replaced = bpf::unfinished_balancer(pins);
        // Without maps that can be opened there is nobody yet whom it could concern.
        let told = BalancerMaps::open(pins).and_then(|maps| maps.instance()).ok();
        let told_otherwise =
            told.is_some_and(|told| told.config_digest != input.digest || told.changing != 0);
        let settings = if replaced.is_some() || told_otherwise { every_feature } else { settings };
        let program = bpf::load_balancer(pins, &settings, &input.capacities())
            .map_err(CliError::operation)?;
        let maps = BalancerMaps::open(pins).map_err(CliError::operation)?;
        let before = maps.instance().map_err(CliError::operation)?;
        if before.layout != 0 && before.key_fingerprint != fingerprint(&input.key) {
            warn!("the hash key is another one than before: flows of untracked services move");
        }
        let attachment = Attachment::new(filter(input.config.instance()), Direction::Ingress);
        let mut balancer = Self {
            host: Host::new(netlink, journal),
            pins: pins.clone(),
            input,
            program,
            maps,
            settings,
            next_hops,
            path_mtus: PathMtus::default(),
            listener: Listener::default(),
            warned_paths: BTreeSet::new(),
            warned: BTreeMap::new(),
            attachment,
            replaced,
            lists: Loader::new(),
            complete: false,
        };
        let (have, steps) = balancer.plan(&balancer.input, &mut want)?;
        balancer.restore_path_mtus(&have.backends)?;
        balancer.listen();
        let forwarding = !balancer.attachment.interfaces(&balancer.host).await?.is_empty();
        if balancer.replaced.is_some() {
            info!("an earlier daemon began to replace the maps for other limits");
            balancer.settle().await?;
        }
        if let Some((program, replaced)) = balancer.resize(&balancer.input, every_feature)? {
            balancer.take(program, replaced, every_feature)?;
            balancer.settle().await?;
        }
        if balancer.settings == every_feature {
            balancer.attachment.replace(&mut balancer.host, &balancer.program).await?;
        }
        balancer.apply(&want, &have, &steps).await?;
        balancer.read_lists();
        if !forwarding {
            // Nobody waits for anything, so the lists come first.
            balancer.wait_for_lists(&mut want).await?;
        }
        balancer.attach(&want).await?;
        Ok(balancer)
    }

    /// What the maps hold, and the steps from there to what is wanted.
    fn plan(&self, input: &Input, want: &mut Desired) -> Result<(Have, Vec<Step>), CliError> {
        let have = apply::have(&self.maps).map_err(CliError::operation)?;
        self.mark_listed(&input.config, &have, want)?;
        let steps = plan::plan(&have, want, input.capacities(), clock::now())
            .map_err(CliError::operation)?;
        Ok((have, steps))
    }

    /// Makes maps of the sizes that a configuration's limits ask for, where they differ, and a
    /// program over them; nothing runs it yet.
    fn resize(
        &self,
        input: &Input,
        settings: Settings,
    ) -> Result<Option<(Program, PendingResize)>, CliError> {
        bpf::resize_balancer(&self.pins, &settings, &input.capacities()).map_err(
            |error| match error {
                bpf::Error::InUse { .. } => CliError::bad_input(error),
                error => CliError::operation(error),
            },
        )
    }

    /// Takes a program and its maps, which hold what the ones before them do.
    fn take(
        &mut self,
        program: Program,
        replaced: PendingResize,
        settings: Settings,
    ) -> Result<(), CliError> {
        self.complete = false;
        (self.program, self.replaced) = (program, Some(replaced));
        self.settings = settings;
        self.maps = BalancerMaps::open(&self.pins).map_err(CliError::operation)?;
        Ok(())
    }

    /// Ends a replacement of maps: the program over the new ones everywhere, then the old ones
    /// away.
    async fn settle(&mut self) -> Result<(), CliError> {
        let Some(replaced) = &self.replaced else { return Ok(()) };
        self.attachment.ensure(&mut self.host, &self.input.interfaces, Some(&self.program)).await?;
        replaced.finish().map_err(CliError::operation)?;
        self.replaced = None;
        self.maps = BalancerMaps::open(&self.pins).map_err(CliError::operation)?;
        let Capacities { services, backends, vips, connections } = self.maps.capacities();
        info!(
            "maps replaced: {services} services, {backends} backends, {vips} VIPs, {connections} connections"
        );
        Ok(())
    }

    /// Makes the maps hold what the configuration says, once packets meet a program that finds what
    /// is added.
    async fn apply(&mut self, want: &Desired, have: &Have, steps: &[Step]) -> Result<(), CliError> {
        self.complete = false;
        let wider = wider(&self.settings, &self.input.settings(want));
        if wider != self.settings {
            self.replace_program(wider).await?;
        }
        self.next_hops
            .refresh(&mut self.maps, &have.backends, &self.path_mtus)
            .map_err(CliError::operation)?;
        self.write_down(true)?;
        for step in steps {
            info!("{step}");
            if matches!(step, Step::PutVips { .. }) {
                self.set_rates()?;
            }
            apply::apply(
                &mut self.maps,
                step,
                &|address| self.next_hops.towards(address, &self.path_mtus),
                clock::now(),
            )
            .with_context(|| format!("cannot {step}"))
            .map_err(CliError::Operation)?;
        }
        // New backends have next hops, but no neighbours yet.
        self.put_next_hops()?;
        self.warn_of_next_hops();
        self.write_down(false)
    }

    /// Says what is wrong with next hops, each thing once for as long as it lasts.
    fn warn_of_next_hops(&mut self) {
        /// So many are said one by one.
        const MAX_WARNINGS: usize = 20;
        let warned =
            |(address, warning): &(&IpAddr, &String)| self.warned.get(*address) != Some(*warning);
        let mut new = self.next_hops.warnings.iter().filter(warned);
        for (address, warning) in new.by_ref().take(MAX_WARNINGS) {
            warn!("backend address {address}: {warning}");
        }
        let more = new.count();
        if more > 0 {
            warn!(
                "of {more} more backend addresses there is such a thing to say; `sluice status` shows routes and MTUs"
            );
        }
        self.warned.clone_from(&self.next_hops.warnings);
    }

    fn write_down(&mut self, changing: bool) -> Result<(), CliError> {
        let applied_at =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = InstanceRecord {
            layout: LAYOUT_VERSION,
            changing: u32::from(changing),
            key_fingerprint: fingerprint(&self.input.key),
            config_digest: self.input.digest,
            applied_at,
        };
        self.maps.set_instance(&record).map_err(CliError::operation)
    }

    /// Loads the program with other settings and has it run where one of ours does.
    async fn replace_program(&mut self, settings: Settings) -> Result<(), CliError> {
        self.load(settings)?;
        self.attachment.replace(&mut self.host, &self.program).await
    }

    fn load(&mut self, settings: Settings) -> Result<(), CliError> {
        let capacities = self.input.capacities();
        self.program =
            bpf::load_balancer(&self.pins, &settings, &capacities).map_err(CliError::operation)?;
        self.settings = settings;
        Ok(())
    }

    /// Attaches the program where it is not attached yet; first replaces it when what is fixed at
    /// loading has changed.
    ///
    /// That comes after a plan's steps: a program that does not look for what they remove does no
    /// harm.
    async fn attach(&mut self, want: &Desired) -> Result<(), CliError> {
        self.set_rates()?;
        let settings = self.input.settings(want);
        if settings != self.settings {
            self.load(settings)?;
        }
        self.attachment.ensure(&mut self.host, &self.input.interfaces, Some(&self.program)).await?;
        self.remove_lists()?;
        self.complete = true;
        Ok(())
    }

    /// Makes the maps and the program what the configuration asks for.
    async fn revise(&mut self) -> Result<(), CliError> {
        let mut want = self.input.want()?;
        let (have, steps) = self.plan(&self.input, &mut want)?;
        self.apply(&want, &have, &steps).await?;
        self.attach(&want).await
    }

    /// Reads the configuration again and changes what differs. What cannot change under traffic is
    /// refused before anything is.
    async fn reload(&mut self, args: &LbArgs) -> Result<(), CliError> {
        let input = Input::read(args)?;
        for (what, same) in [
            ("instance", input.config.instance() == self.input.config.instance()),
            ("the hash key", fingerprint(&input.key) == fingerprint(&self.input.key)),
        ] {
            if !same {
                return Err(CliError::bad_input(anyhow!(
                    "{what} cannot change while the daemon runs; restart it"
                )));
            }
        }
        check_interfaces(self.host.netlink(), &input.interfaces).await?;
        check_own_addresses(self.host.netlink(), &input.config).await?;
        let next_hops = find_next_hops(self.host.netlink(), &input, Source::MustBeLocal).await?;
        if self.replaced.is_some() {
            self.input.interfaces.clone_from(&input.interfaces);
            self.settle().await?;
        }
        let mut want = input.want()?;
        let (have, steps) = self.plan(&input, &mut want)?;
        let resized = self.resize(&input, self.settings)?;
        // Up to here nothing has changed; from here on this configuration counts.
        self.take_next_hops(next_hops);
        self.input = input;
        self.listen();
        if let Some((program, replaced)) = resized {
            self.take(program, replaced, self.settings)?;
            self.settle().await?;
        }
        self.apply(&want, &have, &steps).await?;
        self.attach(&want).await?;
        self.read_lists();
        Ok(())
    }

    /// Looks routes up again, attaches again where the filter is gone, and completes a change that
    /// failed half-way.
    async fn refresh(&mut self) -> Result<(), CliError> {
        self.attachment.watch(&mut self.host, &self.input.interfaces, &self.program).await;
        self.settle().await?;
        let found = find_next_hops(self.host.netlink(), &self.input, Source::MayBeLost).await?;
        if found != self.next_hops {
            self.take_next_hops(found);
            let written = self.put_next_hops()?;
            info!("routes changed: {written} next hops written");
            self.warn_of_next_hops();
        }
        if !self.complete {
            self.revise().await?;
            info!("completed the change that had failed");
            self.read_lists();
        }
        Ok(())
    }
}

/// Settings with which a program finds what another one's finds, and what is wanted besides.
fn wider(present: &Settings, wanted: &Settings) -> Settings {
    let mut wider = Settings { features: present.features.with(wanted.features), ..*wanted };
    if wanted.source_v4.is_none() {
        (wider.source_v4, wider.source_bits_v4) = (present.source_v4, present.source_bits_v4);
    }
    if wanted.source_v6.is_none() {
        (wider.source_v6, wider.source_bits_v6) = (present.source_v6, present.source_bits_v6);
    }
    wider
}

/// The key's fingerprint as a number.
fn fingerprint(key: &HashKey) -> u64 {
    u64::from_str_radix(&key.fingerprint(), 16).unwrap_or(0)
}

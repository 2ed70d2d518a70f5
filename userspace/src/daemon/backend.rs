//! `sluice backend`: makes this host take packets for the VIPs that it serves.
//!
//! Encapsulated packets are unwrapped by the kernel's tunnel devices where it has them, by our
//! program at TC ingress where it has not. On the way out, a program at TC egress makes SYN-ACKs
//! tell clients of segments that fit with an outer header. Like the balancer, what is in place
//! stays in place when the daemon ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use sd_notify::NotifyState;
use sluice_control::capacities::Capacities;
use sluice_control::config::{self, Config};
use sluice_datapath::Family;
use sluice_datapath::abi::Port;
use tracing::{info, warn};

use crate::args::BackendArgs;
use crate::config_file;
use crate::daemon::guard::InstanceGuard;
use crate::daemon::preflight::{self, check_interfaces};
use crate::daemon::runtime::{self, REFRESH};
use crate::daemon::signals::{Command, Signals};
use crate::daemon::teardown;
use crate::error::CliError;
use crate::kernel::attach::tc::Attachment;
use crate::kernel::bpf::{self, BackendHost, BackendMaps, BackendPrograms, PendingResize, Pins};
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::kernel::host::{
    BackendSetup, Decapsulation, Host, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4,
};
use crate::kernel::netlink::{Direction, FilterSpec, Netlink};
use crate::role::Role;

mod clamping;

use clamping::Clamping;

/// Priority of the filter, behind the balancer's.
const PRIORITY: u16 = 101;

/// One address of each family.
const LOCAL_ADDRESSES: u32 = 2;

/// The filter that decapsulates, at ingress.
fn filter(instance: &str) -> FilterSpec {
    FilterSpec { name: format!("sluice_backend:{instance}"), priority: PRIORITY }
}

/// The filter that clamps, at egress.
fn clamp_filter(instance: &str) -> FilterSpec {
    FilterSpec { name: format!("sluice_clamp:{instance}"), priority: PRIORITY }
}

/// Runs `sluice backend` until it is told to end.
///
/// # Errors
///
/// [`CliError::BadInput`] before anything was touched, [`CliError::Operation`] with what failed.
pub fn run(args: &BackendArgs) -> Result<(), CliError> {
    let config = config_file::load(&args.config)?;
    preflight::check()?;
    runtime::log();
    runtime::block_on(serve(args, config))
}

/// What the configuration asks of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Assignment {
    name: String,
    /// This backend's addresses.
    local: Vec<IpAddr>,
    /// The VIP addresses and prefixes of the services that list it, whatever its weight: it may
    /// still hold their flows.
    vips: Vec<IpNet>,
    interfaces: Vec<String>,
    /// The port of GUE, where a service that lists it has that.
    gue_port: Option<u16>,
    /// Nothing is clamped without it.
    clamping: Option<Clamping>,
}

impl Assignment {
    /// Finds which backend this host is: by `--name`, or by its addresses.
    fn find(args: &BackendArgs, config: &Config, own: &[IpAddr]) -> Result<Self, anyhow::Error> {
        let position = match &args.name {
            Some(name) => {
                config.backends().iter().position(|backend| backend.name() == name).ok_or_else(
                    || {
                        anyhow!(
                            "{}: there is no backend {name:?}; --name must be one of backends[]",
                            args.config.display()
                        )
                    },
                )?
            }
            None => by_address(config, own).with_context(|| args.config.display().to_string())?,
        };
        let backend = &config.backends()[position];
        let serves = |service: &&config::ServiceConfig| {
            service.backends().iter().any(|listed| listed.backend() == position)
        };
        // Packets to a service's VIPs come to the backends of those to which its routes lead, too.
        let leads = |service: &config::ServiceConfig| {
            service.routes().iter().any(|to| serves(&&config.services()[to.service]))
        };
        let services =
            || config.services().iter().filter(|service| serves(service) || leads(service));
        // They come as the service says that has the backend.
        let own = config.services().iter().filter(serves);
        let overhead = own.map(|service| service.encapsulation().overhead()).max().unwrap_or(0);
        let vips: BTreeSet<IpNet> =
            services().flat_map(|service| service.vips()).map(|vip| vip.prefix()).collect();
        Ok(Self {
            name: backend.name().to_owned(),
            local: backend.addresses().collect(),
            interfaces: if args.interfaces.is_empty() {
                config.interfaces()
            } else {
                &args.interfaces
            }
            .to_vec(),
            gue_port: (overhead > 0).then_some(config.underlay().gue_port),
            clamping: Clamping::of(args, config, backend, overhead).filter(|_| !vips.is_empty()),
            vips: vips.into_iter().collect(),
        })
    }
}

fn by_address(config: &Config, own: &[IpAddr]) -> Result<usize, anyhow::Error> {
    let backends = config.backends().iter().enumerate();
    let mine: Vec<usize> = backends
        .filter(|(_, backend)| backend.addresses().any(|address| own.contains(&address)))
        .map(|(position, _)| position)
        .collect();
    match mine[..] {
        [position] => Ok(position),
        [] => Err(anyhow!(
            "no backend has an address of this host; add this host to backends[], or say --name"
        )),
        [first, second, ..] => {
            let name = |position: usize| config.backends()[position].name();
            Err(anyhow!(
                "this host has the addresses of both {} and {}; say --name",
                name(first),
                name(second)
            ))
        }
    }
}

/// The running backend.
struct Running {
    instance: String,
    host: Host,
    pins: Pins,
    decapsulating: Attachment,
    clamping: Attachment,
    /// The programs, where one of them is needed.
    programs: Option<(BackendPrograms, BackendMaps)>,
    /// The port of GUE that they know.
    gue_port: Port,
    /// Whether the program decapsulates now; tunnel devices may have come since it was loaded.
    by_program: bool,
    /// The interfaces through which clients are answered.
    replies: Vec<String>,
    capacities: Capacities,
    /// The maps that were replaced by some of other sizes, until nothing reads them.
    replaced: Option<PendingResize>,
}

async fn serve(args: &BackendArgs, config: Config) -> Result<(), CliError> {
    let netlink = Netlink::connect().map_err(CliError::operation)?;
    let mut assignment = find(args, &config, &netlink).await?;
    let mut signals = Signals::listen()?;

    let instance = config.instance().to_owned();
    let guard = InstanceGuard::take(&instance, Role::Backend)?;
    let mut running = match Running::start(netlink, &config, &guard.pins, &assignment).await {
        Ok(running) => running,
        Err(failure) => return Err(guard.give_up(failure).await),
    };
    runtime::notify(NotifyState::Ready);
    info!("ready: serving {} VIP addresses as {}", assignment.vips.len(), assignment.name);

    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            _ = refresh.tick() => {
                running.watch(&assignment).await;
                continue;
            }
        };
        match asked {
            Command::End => break,
            Command::Reload => {
                runtime::notify(NotifyState::Reloading);
                match running.reload(args).await {
                    Ok(found) => {
                        assignment = found;
                        info!(
                            "ready: serving {} VIP addresses as {}",
                            assignment.vips.len(),
                            assignment.name
                        );
                    }
                    Err(failure) => {
                        warn!(
                            "reload refused, nothing of it is in force beyond what was logged: {failure}"
                        )
                    }
                }
                runtime::notify(NotifyState::Ready);
            }
        }
    }
    runtime::notify(NotifyState::Stopping);
    if args.ephemeral {
        info!("ending, and with it serving (--ephemeral)");
        drop(running);
        return teardown::role(&instance, Role::Backend, Some(guard.lock)).await.map(|_| ());
    }
    info!("ending; packets are served until `sluice down --instance {instance}`");
    Ok(())
}

async fn find(
    args: &BackendArgs,
    config: &Config,
    netlink: &Netlink,
) -> Result<Assignment, CliError> {
    let own = netlink.local_addresses().await.map_err(CliError::operation)?;
    let own: Vec<IpAddr> = own.into_iter().map(|(_, address)| address).collect();
    let assignment = Assignment::find(args, config, &own).map_err(CliError::BadInput)?;
    check_interfaces(netlink, &assignment.interfaces).await?;
    if let Some(clamping) = &assignment.clamping {
        check_interfaces(netlink, clamping.named()).await?;
    }
    Ok(assignment)
}

impl Running {
    async fn start(
        netlink: Netlink,
        config: &Config,
        pins: &Pins,
        assignment: &Assignment,
    ) -> Result<Self, CliError> {
        let instance = config.instance().to_owned();
        let journal = Journal::open(Path::new(STATE_DIRECTORY), &instance, Role::Backend)
            .map_err(CliError::operation)?;
        let mut running = Self {
            host: Host::new(netlink, journal),
            pins: pins.clone(),
            decapsulating: Attachment::new(filter(&instance), Direction::Ingress),
            clamping: Attachment::new(clamp_filter(&instance), Direction::Egress),
            programs: None,
            gue_port: Port::default(),
            by_program: false,
            replies: Vec::new(),
            capacities: config.capacities(),
            replaced: None,
            instance,
        };
        running.fulfil(assignment).await?;
        Ok(running)
    }

    async fn reload(&mut self, args: &BackendArgs) -> Result<Assignment, CliError> {
        let config = config_file::load(&args.config)?;
        if config.instance() != self.instance {
            return Err(CliError::bad_input(anyhow!(
                "the instance cannot change while the daemon runs; restart it"
            )));
        }
        let assignment = find(args, &config, self.host.netlink()).await?;
        self.capacities = config.capacities();
        self.fulfil(&assignment).await?;
        Ok(assignment)
    }

    /// Brings the host to what its assignment asks: first everything that is new, then away with what is
    /// not wanted any more.
    async fn fulfil(&mut self, assignment: &Assignment) -> Result<(), CliError> {
        let setup = BackendSetup {
            interfaces: &assignment.interfaces,
            local: &assignment.local,
            vips: &assignment.vips,
            tunnels: true,
            tunnel_v4: TUNNEL_V4,
            tunnel_v6: TUNNEL_V6,
            tunnel_v6_in_v4: TUNNEL_V6_IN_V4,
        };
        let report = self.host.prepare_backend(&setup).await.map_err(CliError::operation)?;
        for change in &report.changed {
            info!("{change}");
        }
        for (address, decapsulation) in &report.decapsulation {
            info!("packets to {address} are decapsulated by: {decapsulation}");
        }
        let mut by_program: BTreeSet<IpAddr> = report
            .decapsulation
            .iter()
            .filter(|(_, decapsulation)| matches!(decapsulation, Decapsulation::Program { .. }))
            .map(|(address, _)| *address)
            .collect();
        if let Some(port) = assignment.gue_port {
            info!("packets in UDP (port {port}) are decapsulated by: the program");
            by_program.extend(&assignment.local);
        }
        let by_program: Vec<IpAddr> = by_program.into_iter().collect();
        let crossing = |local: &IpAddr| {
            assignment.vips.iter().any(|vip| vip.addr().is_ipv4() != local.is_ipv4())
        };
        if by_program.iter().any(crossing) && !bpf::decapsulates_across_families() {
            warn!(
                "this kernel takes no IPv6 packet out of an IPv4 one, nor the other way round, without a tunnel device (it lacks \
                 BPF_F_ADJ_ROOM_DECAP_L3_*, Linux 6.3), and there is none, or none for GUE: give this backend an address of each family that it serves"
            );
        }
        self.load(assignment, &by_program).await?;
        self.attach(assignment).await?;
        for address in self.host.journal().addresses() {
            if !assignment.vips.contains(&address.into())
                && self.host.remove_vip(address).await.map_err(CliError::operation)?
            {
                info!("took VIP address {address} off lo");
            }
        }
        for prefix in self.host.journal().local_routes() {
            if !assignment.vips.contains(&prefix)
                && self.host.remove_vip_prefix(prefix).await.map_err(CliError::operation)?
            {
                info!("VIP prefix {prefix} is not local any more");
            }
        }
        Ok(())
    }

    /// Attaches again where a filter is gone, and follows the interfaces' MTU.
    async fn watch(&mut self, assignment: &Assignment) {
        let Some((programs, _)) = &self.programs else { return };
        if self.by_program {
            self.decapsulating
                .watch(&mut self.host, &assignment.interfaces, &programs.decapsulate)
                .await;
        }
        if assignment.clamping.is_some() {
            self.clamping.watch(&mut self.host, &self.replies, &programs.clamp).await;
            if let Err(failure) = self.set_largest_segments(assignment).await {
                warn!("{failure}; it is tried again");
            }
        }
    }

    /// Loads the programs when one of them is needed, and fills their maps: for what is sent to
    /// `local`, and for what leaves.
    async fn load(&mut self, assignment: &Assignment, local: &[IpAddr]) -> Result<(), CliError> {
        self.by_program = !local.is_empty();
        if self.by_program || assignment.clamping.is_some() {
            let host = BackendHost {
                addresses: LOCAL_ADDRESSES,
                vip_addresses: self.capacities.vips,
                gue_port: Port::new(assignment.gue_port.unwrap_or(0)),
            };
            if self.programs.is_none() || self.gue_port != host.gue_port {
                let programs = bpf::load_backend(&self.pins, &host).map_err(CliError::operation)?;
                self.gue_port = host.gue_port;
                let maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
                self.programs = Some((programs, maps));
                self.replaced = bpf::unfinished_backend(&self.pins);
            }
            self.settle(assignment).await?;
            if let Some((programs, replaced)) =
                bpf::resize_backend(&self.pins, &host).map_err(CliError::operation)?
            {
                let maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
                (self.programs, self.replaced) = (Some((programs, maps)), Some(replaced));
                self.settle(assignment).await?;
            }
        }
        if let Some((_, maps)) = &mut self.programs {
            maps.set(local, &assignment.vips).map_err(CliError::operation)?;
        }
        self.set_largest_segments(assignment).await
    }

    /// Writes down what clients may be told, where it is something else than before.
    async fn set_largest_segments(&mut self, assignment: &Assignment) -> Result<(), CliError> {
        let Some((_, maps)) = &mut self.programs else { return Ok(()) };
        let largest = match &assignment.clamping {
            Some(clamping) => clamping
                .largest(self.host.netlink(), &assignment.interfaces)
                .await
                .map_err(CliError::operation)?,
            None => [(Family::V4, 0), (Family::V6, 0)],
        };
        for (family, size) in largest {
            if maps.largest_segment(family).map_err(CliError::operation)? != size {
                maps.set_largest_segments(&[(family, size)]).map_err(CliError::operation)?;
                match size {
                    0 => info!("clients are told of {family} segments as they come"),
                    size => info!("clients are told of {family} segments of at most {size} bytes"),
                }
            }
        }
        Ok(())
    }

    /// Attaches the programs where they are wanted, and detaches them from everywhere else.
    async fn attach(&mut self, assignment: &Assignment) -> Result<(), CliError> {
        self.replies = match &assignment.clamping {
            Some(clamping) => clamping
                .replies(self.host.netlink(), &assignment.interfaces)
                .await
                .map_err(CliError::operation)?,
            None => Vec::new(),
        };
        let programs = self.programs.as_ref().map(|(programs, _)| programs);
        let decapsulate =
            programs.filter(|_| self.by_program).map(|programs| &programs.decapsulate);
        self.decapsulating.ensure(&mut self.host, &assignment.interfaces, decapsulate).await?;
        // Where it cannot be attached (an old-style `ingress` qdisc, for one) packets are served
        // all the same.
        if let Some(programs) = programs {
            self.clamping.watch(&mut self.host, &self.replies, &programs.clamp).await;
        }
        self.clamping.detach_except(&mut self.host, &self.replies).await
    }

    /// Ends a replacement of maps: the programs over the new ones everywhere, then the old ones
    /// away.
    async fn settle(&mut self, assignment: &Assignment) -> Result<(), CliError> {
        if self.replaced.is_none() {
            return Ok(());
        }
        self.attach(assignment).await?;
        let (Some(replaced), Some((_, maps))) = (&self.replaced, &mut self.programs) else {
            return Ok(());
        };
        replaced.finish().map_err(CliError::operation)?;
        self.replaced = None;
        *maps = BackendMaps::open(&self.pins).map_err(CliError::operation)?;
        info!("maps replaced: {} VIP addresses", maps.vip_addresses());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn config() -> Config {
        let text = r#"{ "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": [ { "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" },
                          { "name": "idle", "address": "10.0.1.3" } ],
            "services": [
                { "name": "one", "vips": ["203.0.113.1:80/tcp", "203.0.113.1:443/tcp"], "backends": [ { "name": "a" } ] },
                { "name": "two", "vips": ["203.0.113.2:80/tcp"],
                  "backends": [ { "name": "a", "weight": 1 }, { "name": "b", "weight": 0 } ] } ] }"#;
        Config::parse(text, Path::new("edge.json")).unwrap()
    }

    fn args(name: Option<&str>, interfaces: &[&str]) -> BackendArgs {
        BackendArgs {
            config: PathBuf::from("edge.json"),
            name: name.map(str::to_owned),
            ephemeral: false,
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            reply_interfaces: Vec::new(),
            mtu: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_backend_is_found_by_its_address_and_serves_every_service_that_lists_it() {
        let assignment =
            Assignment::find(&args(None, &[]), &config(), &[ip("127.0.0.1"), ip("10.0.1.1")])
                .unwrap();
        assert_eq!(
            (assignment.name.as_str(), &assignment.vips[..]),
            ("a", &[net("203.0.113.1/32"), net("203.0.113.2/32")][..])
        );
        assert_eq!(assignment.interfaces, ["eth0"]);
        // Weight 0 takes no new flows and may still hold old ones.
        let assignment =
            Assignment::find(&args(None, &["ens1"]), &config(), &[ip("10.0.1.2")]).unwrap();
        assert_eq!(
            (assignment.name.as_str(), &assignment.vips[..]),
            ("b", &[net("203.0.113.2/32")][..])
        );
        assert_eq!(assignment.interfaces, ["ens1"]);
        assert!(
            Assignment::find(&args(Some("idle"), &[]), &config(), &[]).unwrap().vips.is_empty()
        );
    }

    #[test]
    fn a_backend_takes_packets_out_of_udp_where_a_service_that_lists_it_wants_that() {
        let text = r#"{ "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1", "gue_port": 5555, "mtu": 1500 },
            "hash_key_file": "/k",
            "backends": [ { "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" } ],
            "services": [
                { "name": "one", "vips": ["203.0.113.1:80/tcp"], "backends": [ { "name": "a" }, { "name": "b" } ] },
                { "name": "two", "vips": ["203.0.113.2:80/tcp"], "encapsulation": "gue", "backends": [ { "name": "a" } ] } ] }"#;
        let config = Config::parse(text, Path::new("edge.json")).unwrap();
        let assignment = |name| Assignment::find(&args(Some(name), &[]), &config, &[]).unwrap();
        assert_eq!((assignment("a").gue_port, assignment("b").gue_port), (Some(5555), None));
        assert_ne!(assignment("a").clamping, assignment("b").clamping, "8 bytes less");
    }

    #[test]
    fn a_host_that_is_no_backend_or_two_is_told_so() {
        for (args, own, says) in [
            (args(None, &[]), vec![ip("10.9.9.9")], "no backend has an address of this host"),
            (args(None, &[]), vec![ip("10.0.1.1"), ip("10.0.1.2")], "both a and b; say --name"),
            (args(Some("c"), &[]), vec![ip("10.0.1.1")], "there is no backend \"c\""),
        ] {
            let error = format!("{:#}", Assignment::find(&args, &config(), &own).unwrap_err());
            assert!(error.contains(says) && error.contains("edge.json"), "{error}");
        }
    }
}

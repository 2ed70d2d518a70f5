//! The forwarders that are compared.

use std::any::Any;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use etherparse::IpNumber;
use serde_json::json;
use sluice::kernel::bpf::{self, BalancerMaps, LoadParameters, Pins};
use sluice::kernel::netlink::{Direction, FilterSpec, Netlink};
use sluice::key::HashKey;
use sluice::role::Role;
use sluice_datapath::Address;
use sluice_datapath::abi::{Features, Rate, Settings, VipSources};
use tempfile::TempDir;
use tokio::runtime;

use super::generator::FRAME;
use super::network::{
    BACKENDS, BALANCER, ChildGuard, PORT, SINK, UNDERLAY, VIP, enter, index, ip, run, wait,
};
use crate::bench::baseline::{Baseline, BaselineSettings, LoadedBaseline};
use crate::kernel;
use crate::packets::frames::{ETHERNET, ipv4};

/// A forwarder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarder {
    /// None: a program at TC drops every packet. Measures generator and delivery alone.
    Nothing,
    /// The kernel's router.
    Routing,
    /// A program at TC that encapsulates every packet for one backend.
    Encapsulation,
    /// The same at XDP.
    EncapsulationXdp,
    /// `sluice lb`.
    Sluice,
    /// `sluice lb` with a tracked service.
    SluiceTracked,
    /// The XDP program with the maps of `sluice lb`.
    SluiceXdp,
    /// Linux IPVS, scheduler `mh`, tunnel mode.
    Ipvs,
}

impl Forwarder {
    /// All forwarders in the order of measurement: IPVS last, because its netfilter hooks stay.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Routing,
        Self::Encapsulation,
        Self::Sluice,
        Self::SluiceTracked,
        Self::EncapsulationXdp,
        Self::SluiceXdp,
        Self::Ipvs,
    ];

    /// Its name in a figure's line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Routing => "routing",
            Self::Encapsulation => "encapsulation",
            Self::EncapsulationXdp => "encapsulation-xdp",
            Self::Sluice => "sluice",
            Self::SluiceTracked => "sluice-tracked",
            Self::SluiceXdp => "sluice-xdp",
            Self::Ipvs => "ipvs",
        }
    }

    /// Bytes that it adds to a frame; `None` if it forwards nothing.
    pub fn overhead(self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Routing => Some(0),
            _ => Some(20),
        }
    }

    /// Starts forwarding; dropping the returned value ends it.
    pub fn start(self, sluice: &Path) -> anyhow::Result<Box<dyn Any>> {
        Ok(match self {
            Self::Nothing => Box::new(TcBaseline::new(BALANCER, Baseline::DropTc)?),
            Self::Routing => Box::new(IpGuard::new(
                &format!("route add {VIP}/32 via {}", BACKENDS[0]),
                "route del",
            )?),
            Self::Encapsulation => Box::new(TcBaseline::new(BALANCER, Baseline::EncapsulateTc)?),
            Self::EncapsulationXdp => {
                let program = LoadedBaseline::new(Baseline::EncapsulateXdp, &baseline_settings()?)?;
                Box::new((attach_xdp(program.descriptor())?, program))
            }
            Self::Sluice => Box::new(SluiceDaemon::start(sluice, false)?),
            Self::SluiceTracked => Box::new(SluiceDaemon::start(sluice, true)?),
            Self::SluiceXdp => {
                let daemon = SluiceDaemon::start(sluice, false)?;
                let program = daemon.load_xdp()?;
                // Drop order: the daemon's maps are unpinned last.
                Box::new((attach_xdp(program.descriptor())?, program, daemon))
            }
            Self::Ipvs => Box::new(Ipvs::start()?),
        })
    }
}

/// The constants of the encapsulating programs, for frames of one length.
fn baseline_settings() -> anyhow::Result<BaselineSettings> {
    let mut outer = ipv4(UNDERLAY, BACKENDS[0], 0, 64, IpNumber::IPV4);
    outer.total_len = (FRAME - ETHERNET + 20) as u16;
    outer.header_checksum = outer.calc_header_checksum();
    let outer_v4 = outer.to_bytes().as_slice().try_into().context("an IPv4 header has 20 bytes")?;
    let interface = index(BALANCER, "out")?;
    Ok(BaselineSettings { interface, outer_v4, ..BaselineSettings::default() })
}

fn attach_xdp(program: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    let interface = index(BALANCER, "in")?;
    enter(BALANCER, || {
        kernel::attach(program, interface, kernel::LinkHook::NativeXdp)
            .context("cannot attach at XDP")
    })
}

/// A baseline program at TC ingress of a host's interface `in`; dropping it detaches the program.
pub(super) struct TcBaseline {
    host: &'static str,
    interface: u32,
}

impl TcBaseline {
    fn spec() -> FilterSpec {
        FilterSpec { name: "baseline".to_owned(), priority: 1 }
    }

    fn new(host: &'static str, baseline: Baseline) -> anyhow::Result<Self> {
        let interface = index(host, "in")?;
        let program = LoadedBaseline::new(baseline, &baseline_settings()?)?;
        netlink(host, async |netlink| {
            netlink.ensure_clsact(interface).await?;
            netlink
                .put_filter(interface, Direction::Ingress, &Self::spec(), program.descriptor())
                .await
                .map(drop)
        })?;
        Ok(Self { host, interface })
    }

    /// Makes the sink drop every packet.
    pub(super) fn sink() -> anyhow::Result<Self> {
        Self::new(SINK, Baseline::DropTc)
    }
}

impl Drop for TcBaseline {
    fn drop(&mut self) {
        let removed =
            netlink(self.host, async |netlink| netlink.remove_clsact(self.interface).await);
        if let Err(error) = removed {
            eprintln!("cannot remove a filter: {error:#}");
        }
    }
}

fn netlink(
    host: &str,
    task: impl AsyncFnOnce(Netlink) -> Result<(), sluice::kernel::netlink::Error> + Send,
) -> anyhow::Result<()> {
    enter(host, || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { Ok(task(Netlink::connect()?).await?) })
    })
}

/// The effect of an `ip` command on the balancer; dropping it runs the reverse command.
struct IpGuard {
    undo: String,
}

impl IpGuard {
    /// Runs a command such as `route add ...`. In the reverse command, `undo` replaces the first
    /// two words.
    fn new(command: &str, undo: &str) -> anyhow::Result<Self> {
        ip(BALANCER, command)?;
        let rest: Vec<_> = command.split(' ').skip(2).collect();
        Ok(Self { undo: format!("{undo} {}", rest.join(" ")) })
    }
}

impl Drop for IpGuard {
    fn drop(&mut self) {
        if let Err(error) = ip(BALANCER, &self.undo) {
            eprintln!("{error:#}");
        }
    }
}

/// A running `sluice lb`; dropping it runs `sluice down`.
struct SluiceDaemon {
    binary: PathBuf,
    directory: TempDir,
    /// `None` once it has ended, which `sluice down` requires.
    daemon: Option<ChildGuard>,
}

impl SluiceDaemon {
    const INSTANCE: &str = "bench";

    fn start(binary: &Path, tracked: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("edge.json");
        let name = |index: usize| format!("backend-{}", index + 1);
        let backends: Vec<_> = BACKENDS
            .iter()
            .enumerate()
            .map(|(i, address)| json!({ "name": name(i), "address": address }))
            .collect();
        let members: Vec<_> =
            (0..BACKENDS.len()).map(|i| json!({ "name": name(i), "weight": 1 })).collect();
        let config = json!({
            "version": 1, "instance": Self::INSTANCE, "interfaces": ["in"], "underlay": { "v4": UNDERLAY },
            "hash_key_file": "hash.key",
            "limits": { "services": 4, "backends": 16, "vips": 8, "connections": 65_536 },
            "backends": backends,
            "services": [{
                "name": "dns", "vips": [format!("{VIP}:{PORT}/udp")],
                "tracking": if tracked { "always" } else { "never" }, "backends": members
            }]
        });
        fs::write(&file, config.to_string())?;
        HashKey::generate()?.save(&directory.path().join("hash.key"))?;
        let log = directory.path().join("log");
        let output = File::create(&log)?;
        let daemon = enter(BALANCER, || {
            let mut command = Command::new(binary);
            command.args(["lb", "--config"]).arg(&file).stdin(Stdio::null()).stderr(output);
            command
                .spawn()
                .with_context(|| format!("cannot run {}", binary.display()))
                .map(ChildGuard)
        })?;
        let mut started = Self { binary: binary.to_owned(), directory, daemon: Some(daemon) };
        wait("the daemon's start", || {
            let text = fs::read_to_string(&log)?;
            let ended =
                started.daemon.as_mut().map(|daemon| daemon.0.try_wait()).transpose()?.flatten();
            ensure!(ended.is_none(), "the daemon ended: {text}");
            Ok(text.contains("ready: "))
        })?;
        Ok(started)
    }

    /// Loads the XDP program with the daemon's maps.
    fn load_xdp(&self) -> anyhow::Result<bpf::Program> {
        let pins = Pins::new(&bpf::bpffs()?, Self::INSTANCE, Role::Lb);
        let settings = Settings {
            features: Features::NONE,
            hash_key: HashKey::load(&self.directory.path().join("hash.key"))?.flow_key(),
            source_v4: Address::from(IpAddr::from(UNDERLAY)),
            vip_sources: VipSources::NONE.with(VIP.into(), 32),
            errors: Rate::NONE,
            ..Settings::NONE
        };
        let capacities = BalancerMaps::open(&pins)?.capacities();
        let parameters = LoadParameters::balancer(&settings, &capacities);
        Ok(bpf::BALANCER.load_program(&pins, &parameters, bpf::BALANCER_XDP)?)
    }
}

impl Drop for SluiceDaemon {
    fn drop(&mut self) {
        self.daemon = None;
        let binary = self.binary.display().to_string();
        let down = enter(BALANCER, || run(&binary, &["down", "--instance", Self::INSTANCE]));
        if let Err(error) = down {
            eprintln!("{error:#}");
        }
    }
}

/// IPVS with a service for the VIP.
struct Ipvs {
    _address: IpGuard,
}

impl Ipvs {
    fn start() -> anyhow::Result<Self> {
        run("modprobe", &["-a", "ip_vs", "ip_vs_mh"])?;
        let address = IpGuard::new(&format!("address add {VIP}/32 dev lo"), "address del")?;
        let service = format!("{VIP}:{PORT}");
        enter(BALANCER, || {
            run(
                "ipvsadm",
                &[
                    "--add-service",
                    "--udp-service",
                    &service,
                    "--scheduler",
                    "mh",
                    "--sched-flags",
                    "mh-port",
                ],
            )?;
            for backend in BACKENDS {
                run(
                    "ipvsadm",
                    &[
                        "--add-server",
                        "--udp-service",
                        &service,
                        "--real-server",
                        &backend.to_string(),
                        "--ipip",
                    ],
                )?;
            }
            Ok(())
        })?;
        Ok(Self { _address: address })
    }
}

impl Drop for Ipvs {
    fn drop(&mut self) {
        if let Err(error) = enter(BALANCER, || run("ipvsadm", &["--clear"])) {
            eprintln!("{error:#}");
        }
    }
}

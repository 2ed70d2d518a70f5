//! Loads each program, also without kernel type information (BTF), attaches at TCX if the kernel
//! has it, and checks the message about a missing feature. Prints instructions and verified
//! instructions of each program. The process runs in new network and mount namespaces with a BPF
//! file system.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use sluice::kernel::bpf::{
    self, BalancerMaps, Footprint, LoadParameters, Pins, Program, ProgramSpec,
};
use sluice::role::Role;
use sluice_control::capacities::Capacities;
use sluice_datapath::Address;
use sluice_datapath::abi::{Features, Port, Rate, Settings, VipSources};
use sluice_tests::kernel;

/// Each program with the function that loads it.
const PROGRAMS: [(&str, Loader); 4] = [
    ("sluice_tc", |pins| balancer(pins, bpf::BALANCER_TC)),
    ("sluice_xdp", |pins| balancer(pins, bpf::BALANCER_XDP)),
    ("sluice_decap", |pins| backend(pins, bpf::DECAPSULATE)),
    ("sluice_clamp", |pins| backend(pins, bpf::CLAMP)),
];

type Loader = fn(&dyn Fn(Role) -> Pins) -> Result<Program, bpf::Error>;

/// The default limits of a configuration, with a smaller connection table.
const CAPACITIES: Capacities =
    Capacities { services: 256, backends: 4096, vips: 1024, connections: 1024 };

fn balancer(pins: &dyn Fn(Role) -> Pins, program: ProgramSpec) -> Result<Program, bpf::Error> {
    let parameters = LoadParameters::balancer(&settings(), &CAPACITIES);
    bpf::BALANCER.load_program(&pins(Role::Lb), &parameters, program)
}

fn backend(pins: &dyn Fn(Role) -> Pins, program: ProgramSpec) -> Result<Program, bpf::Error> {
    let parameters = LoadParameters::backend(2, CAPACITIES.vips, GUE_PORT);
    bpf::BACKEND.load_program(&pins(Role::Backend), &parameters, program)
}

const GUE_PORT: Port = Port::new(6080);

/// Task of a child process: the name of a program to load without kernel type information, or
/// [`REFUSED`].
const CHILD: &str = "SLUICE_LOAD_CHILD";
/// Task of a child process: check for features while the kernel refuses to create maps.
const REFUSED: &str = "maps are refused";

/// Timeout, long enough for emulated machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both underlay addresses are set, so that the verifier removes no path as dead code.
fn settings() -> Settings {
    let address = |text: &str| match text.parse::<std::net::IpAddr>() {
        Ok(address) => Address::from(address),
        Err(error) => unreachable!("{text}: {error}"),
    };
    Settings {
        features: Features::ALL,
        hash_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
        source_v4: address("192.0.2.1"),
        source_v6: address("2001:db8::1"),
        source_bits_v4: 0,
        source_bits_v6: 0,
        gue_port: GUE_PORT,
        vip_sources: VipSources::ALL,
        errors: Rate::new(1_000, 50),
    }
}

/// A program with new maps, which are unpinned on drop.
struct Loaded {
    program: Program,
    pins: [Pins; 2],
}

impl Loaded {
    fn new(name: &str, instance: &str) -> Result<Self> {
        let (_, load) =
            PROGRAMS.iter().find(|(known, _)| *known == name).context("no such program")?;
        let pins = |role| Pins::new(Path::new("/sys/fs/bpf"), instance, role);
        Ok(Self { program: load(&pins)?, pins: [pins(Role::Lb), pins(Role::Backend)] })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for pins in &self.pins {
            if let Err(error) = pins.remove() {
                eprintln!("cannot remove pins: {error}");
            }
        }
    }
}

fn loads(name: &str) -> Result<()> {
    let footprint = Loaded::new(name, &format!("{name}-loads"))?.program.footprint()?;
    let Footprint { instructions, verified, machine_code, type_information } = footprint;
    ensure!(type_information, "the kernel loaded {name} without its type information");
    let number =
        |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    println!(
        "program {name}: instructions {}, verified {}, bytes of machine code {machine_code}",
        number(instructions),
        number(verified)
    );
    // The verifier counts an instruction once per explored path. The limit is a million.
    ensure!(
        verified.is_none_or(|count| count < 500_000),
        "the verifier processed {verified:?} instructions of {name}"
    );
    Ok(())
}

/// Runs this program as a child process, because mounts and seccomp filters apply to all threads.
fn child(task: &str) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?).env(CHILD, task).spawn()?;
    let deadline = Instant::now() + PATIENCE * 5;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{task}: {status}; see the message above");
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("{task}: not finished after {:?}", PATIENCE * 5);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes `BPF_MAP_CREATE` fail with `EINVAL` in this process, like a kernel without the map type.
/// The preflight check must report the missing feature.
fn names_what_is_missing() -> Result<()> {
    /// `BPF_MAP_CREATE` of `enum bpf_cmd` (`linux/bpf.h`).
    const MAP_CREATE: u64 = 0;

    ensure!(
        bpf::missing_feature()?.is_none(),
        "{:?} is missing without the filter",
        bpf::missing_feature()?
    );
    let command = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, MAP_CREATE)?;
    let filter = SeccompFilter::new(
        [(libc::SYS_bpf, vec![SeccompRule::new(vec![command])?])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EINVAL.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let filter: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&filter)?;
    let error = match sluice::daemon::preflight::check() {
        Ok(()) => anyhow::bail!("the check reports no missing feature"),
        Err(error) => error.to_string(),
    };
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    for part in [release.as_str(), "lacks connection tables (BPF_MAP_TYPE_LRU_HASH)", "Linux 5.10"]
    {
        ensure!(error.contains(part), "{error:?} does not contain {part:?}");
    }
    Ok(())
}

/// Hides the kernel's type information, like a kernel without `CONFIG_DEBUG_INFO_BTF`, and loads a
/// program.
fn load_without_kernel_btf(name: &str) -> Result<()> {
    let kernel = Path::new("/sys/kernel/btf");
    if kernel.exists() {
        mount(Some("none"), kernel, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
            .context("cannot hide the kernel's type information")?;
    }
    ensure!(!kernel.join("vmlinux").exists(), "{} still exists", kernel.display());
    Loaded::new(name, &format!("{name}-without-btf")).map(drop)
}

/// Attaches to one end of a veth pair by TCX, sends from the other end, and checks the counters.
fn counts_what_arrives_at_tcx(name: &str) -> Result<Completion> {
    let loaded = Loaded::new(name, &format!("{name}-tcx"))?;
    let maps = BalancerMaps::open(&loaded.pins[0])?;
    ip(&["link", "add", "here", "type", "veth", "peer", "name", "there"])?;
    ip(&["link", "set", "here", "up"])?;
    ip(&["link", "set", "there", "up"])?;
    ip(&["addr", "add", "192.0.2.1/24", "dev", "there"])?;
    ensure!(
        maps.reasons()?.is_empty(),
        "packets are counted before the program is attached: {:?}",
        maps.reasons()?
    );

    let link = match kernel::attach(
        loaded.program.descriptor(),
        nix::net::if_::if_nametoindex("here")?,
        kernel::LinkHook::Tcx,
    ) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && version()? < (6, 6) => {
            return Ok(Completion::ignored_with(
                "this kernel has no TCX (BPF_TCX_INGRESS, Linux 6.6)",
            ));
        }
        Err(error) => return Err(error).context("cannot attach by TCX"),
    };
    let socket = UdpSocket::bind("192.0.2.1:0")?;
    let deadline = Instant::now() + PATIENCE;
    while maps.reasons()?.is_empty() {
        ensure!(Instant::now() < deadline, "no packet is counted at TCX");
        // Causes an ARP request for the neighbour.
        socket.send_to(b"ARP", "192.0.2.9:9")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(link);
    Ok(Completion::Completed)
}

/// The running kernel's version: major and minor.
fn version() -> Result<(u32, u32)> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(anyhow::anyhow!("cannot parse the kernel version {release:?}")),
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Moves this process, which must have one thread, into new namespaces with a BPF file system.
fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot make namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("cannot mount a BPF file system")
}

fn main() -> ExitCode {
    let root = nix::unistd::geteuid().is_root();
    if root && let Err(error) = isolate() {
        eprintln!("load: error: {error:#}");
        return ExitCode::FAILURE;
    }
    if let Ok(task) = std::env::var(CHILD) {
        let result =
            if task == REFUSED { names_what_is_missing() } else { load_without_kernel_btf(&task) };
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let trial = |name: String, test: Box<dyn FnOnce() -> Result<Completion> + Send>| {
        Trial::ignorable_test(name, move || {
            if !root {
                let reason = "loading programs needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)";
                return Ok(Completion::ignored_with(reason));
            }
            test().map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let mut trials = Vec::new();
    for (name, _) in PROGRAMS {
        trials.push(trial(
            format!("{name}_loads"),
            Box::new(|| loads(name).map(|()| Completion::Completed)),
        ));
        trials.push(trial(
            format!("{name}_loads_without_kernel_type_information"),
            Box::new(|| child(name).map(|()| Completion::Completed)),
        ));
    }
    trials.push(trial(
        "the_preflight_check_reports_a_missing_feature".into(),
        Box::new(|| child(REFUSED).map(|()| Completion::Completed)),
    ));
    trials.push(trial(
        "sluice_tc_runs_at_tcx".into(),
        Box::new(|| counts_what_arrives_at_tcx("sluice_tc")),
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

//! The table of packet cases through the programs in the kernel, each with pins and a network namespace of its own, and random
//! frames on which the packet path in memory, both programs and the oracle must agree.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sluice::bpf;
use sluice_datapath::Reason;
use sluice_datapath::entries::Settings;
use sluice_datapath::rate::Rate;
use sluice_tests::packets::build::{self, Client, ETHERNET};
use sluice_tests::packets::cases;
use sluice_tests::packets::icmp;
use sluice_tests::packets::loaded::{Hook, Loaded, LoadedHost, takes};
use sluice_tests::packets::native::{Native, NativeHost, settings};
use sluice_tests::packets::oracle::Oracle;
use sluice_tests::packets::random;
use sluice_tests::packets::world::{Action, Balancer, Counters, Decapsulator, Frame, MTU, World};

/// Why a case does not run at TC; the same case runs in memory.
const REFUSED: &str = "BPF_PROG_TEST_RUN makes no skb with a VLAN tag, nor one that ends inside its IP header";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let mut trials = Vec::new();
    let mut add = |name: String, test: Box<dyn FnOnce() -> anyhow::Result<()> + Send>, missing: Option<&str>| {
        let trial = Trial::test(name, move || in_namespace(test));
        trials.push(match missing {
            None => trial,
            // The kind is printed beside the name: it says why the test does not run.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        });
    };
    for case in cases::balancing() {
        // What the kernel says beside the bytes, XDP is not told.
        let beside =
            |frame: &Frame| frame.segment_size != 0 || frame.segments != 0 || frame.vlan || frame.is_for_other_host();
        if case.applies(|frame| !beside(frame)) {
            let (name, case) = (format!("xdp: {}", case.name), case.clone());
            add(name, Box::new(move || case.run(&mut Loaded::new(Hook::Xdp)?)), missing.as_deref());
        }
        let tagged = (!case.applies(takes)).then_some(REFUSED);
        let name = format!("tc: {}", case.name);
        let test = Box::new(move || case.run(&mut Loaded::new(Hook::Tc)?));
        add(name, test, missing.as_deref().or(tagged));
    }
    for case in cases::decapsulating() {
        let name = format!("backend: {}", case.name);
        let cut = (!case.frames.iter().all(|(frame, _)| takes(frame))).then_some(REFUSED);
        add(name, Box::new(move || case.run(&mut LoadedHost::new()?)), missing.as_deref().or(cut));
    }
    for (hook, name) in [(Hook::Tc, "tc"), (Hook::Xdp, "xdp")] {
        let name = format!("{name}: the answer to a ping has a right checksum, whatever the ping holds");
        add(name, Box::new(move || icmp::every_answer_is_valid(&mut Loaded::new(hook)?)), missing.as_deref());
    }
    for (hook, name) in [(Hook::Tc, "tc"), (Hook::Xdp, "xdp")] {
        let name = format!("{name}: clients are told what fits only so often");
        add(name, Box::new(move || told_only_so_often(hook)), missing.as_deref());
    }
    let name = "xdp: with a known neighbour the packet is redirected and gets the link addresses of the route";
    add(name.to_owned(), Box::new(redirected_at_xdp), missing.as_deref());
    let name = "memory, tc, xdp and the oracle agree on random frames";
    add(name.to_owned(), Box::new(random_frames), missing.as_deref());
    let name = "memory and backend agree on random encapsulated frames";
    add(name.to_owned(), Box::new(random_frames_to_the_backend), missing.as_deref());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why programs cannot be run here, in the kernel's terms.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN".to_owned());
    }
    // Mounted here, before any test has a mount namespace or two of them race to mount it.
    bpf::bpffs().err().map(|error| format!("no BPF file system: {error}"))
}

/// Runs a test in a network namespace of its own, which vanishes with the test's thread.
fn in_namespace(test: Box<dyn FnOnce() -> anyhow::Result<()> + Send>) -> Result<(), Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        test()
    });
    match thread.join() {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}").into()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Each CPU has a bucket of three, and gets no fourth within the test.
fn told_only_so_often(hook: Hook) -> anyhow::Result<()> {
    const BURST: u64 = 3;
    const INTERVAL: u64 = 3_600_000_000_000;

    let errors = Rate { interval: INTERVAL, tolerance: (BURST - 1) * INTERVAL };
    let mut balancer = Loaded::with(hook, &Settings { errors, ..settings() })?;
    balancer.configure(&World::new().with_mtu(1000))?;
    let most = BURST
        * std::fs::read_to_string("/sys/devices/system/cpu/possible")
            .map(|text| text.trim().rsplit(['-', ',']).next().map_or(Ok(0), str::parse::<u64>))??
            .saturating_add(1);
    let frame = Frame::from(Client { payload: 1300, ..Client::tcp4() }.frame());
    let sent = most + 1;
    for number in 0..sent {
        let (action, _) = balancer.send(&frame)?;
        ensure!(number >= BURST || action == balancer.answers_as(), "{action:?} for packet {number}");
    }
    let reasons = balancer.counters()?.reasons;
    let count = |reason| reasons.get(&reason).copied().unwrap_or(0);
    let (told, untold) = (count(Reason::MtuTold), count(Reason::MtuNotTold));
    ensure!((BURST..=most).contains(&told) && untold > 0, "{told} told, {untold} not told");
    ensure!(told + untold == sent && count(Reason::TooBig) == sent, "{sent} packets: {reasons:?}");
    Ok(())
}

/// A veth device with forwarding on and a static neighbour in each family.
fn redirected_at_xdp() -> anyhow::Result<()> {
    const OWN: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x01];
    const NEIGHBOUR: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x02];

    for arguments in [
        "link add out address 02:00:00:00:aa:01 type veth peer name far",
        "link set far up",
        "link set out up",
        "address add 192.0.2.1/24 dev out",
        "address add 2001:db8:ffff::1/64 dev out nodad",
        "route add 10.0.1.0/24 via 192.0.2.9",
        "route add 2001:db8:2::/64 via 2001:db8:ffff::9",
        "neigh add 192.0.2.9 lladdr 02:00:00:00:aa:02 dev out nud permanent",
        "neigh add 2001:db8:ffff::9 lladdr 02:00:00:00:aa:02 dev out nud permanent",
    ] {
        ip(arguments)?;
    }
    // The kernel shows each thread the settings of its own network namespace.
    for setting in ["/proc/sys/net/ipv4/conf/all/forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        std::fs::write(setting, "1").with_context(|| setting.to_owned())?;
    }
    let interface = nix::net::if_::if_nametoindex("out")?;
    let world = World::new().all_to(3, 0x1240).with_backend(3, |backend| backend.next_hop = Some((interface, MTU)));
    let mut balancer = Loaded::new(Hook::Xdp)?;
    balancer.configure(&world)?;
    for client in Client::each() {
        let (action, bytes) = balancer.send(&client.frame().into())?;
        ensure!(action == Action::Redirect, "{action:?} instead of a redirect");
        let (length, class) = (client.packet().len(), client.traffic_class);
        let outer = if client.is_v6() {
            build::outer_v6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3), class, 0x1240, length)
        } else {
            build::outer_v4(Ipv4Addr::new(10, 0, 1, 3), class, 0x1240, length)
        };
        let expected = [&NEIGHBOUR[..], &OWN, &build::wrapped(&client.frame(), &outer)[ETHERNET - 2..]].concat();
        ensure!(bytes == expected, "the frame became {bytes:02x?} instead of {expected:02x?}");
    }
    Ok(())
}

/// How many random frames there are: `RANDOM_FRAMES`, for emulated machines, or many.
fn config() -> Config {
    let cases = match std::env::var("RANDOM_FRAMES") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("RANDOM_FRAMES is `{text}`; it is a number of frames")),
        Err(_) => 20_000,
    };
    Config { cases, failure_persistence: None, ..Config::default() }
}

fn random_frames() -> anyhow::Result<()> {
    let world = random::world();
    let bindings: Vec<Box<dyn Balancer>> =
        vec![Box::new(Native::default()), Box::new(Loaded::new(Hook::Tc)?), Box::new(Loaded::new(Hook::Xdp)?)];
    let mut bindings: Vec<_> = bindings.into_iter().map(|binding| (binding, Counters::default())).collect();
    bindings.iter_mut().try_for_each(|(binding, _)| binding.configure(&world))?;
    let mut oracle = Oracle::default();
    oracle.configure(&world);
    let state = RefCell::new((bindings, oracle));
    let tried = TestRunner::new(config()).run(&random::frame(false), |frame| {
        let (bindings, oracle) = &mut *state.borrow_mut();
        if oracle.cannot_tell(&frame) {
            return Ok(());
        }
        let expected = oracle.judge(&frame);
        for ((binding, total), name) in bindings.iter_mut().zip(["memory", "tc", "xdp"]) {
            if !binding.accepts(&frame) {
                continue;
            }
            cases::send(binding.as_mut(), &frame, &expected, total)
                .map_err(|error| TestCaseError::fail(format!("{name}: {error:#}")))?;
        }
        Ok(())
    });
    tried.map_err(|error| anyhow::anyhow!("{error}"))?;
    random::reached(&state.borrow().0[0].1).map_err(anyhow::Error::msg)
}

fn random_frames_to_the_backend() -> anyhow::Result<()> {
    let mut runner = TestRunner::new(Config { max_shrink_iters: 0, ..config() });
    let hosts = RefCell::new((NativeHost::default(), LoadedHost::new()?));
    {
        let (memory, kernel) = &mut *hosts.borrow_mut();
        memory.configure(&random::host())?;
        kernel.configure(&random::host())?;
    }
    let tried = runner.run(&random::encapsulated(), |frame| {
        if !takes(&frame) {
            return Ok(());
        }
        let (memory, kernel) = &mut *hosts.borrow_mut();
        let mut both = || -> anyhow::Result<()> {
            let (expected, found) = (memory.send(&frame)?, kernel.send(&frame)?);
            ensure!(expected == found, "memory: {expected:02x?}, the kernel: {found:02x?}");
            let (expected, found) = (memory.counters()?, kernel.counters()?);
            ensure!(expected == found, "counters in memory: {expected:?}, in the kernel: {found:?}");
            Ok(())
        };
        // After the first failure the counters differ for good: what fails first is shown, not shrunk.
        both().map_err(|error| TestCaseError::fail(format!("{:02x?}: {error:#}", frame.bytes)))
    });
    tried.map_err(|error| anyhow::anyhow!("{error}"))
}

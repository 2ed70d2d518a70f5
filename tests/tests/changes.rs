//! Changes as the daemon makes them, planned and applied to real maps, with packets through the
//! loaded programs before and after: where other balancers send flows to backends that are gone, or
//! to those of another service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Trial};
use sluice_control::apply;
use sluice_control::config::Vip;
use sluice_control::desired::{Desired, DesiredBackend, DesiredService};
use sluice_control::have::QUARANTINE_SECONDS;
use sluice_control::plan::plan;
use sluice_datapath::Reason;
use sluice_datapath::abi::{NextHop, VipOptions};
use sluice_tests::packets::addresses::{INTERFACE, VIP_V4, VIP_V6};
use sluice_tests::packets::bindings::BalancerBinding;
use sluice_tests::packets::bindings::namespace::{in_namespace, missing};
use sluice_tests::packets::bindings::test_run::{BalancerHook, TestRunBalancer};
use sluice_tests::packets::expectation::Action;
use sluice_tests::packets::fixture::MTU;
use sluice_tests::packets::frames::{Client, ETHERNET};

const SECOND: u64 = 1_000_000_000;

/// What is tried at each hook.
type Test = fn(BalancerHook) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 5] = [
        ("packets of a service that is removed go to none of its backends", removed_service),
        ("packets go to no backend that is removed, tracked flows neither", removed_backend),
        (
            "a backend that gets the index of another service's gets none of its flows",
            recycled_backend,
        ),
        (
            "a VIP address that gets the number of another inherits none of its ports",
            recycled_address,
        ),
        (
            "a service that gets the index of another inherits nothing of its table",
            recycled_service,
        ),
    ];
    let missing = missing();
    let mut trials = Vec::new();
    for (name, test) in tests {
        for hook in [BalancerHook::Tc, BalancerHook::Xdp] {
            let name = format!("{}: {name}", format!("{hook:?}").to_lowercase());
            let trial = Trial::test(name, move || in_namespace(move || test(hook)));
            trials.push(match &missing {
                None => trial,
                // The kind is printed beside the name: it says why the test does not run.
                Some(why) => trial.with_kind(why).with_ignored_flag(true),
            });
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A balancer whose maps are changed by plans alone, at a time of the test's own.
struct Daemon {
    loaded: TestRunBalancer,
    now: u64,
}

impl Daemon {
    fn new(hook: BalancerHook) -> anyhow::Result<Self> {
        Ok(Self { loaded: TestRunBalancer::new(hook)?, now: SECOND })
    }

    /// Makes the maps hold what is wanted, step by step.
    fn reach(&mut self, want: &Desired) -> anyhow::Result<()> {
        let next_hop = |_: IpAddr| NextHop::new(INTERFACE, MTU as u16);
        let maps = self.loaded.maps();
        let (have, capacities) = (apply::have(maps)?, maps.capacities());
        for step in plan(&have, want, capacities, self.now)? {
            apply::apply(maps, &step, &next_hop, self.now)?;
        }
        let steps = plan(&apply::have(maps)?, want, capacities, self.now)?;
        ensure!(steps.is_empty(), "after all steps there are more: {steps:?}");
        Ok(())
    }

    /// Waits until what is free may be used again, which costs a test no time.
    fn rest(&mut self) {
        self.now += (QUARANTINE_SECONDS + 1) * SECOND;
    }

    /// Sends a packet and says to which backend it went; `None` when it passed or was dropped,
    /// untouched.
    fn backend_of(&mut self, client: &Client) -> anyhow::Result<Option<IpAddr>> {
        let frame = client.frame();
        let (action, bytes) = self.loaded.send(&frame.clone().into())?;
        if bytes == frame {
            ensure!(action != Action::Redirect, "the packet left as it came");
            return Ok(None);
        }
        ensure!(action == self.loaded.forward_action(), "an encapsulated packet meets {action:?}");
        let packet = &bytes[ETHERNET..];
        Ok(Some(match packet[0] >> 4 {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20])?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40])?).into(),
        }))
    }

    /// Sends each packet, all of which should go to one backend, or nowhere.
    fn expect(&mut self, clients: &[Client], last: Option<u8>) -> anyhow::Result<()> {
        for client in clients {
            let expected =
                last.map(|last| if client.is_v6() { v6(last).into() } else { v4(last).into() });
            let found = self.backend_of(client)?;
            ensure!(found == expected, "{client:?} went to {found:?} instead of {expected:?}");
        }
        Ok(())
    }

    fn count(&self, reason: Reason) -> anyhow::Result<u64> {
        Ok(self.loaded.counters()?.reasons.get(&reason).copied().unwrap_or(0))
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into())
}

fn backend(last: u8) -> DesiredBackend {
    DesiredBackend {
        name: format!("backend-{last}"),
        v4: Some(v4(last)),
        v6: Some(v6(last)),
        draining: false,
    }
}

/// A service of VIPs `address:port/protocol`, every slot at one position among the wanted backends.
fn service(name: &str, vips: &[&str], owner: usize) -> anyhow::Result<DesiredService> {
    let vips: Result<Vec<Vip>, _> = vips.iter().map(|vip| vip.parse()).collect();
    Ok(DesiredService {
        name: name.to_owned(),
        vips: vips.context("a VIP of a test")?,
        options: VipOptions::NONE,
        tracked: true,
        owners: vec![owner; 251],
        digest: owner as u64,
        routes: Vec::new(),
        server_ids: Vec::new(),
    })
}

fn web(owner: usize) -> anyhow::Result<DesiredService> {
    service("web", &["203.0.113.10:443/tcp", "[2001:db8:1::10]:443/tcp"], owner)
}

fn dns(owner: usize) -> anyhow::Result<DesiredService> {
    service("dns", &["203.0.113.10:53/udp", "[2001:db8:1::10]:53/udp"], owner)
}

fn want(backends: &[u8], services: Vec<DesiredService>) -> Desired {
    Desired {
        backends: backends.iter().map(|last| backend(*last)).collect(),
        services,
        ..Desired::default()
    }
}

fn segments() -> Vec<Client> {
    [Client::tcp4(), Client::tcp6(), Client::syn(false), Client::syn(true)].to_vec()
}

fn datagrams() -> Vec<Client> {
    vec![Client::udp4(), Client::udp6()]
}

fn removed_service(hook: BalancerHook) -> anyhow::Result<()> {
    let mut daemon = Daemon::new(hook)?;
    daemon.reach(&want(&[1], vec![web(0)?]))?;
    daemon.expect(&segments(), Some(1))?;
    daemon.reach(&Desired::default())?;
    daemon.expect(&segments(), None)?;
    ensure!(
        daemon.count(Reason::NotVip)? == segments().len() as u64,
        "they are not counted as anybody's packets"
    );
    Ok(())
}

fn removed_backend(hook: BalancerHook) -> anyhow::Result<()> {
    let mut daemon = Daemon::new(hook)?;
    daemon.reach(&want(&[1, 2], vec![web(0)?, dns(0)?]))?;
    daemon.expect(&segments(), Some(1))?;
    daemon.expect(&datagrams(), Some(1))?;
    daemon.reach(&want(&[2], vec![web(0)?, dns(0)?]))?;
    daemon.expect(&segments(), Some(2))?;
    daemon.expect(&datagrams(), Some(2))
}

fn recycled_backend(hook: BalancerHook) -> anyhow::Result<()> {
    let mut daemon = Daemon::new(hook)?;
    daemon.reach(&want(&[1, 2], vec![web(0)?, dns(1)?]))?;
    daemon.expect(&segments(), Some(1))?;
    daemon.expect(&datagrams(), Some(2))?;
    // BackendSpec 1 goes; when its index may be used again, the other service gets a backend there.
    daemon.reach(&want(&[2], vec![web(0)?, dns(0)?]))?;
    daemon.rest();
    daemon.reach(&want(&[2, 3], vec![web(0)?, dns(1)?]))?;
    let index = apply::have(daemon.loaded.maps())?.backends[&1].name.clone();
    ensure!(
        index.as_deref() == Some("backend-3"),
        "the index was not used again: it has {index:?}"
    );
    // The flows of the old one follow their own service's table, those without SYN too.
    daemon.expect(&segments(), Some(2))?;
    daemon.expect(&[Client::udp4().from_port(9), Client::udp6().from_port(9)], Some(3))
}

fn recycled_address(hook: BalancerHook) -> anyhow::Result<()> {
    let mut daemon = Daemon::new(hook)?;
    daemon.reach(&want(&[1], vec![web(0)?]))?;
    let numbers = |daemon: &mut Daemon| -> anyhow::Result<Vec<u32>> {
        Ok(apply::have(daemon.loaded.maps())?
            .addresses
            .values()
            .map(|address| address.id)
            .collect())
    };
    let before = numbers(&mut daemon)?;
    daemon.reach(&Desired::default())?;
    daemon.rest();
    let other = ["203.0.113.77:80/tcp", "[2001:db8:1::77]:80/tcp"];
    daemon.reach(&want(&[1], vec![service("other", &other, 0)?]))?;
    let after = numbers(&mut daemon)?;
    ensure!(
        after.iter().any(|number| before.contains(number)),
        "no number was used again: {before:?}, then {after:?}"
    );
    let to = |v4: Ipv4Addr, v6: Ipv6Addr, port: u16| {
        segments().into_iter().map(move |client| {
            let address: IpAddr = if client.is_v6() { v6.into() } else { v4.into() };
            client.to_address(address).to_port(port)
        })
    };
    let new = (Ipv4Addr::new(203, 0, 113, 77), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77));
    daemon.expect(&to(new.0, new.1, 80).collect::<Vec<_>>(), Some(1))?;
    daemon.expect(&to(new.0, new.1, 443).collect::<Vec<_>>(), None)?;
    daemon.expect(&to(VIP_V4, VIP_V6, 443).collect::<Vec<_>>(), None)?;
    daemon.expect(&to(VIP_V4, VIP_V6, 80).collect::<Vec<_>>(), None)
}

fn recycled_service(hook: BalancerHook) -> anyhow::Result<()> {
    let mut daemon = Daemon::new(hook)?;
    daemon.reach(&want(&[1, 2], vec![web(0)?]))?;
    daemon.expect(&segments(), Some(1))?;
    daemon.reach(&want(&[1, 2], vec![]))?;
    daemon.expect(&segments(), None)?;
    daemon.rest();
    daemon.reach(&want(&[1, 2], vec![DesiredService { name: "new".to_owned(), ..dns(1)? }]))?;
    let services = apply::have(daemon.loaded.maps())?.services;
    ensure!(
        services[&1].name.as_deref() == Some("new"),
        "the index was not used again: {:?}",
        services[&1].name
    );
    daemon.expect(&datagrams(), Some(2))?;
    daemon.expect(&segments(), None)?;
    // The web comes back under another index, to another backend: its old flows know nothing of the
    // former one that still is there.
    daemon.reach(&want(
        &[1, 2],
        vec![DesiredService { name: "new".to_owned(), ..dns(1)? }, web(1)?],
    ))?;
    daemon.expect(&[Client::syn(false), Client::syn(true), Client::tcp4(), Client::tcp6()], Some(2))
}

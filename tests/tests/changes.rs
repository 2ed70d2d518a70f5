//! Changes planned and applied to kernel maps like the daemon does, with packets through the loaded
//! programs before and after. Flows must not go to removed backends or to backends of another
//! service.

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

/// A test at one hook.
type HookTest = fn(BalancerHook) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let tests: [(&str, HookTest); 5] = [
        ("packets to a removed service go to no backend", removed_service),
        ("packets go to no removed backend, not even those of tracked flows", removed_backend),
        ("a backend with a reused index gets no flows of another service", recycled_backend),
        ("a VIP address with a reused number gets no ports of the previous one", recycled_address),
        (
            "a service with a reused index gets nothing of the previous lookup table",
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
                // The kind is printed with the name and contains the reason for skipping.
                Some(why) => trial.with_kind(why).with_ignored_flag(true),
            });
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A balancer whose maps change only by plans, with a simulated clock.
struct Daemon {
    loaded: TestRunBalancer,
    now: u64,
}

impl Daemon {
    fn new(hook: BalancerHook) -> anyhow::Result<Self> {
        Ok(Self { loaded: TestRunBalancer::new(hook)?, now: SECOND })
    }

    /// Applies the steps to the desired state.
    fn reach(&mut self, want: &Desired) -> anyhow::Result<()> {
        let next_hop = |_: IpAddr| NextHop::new(INTERFACE, MTU as u16);
        let maps = self.loaded.maps();
        let (have, capacities) = (apply::have(maps)?, maps.capacities());
        for step in plan(&have, want, capacities, self.now)? {
            apply::apply(maps, &step, &next_hop, self.now)?;
        }
        let steps = plan(&apply::have(maps)?, want, capacities, self.now)?;
        ensure!(steps.is_empty(), "the plan after all steps is not empty: {steps:?}");
        Ok(())
    }

    /// Advances the clock past the quarantine of freed indexes.
    fn rest(&mut self) {
        self.now += (QUARANTINE_SECONDS + 1) * SECOND;
    }

    /// Sends a packet and returns the address of its backend; `None` if it passed or was dropped
    /// unchanged.
    fn backend_of(&mut self, client: &Client) -> anyhow::Result<Option<IpAddr>> {
        let frame = client.frame();
        let (action, bytes) = self.loaded.send(&frame.clone().into())?;
        if bytes == frame {
            ensure!(action != Action::Redirect, "the packet was redirected unchanged");
            return Ok(None);
        }
        ensure!(
            action == self.loaded.forward_action(),
            "the verdict for an encapsulated packet is {action:?}"
        );
        let packet = &bytes[ETHERNET..];
        Ok(Some(match packet[0] >> 4 {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20])?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40])?).into(),
        }))
    }

    /// Sends each packet. All must go to one backend, or to none.
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

/// A service with VIPs `address:port/protocol` whose slots all belong to the backend at one
/// position.
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
        "the packets are not counted as not_vip"
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
    // Backend 1 is removed. After the quarantine a backend of the other service gets its index.
    daemon.reach(&want(&[2], vec![web(0)?, dns(0)?]))?;
    daemon.rest();
    daemon.reach(&want(&[2, 3], vec![web(0)?, dns(1)?]))?;
    let index = apply::have(daemon.loaded.maps())?.backends[&1].name.clone();
    ensure!(
        index.as_deref() == Some("backend-3"),
        "the index was not reused: its backend is {index:?}"
    );
    // Flows of the removed backend follow the lookup table of their service, also without SYN.
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
        "no number was reused: {before:?}, then {after:?}"
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
        "the index was not reused: {:?}",
        services[&1].name
    );
    daemon.expect(&datagrams(), Some(2))?;
    daemon.expect(&segments(), None)?;
    // The service "web" returns with another index and backend. Its old flows do not go to the
    // previous backend, which still exists.
    daemon.reach(&want(
        &[1, 2],
        vec![DesiredService { name: "new".to_owned(), ..dns(1)? }, web(1)?],
    ))?;
    daemon.expect(&[Client::syn(false), Client::syn(true), Client::tcp4(), Client::tcp6()], Some(2))
}

//! The table of packet cases through the programs in the kernel, in test runs.

#[path = "programs/captures.rs"]
mod captures;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::ensure;
use libtest_mimic::{Arguments, Trial};
use sluice_datapath::Reason;
use sluice_datapath::abi::{Rate, Settings};
use sluice_tests::packets::bindings::BalancerBinding;
use sluice_tests::packets::bindings::entries::settings;
use sluice_tests::packets::bindings::namespace::{in_namespace, missing};
use sluice_tests::packets::bindings::route;
use sluice_tests::packets::bindings::test_run::pool::{clear, with_program};
use sluice_tests::packets::bindings::test_run::{
    BalancerHook, CONNECTIONS, TestRunBackend, TestRunBalancer, accepts_at_tc, accepts_at_xdp,
};
use sluice_tests::packets::cases;
use sluice_tests::packets::checks::{capture, echo_checksums, source_spreading};
use sluice_tests::packets::expectation::Action;
use sluice_tests::packets::fixture::{Fixture, MTU};
use sluice_tests::packets::frames::{self, Client, ETHERNET, Frame};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let mut trials = Vec::new();
    let mut add = |name: String, test: Box<dyn FnOnce() -> anyhow::Result<()> + Send>| {
        let trial = Trial::test(name, move || in_namespace(test));
        trials.push(match &missing {
            None => trial,
            // The kind is printed with the name and contains the reason for skipping.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        });
    };
    for hook in [BalancerHook::Tc, BalancerHook::Xdp] {
        for &(name, check) in capture::CHECKS {
            let name = format!("{hook:?} capture: {name}").to_lowercase();
            add(name, Box::new(move || captures::check(hook, check)));
        }
        for (name, test) in captures::TESTS {
            let name = format!("{hook:?} capture: {name}").to_lowercase();
            add(name, Box::new(move || test(hook)));
        }
    }
    for case in cases::balancing() {
        if let Some(case) = case.clone().only(accepts_at_xdp) {
            add(
                format!("xdp: {}", case.name),
                Box::new(move || with_program(BalancerHook::Xdp, |balancer| case.run(balancer))),
            );
        }
        // A test run accepts no VLAN tag in metadata and no truncated IP header; the tests in
        // `wire` do.
        if let Some(case) = case.only(accepts_at_tc) {
            add(
                format!("tc: {}", case.name),
                Box::new(move || with_program(BalancerHook::Tc, |balancer| case.run(balancer))),
            );
        }
    }
    for case in cases::mss_clamp().into_iter().filter_map(|case| case.only(accepts_at_tc)) {
        add(
            format!("clamp: {}", case.name),
            Box::new(move || case.run(&mut TestRunBackend::new()?)),
        );
    }
    for (hook, name) in [(BalancerHook::Tc, "tc"), (BalancerHook::Xdp, "xdp")] {
        let name = format!("{name}: every echo reply has a valid checksum");
        add(
            name,
            Box::new(move || {
                with_program(hook, |balancer| echo_checksums::every_answer_is_valid(balancer))
            }),
        );
    }
    for (hook, name) in [(BalancerHook::Tc, "tc"), (BalancerHook::Xdp, "xdp")] {
        let name = format!("{name}: ICMP errors are rate-limited");
        add(name, Box::new(move || icmp_errors_are_rate_limited(hook)));
    }
    for (hook, name) in [(BalancerHook::Tc, "tc"), (BalancerHook::Xdp, "xdp")] {
        let name = format!("{name}: with spread sources the outer source depends on the flow");
        let check = move || {
            source_spreading::check(&mut TestRunBalancer::with(
                hook,
                CONNECTIONS,
                &source_spreading::spread(),
            )?)
        };
        add(name, Box::new(check));
    }
    let name =
        "xdp: a packet with a known neighbour is redirected with the link addresses of the route";
    add(name.to_owned(), Box::new(redirected_at_xdp));
    for case in cases::decapsulation().into_iter().filter_map(|case| case.only(accepts_at_tc)) {
        let why = missing.as_deref().or_else(|| case.unsupported());
        let name = format!("backend: {}", case.name);
        let trial =
            Trial::test(name, move || in_namespace(move || case.run(&mut TestRunBackend::new()?)));
        trials.push(match why {
            None => trial,
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        });
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    clear();
    conclusion.exit_code()
}

/// Each CPU has a bucket with three tokens, which does not refill during the test.
fn icmp_errors_are_rate_limited(hook: BalancerHook) -> anyhow::Result<()> {
    const BURST: u64 = 3;

    let errors = Rate::every(3600, BURST as u32);
    let mut balancer = TestRunBalancer::with(hook, 1024, &Settings { errors, ..settings() })?;
    balancer.configure(&Fixture::new().with_mtu(1000))?;
    let most = BURST
        * std::fs::read_to_string("/sys/devices/system/cpu/possible")
            .map(|text| text.trim().rsplit(['-', ',']).next().map_or(Ok(0), str::parse::<u64>))??
            .saturating_add(1);
    let frame = Frame::from(Client { payload: 1300, ..Client::tcp4() }.frame());
    let sent = most + 1;
    for number in 0..sent {
        let (action, _) = balancer.send(&frame)?;
        ensure!(
            number >= BURST || action == balancer.reply_action(),
            "the verdict for packet {number} is {action:?}"
        );
    }
    let reasons = balancer.counters()?.reasons;
    let count = |reason| reasons.get(&reason).copied().unwrap_or(0);
    let (sent_errors, limited) =
        (count(Reason::IcmpTooBigSent), count(Reason::IcmpTooBigRateLimited));
    ensure!(
        (BURST..=most).contains(&sent_errors) && limited > 0,
        "{sent_errors} errors sent, {limited} rate-limited"
    );
    ensure!(
        sent_errors + limited == sent && count(Reason::TooBig) == sent,
        "{sent} packets: {reasons:?}"
    );
    Ok(())
}

fn redirected_at_xdp() -> anyhow::Result<()> {
    let interface = route::route_out()?;
    let fixture = Fixture::new()
        .all_to(3, 0x1240)
        .with_backend(3, |backend| backend.next_hop = Some((interface, MTU)));
    let mut balancer = TestRunBalancer::new(BalancerHook::Xdp)?;
    balancer.configure(&fixture)?;
    for client in Client::each() {
        let (action, bytes) = balancer.send(&client.frame().into())?;
        ensure!(action == Action::Redirect, "{action:?} instead of a redirect");
        let (length, class) = (client.packet().len(), client.tos);
        let outer = if client.is_v6() {
            frames::outer_v6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3), class, 0x1240, length)
        } else {
            frames::outer_v4(Ipv4Addr::new(10, 0, 1, 3), class, 0x1240, length)
        };
        let expected = [
            &route::NEIGHBOUR[..],
            &route::OWN,
            &frames::encapsulated(&client.frame(), &outer)[ETHERNET - 2..],
        ]
        .concat();
        ensure!(bytes == expected, "the frame became {bytes:02x?} instead of {expected:02x?}");
    }
    Ok(())
}

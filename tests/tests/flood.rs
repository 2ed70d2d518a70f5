//! A flood of SYNs from new sources, ten times the capacity of the connection table, against
//! established connections of a tracked service: the connections keep their backends. Prints
//! nanoseconds per packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::ensure;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sluice_tests::kernel::run_timed;
use sluice_tests::packets::bindings::BalancerBinding as _;
use sluice_tests::packets::bindings::entries::settings;
use sluice_tests::packets::bindings::test_run::{BalancerHook, TestRunBalancer};
use sluice_tests::packets::fixture::Fixture;
use sluice_tests::packets::frames::Client;

/// Capacity of the connection table.
const TABLE: u32 = 1024;
/// Established connections: as many as a table of this size holds on any number of CPUs.
const ESTABLISHED: u32 = 256;
/// SYNs per packet of an established connection, ten times the capacity in total.
const SYNS: u32 = 10 * TABLE / ESTABLISHED;
/// Measurements of each kind: four per connection.
const ROUNDS: u32 = 4 * ESTABLISHED;

/// Addresses that are not VIP addresses.
const NOT_VIP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];

fn established(number: u32) -> Client {
    let client = if number.is_multiple_of(2) { Client::tcp4() } else { Client::tcp6() };
    client.from_port(10_000 + number as u16)
}

/// A SYN of a source that sends nothing else.
fn syn(number: u32) -> Client {
    let client = Client::syn(number.is_multiple_of(2));
    let address: IpAddr = if client.is_v6() {
        Ipv6Addr::from(0x2001_0db8_0bad_0000_0000_0000_0000_0000 | u128::from(number)).into()
    } else {
        Ipv4Addr::from(0x0a00_0000 | number).into()
    };
    Client { source: (address, 1024).into(), ..client }
}

/// The same to an address that is not a VIP address.
fn to_other_address(number: u32) -> Client {
    let client = syn(number);
    let [v4, v6] = NOT_VIP;
    let address = if client.is_v6() { v6 } else { v4 };
    client.to_address(address)
}

fn flood(hook: BalancerHook) -> anyhow::Result<()> {
    let mut balancer = TestRunBalancer::with(hook, TABLE, &settings())?;
    balancer.configure(&Fixture::new().all_to(1, 0).tracked(true))?;
    for number in 0..ESTABLISHED {
        balancer.send(&established(number).frame().into())?;
    }
    // From here on new flows go to another backend.
    balancer.configure(&Fixture::new().all_to(2, 0).tracked(true))?;
    let before = balancer.counters()?.backends;
    let mut sent = 0;
    for _ in 0..ESTABLISHED * SYNS {
        balancer.send(&syn(sent).frame().into())?;
        sent += 1;
    }
    // Measured in turn: between packets of other connections, between packets to other addresses,
    // and during the flood.
    let mut times = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for (way, times) in times.iter_mut().enumerate() {
            for other in 1..=SYNS {
                match way {
                    0 => {
                        balancer.send(&established((round + other) % ESTABLISHED).frame().into())?
                    }
                    1 => balancer.send(&to_other_address(sent).frame().into())?,
                    _ => balancer.send(&syn(sent).frame().into())?,
                };
                sent += u32::from(way != 0);
            }
            let client = established((round + way as u32) % ESTABLISHED);
            times.push(time(&balancer, &client)?);
        }
    }
    let after = balancer.counters()?.backends;
    let to =
        |backend| after.get(&backend).map_or(0, |c| c.0) - before.get(&backend).map_or(0, |c| c.0);
    let flooding = u64::from(ESTABLISHED * SYNS + ROUNDS * SYNS);
    ensure!(
        to(2) == flooding,
        "{} packets went to the new backend instead of the {flooding} of the flood",
        to(2)
    );
    let kept = u64::from(ROUNDS * (SYNS + 3));
    ensure!(
        to(1) == kept,
        "{} of {kept} packets of established connections went to their backend",
        to(1)
    );
    let [own, others, flooded] = times.map(median);
    println!(
        "{hook:?}: a packet of an established connection takes {own} ns between packets of other connections, {others} ns between packets to other addresses, \
         {flooded} ns during the flood of {flooding} SYNs (medians)"
    );
    Ok(())
}

/// Run time of the program for a client's packet, in nanoseconds.
fn time(balancer: &TestRunBalancer, client: &Client) -> anyhow::Result<u32> {
    Ok(run_timed(balancer.program().descriptor(), &client.frame())?.1)
}

fn median(mut times: Vec<u32>) -> u32 {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() -> ExitCode {
    let trial = |name: &str, hook| {
        Trial::ignorable_test(name, move || {
            if !nix::unistd::geteuid().is_root() {
                return Ok(Completion::ignored_with(
                    "loading programs needs root (CAP_BPF, CAP_NET_ADMIN)",
                ));
            }
            flood(hook)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let trials = vec![
        trial("tc: a flood of SYNs evicts no connection", BalancerHook::Tc),
        trial("xdp: a flood of SYNs evicts no connection", BalancerHook::Xdp),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

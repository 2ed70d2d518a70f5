//! A flood of SYNs from ever new sources, ten times as many as the connection table holds, against established connections of a tracked
//! service: they keep their backends, and their packets cost what they cost before. Prints nanoseconds a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::ensure;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sluice_tests::kernel::run_timed;
use sluice_tests::packets::build::Client;
use sluice_tests::packets::loaded::{Hook, Loaded};
use sluice_tests::packets::native::settings;
use sluice_tests::packets::world::{Balancer as _, World};

/// Entries of the connection table.
const TABLE: u32 = 1024;
/// Connections that are established: as many as a table of this size keeps on any number of CPUs.
const ESTABLISHED: u32 = 256;
/// SYNs for each packet of an established connection, so that all of them together are ten times the table.
const SYNS: u32 = 10 * TABLE / ESTABLISHED;
/// How often the time is taken, in each way: every connection four times.
const ROUNDS: u32 = 4 * ESTABLISHED;

fn established(number: u32) -> Client {
    let client = if number.is_multiple_of(2) { Client::tcp4() } else { Client::tcp6() };
    client.from_port(10_000 + number as u16)
}

/// The SYN of a source that sends nothing else.
fn syn(number: u32) -> Client {
    let client = Client::syn(number.is_multiple_of(2));
    let address: IpAddr = if client.is_v6() {
        Ipv6Addr::from(0x2001_0db8_0bad_0000_0000_0000_0000_0000 | u128::from(number)).into()
    } else {
        Ipv4Addr::from(0x0a00_0000 | number).into()
    };
    Client { source: (address, 1024).into(), ..client }
}

fn flood(hook: Hook) -> anyhow::Result<()> {
    let mut balancer = Loaded::with(hook, TABLE, &settings())?;
    balancer.configure(&World::new().all_to(1, 0).tracked(true))?;
    for number in 0..ESTABLISHED {
        balancer.send(&established(number).frame().into())?;
    }
    // From here on every new flow goes to another backend.
    balancer.configure(&World::new().all_to(2, 0).tracked(true))?;
    let before = balancer.counters()?.backends;
    let mut sent = 0;
    for _ in 0..ESTABLISHED * SYNS {
        balancer.send(&syn(sent).frame().into())?;
        sent += 1;
    }
    // In turn between packets of other connections and within the flood, as many of the one as of the other, so that caches are as warm.
    let (mut calm, mut flooded) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for other in 1..=SYNS {
            balancer.send(&established((round + other) % ESTABLISHED).frame().into())?;
        }
        calm.push(time(&balancer, &established(round % ESTABLISHED))?);
        for _ in 0..SYNS {
            balancer.send(&syn(sent).frame().into())?;
            sent += 1;
        }
        flooded.push(time(&balancer, &established((round + 1) % ESTABLISHED))?);
    }
    let after = balancer.counters()?.backends;
    let to = |backend| after.get(&backend).map_or(0, |c| c.0) - before.get(&backend).map_or(0, |c| c.0);
    ensure!(to(2) == u64::from(sent), "{} packets went to the new backend, {sent} are of the flood", to(2));
    let kept = u64::from(ROUNDS * (SYNS + 2));
    ensure!(to(1) == kept, "{} of {kept} packets of established connections went to their backend", to(1));
    println!(
        "{hook:?}: {} ns a packet of an established connection, {} ns during the flood of {sent} SYNs (medians)",
        median(calm),
        median(flooded)
    );
    Ok(())
}

/// Nanoseconds that the program takes for a client's packet.
fn time(balancer: &Loaded, client: &Client) -> anyhow::Result<u32> {
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
                return Ok(Completion::ignored_with("loading programs needs root (CAP_BPF, CAP_NET_ADMIN)"));
            }
            flood(hook).map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let trials = vec![
        trial("tc: a flood of SYNs displaces no connection", Hook::Tc),
        trial("xdp: a flood of SYNs displaces no connection", Hook::Xdp),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

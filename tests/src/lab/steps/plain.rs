//! Before any balancing: the network by itself, then the daemons.

use super::Examination;
use crate::lab::client;
use crate::lab::host_state::HostState;
use crate::lab::topology::{Family, WEB_PORT, backends, balancers, clients};
use anyhow::{Result, bail};
use std::net::SocketAddr;

/// Every client reaches every backend's own address, so a later failure is not the network's; and
/// the VIP leads nowhere yet.
pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let limit = lab.scale.patience;
    let mut wrong = Vec::new();
    let mut answered = 0;
    for sender in clients() {
        for family in Family::BOTH {
            for backend in backends() {
                let target = SocketAddr::new(backend.address(family), WEB_PORT);
                match client::on(&lab.namespaces, sender, || client::request(target, limit)) {
                    Ok(name) if name == backend.name => answered += 1,
                    Ok(name) => wrong.push(format!("{name} answered for {}", backend.name)),
                    Err(error) => {
                        wrong.push(format!("{} to {}: {error:#}", sender.name, backend.name))
                    }
                }
            }
        }
    }
    let what = format!(
        "{answered} requests, from every client to every backend's own address, are answered"
    );
    examination.show.check_none(&wrong, what);
    for host in balancers().chain(backends()) {
        let state = HostState::read(&lab.namespaces, host, lab.state.path())?;
        examination.before.insert(host.name, state);
    }
    examination
        .show
        .say("wrote down addresses, routes, qdiscs, filters, sysctls and pins of every host, to compare at the end");
    Ok(())
}

/// A configuration is generated and checked; then backends start, then balancers.
pub(super) fn start(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    lab.configure(examination.wanted)?;
    for balancer in balancers() {
        let said = lab.check_config(balancer)?;
        examination
            .check(true, format!("sluice check accepts the configuration of {}", balancer.name));
        examination.show.say(said.trim_end());
    }
    let decapsulation = Decapsulation::from_environment()?;
    for host in examination.wanted.listed().chain(balancers()) {
        let begin = std::time::Instant::now();
        lab.start_sluice(host)?;
        let took = begin.elapsed().as_millis();
        examination.check(true, format!("{} is ready after {took} ms", host.name));
    }
    for host in examination.wanted.listed() {
        let said = lab.said(host)?;
        let by = |words: &str| said.matches(&format!("decapsulated by: {words}")).count();
        let (devices, programs) = (by("tunnel device"), by("BPF program"));
        let held = match decapsulation {
            Decapsulation::Any => devices + programs >= 2,
            // IPv6 in IPv4 takes one of its own.
            Decapsulation::Device => (devices, programs) == (3, 0),
            Decapsulation::Program => (devices, programs) == (0, 2),
        };
        let what = format!(
            "{} decapsulates both families: {devices} tunnel devices, {programs} addresses by a program",
            host.name
        );
        examination.check(held, what);
    }
    Ok(())
}

/// Who is to decapsulate on the backends.
#[derive(Clone, Copy)]
enum Decapsulation {
    /// Tunnel devices where the kernel has them.
    Any,
    /// Tunnel devices: the kernel has them.
    Device,
    /// The BPF program: the kernel has no tunnel devices, or not for now.
    Program,
}

impl Decapsulation {
    /// What the environment variable `LAB_DECAPSULATION` says the lab must find: `device`,
    /// `program`, or nothing.
    fn from_environment() -> Result<Self> {
        match std::env::var("LAB_DECAPSULATION").as_deref() {
            Err(_) | Ok("") => Ok(Self::Any),
            Ok("device") => Ok(Self::Device),
            Ok("program") => Ok(Self::Program),
            Ok(other) => bail!("LAB_DECAPSULATION is `{other}`; there are `device` and `program`"),
        }
    }
}

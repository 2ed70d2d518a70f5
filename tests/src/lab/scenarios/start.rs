//! The network without Sluice, then the start of the daemons.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::lab::client;
use crate::lab::host_state::HostState;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{IpVersion, WEB_PORT};

/// Every client reaches every backend's own address, so that later failures are not caused by the
/// network. The state of each host is stored for a comparison at the end.
pub(super) fn network(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let limit = lab.scale.timeout;
    let mut failures = Vec::new();
    let mut sent = 0;
    for sender in lab.topology.clients() {
        for version in IpVersion::BOTH {
            for backend in lab.topology.backends() {
                let target = SocketAddr::new(backend.address(version), WEB_PORT);
                sent += 1;
                match client::run_in(&lab.namespaces, sender, || client::request(target, limit)) {
                    Ok(name) if name == backend.name => {}
                    Ok(name) => failures.push(format!("{name} replied for {}", backend.name)),
                    Err(error) => {
                        failures.push(format!("{} to {}: {error:#}", sender.name, backend.name))
                    }
                }
            }
        }
    }
    run.check(Statement::equal(
        "HTTP requests answered, from each client to each backend's own IPv4 and IPv6 address",
        sent - failures.len(),
        sent,
    ));
    run.reporter.details(&failures);
    for host in lab.topology.balancers().iter().chain(lab.topology.backends()) {
        let state = HostState::read(&lab.namespaces, host, lab.state.path())?;
        run.initial_states.insert(host.name.clone(), state);
    }
    run.reporter.info(
        "stored each host's addresses, routes, qdiscs, filters, sysctls and pins, \
         to compare them at the end",
    );
    Ok(())
}

/// The configuration is generated and checked; then backends start, then balancers.
pub(super) fn daemons(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    lab.configure(run.config)?;
    let mut accepted = Vec::new();
    for balancer in run.balancers() {
        let output = lab.check_config(balancer)?;
        let text = format!("{}: {}", balancer.name, output.trim_end());
        accepted.push(Statement::new(true, text));
    }
    run.reporter.check_group("sluice check accepts every balancer's configuration", accepted);
    let expected = ExpectedDecapsulation::from_environment()?;
    let mut ready = Vec::new();
    let mut slowest = 0;
    for host in run.members().chain(run.balancers()) {
        let start = Instant::now();
        lab.start_sluice(host)?;
        let milliseconds = start.elapsed().as_millis();
        slowest = slowest.max(milliseconds);
        let text = format!("sluice on {} is ready after {milliseconds} ms", host.name);
        ready.push(Statement::new(true, text));
    }
    let summary = format!("sluice is ready on each host, after at most {slowest} ms");
    run.reporter.check_group(summary, ready);
    let mut decapsulation = Vec::new();
    for host in run.members() {
        let log = lab.daemon_log(host)?;
        let count = |by: &str| log.matches(&format!("by={by}")).count();
        let devices = count("tunnel device");
        let programs = count("BPF program");
        let (holds, expectation) = match expected {
            ExpectedDecapsulation::Any => (devices + programs >= 2, "one for each IP version"),
            // One for IPv6 in IPv4 (`sit`).
            ExpectedDecapsulation::Device => ((devices, programs) == (3, 0), "3 devices"),
            ExpectedDecapsulation::Program => {
                ((devices, programs) == (0, 2), "2 addresses by the program")
            }
        };
        decapsulation.push(Statement::measured(
            holds,
            format!("{} decapsulates", host.name),
            format!("{devices} tunnel devices, {programs} addresses by the BPF program"),
            expectation,
        ));
    }
    run.reporter.check_group("each backend decapsulates both IP versions", decapsulation);
    Ok(())
}

/// The decapsulation that the backends must use.
#[derive(Clone, Copy)]
enum ExpectedDecapsulation {
    /// Tunnel devices where the kernel has them.
    Any,
    /// Tunnel devices.
    Device,
    /// The BPF program.
    Program,
}

impl ExpectedDecapsulation {
    /// The value of the environment variable `LAB_DECAPSULATION`: `device`, `program`, or unset.
    fn from_environment() -> Result<Self> {
        match std::env::var("LAB_DECAPSULATION").as_deref() {
            Err(_) | Ok("") => Ok(Self::Any),
            Ok("device") => Ok(Self::Device),
            Ok("program") => Ok(Self::Program),
            Ok(other) => bail!("LAB_DECAPSULATION is `{other}`; use `device` or `program`"),
        }
    }
}

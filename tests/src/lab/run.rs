//! One run of the lab's scenarios: the lab, its current configuration, and measurements that later
//! scenarios use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::capture::CaptureResult;
use super::config::{INSTANCE, LabConfig, OversizePolicy};
use super::connections::Connections;
use super::host_state::HostState;
use super::instance::Lab;
use super::reporter::{Reporter, Statement};
use super::status::BalancerJson;
use super::topology::{INTERFACE, LabHost};

/// The state that scenarios share.
pub struct LabRun<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Prints and stores results.
    pub reporter: &'a mut Reporter,
    /// The current configuration.
    pub config: LabConfig,
    /// The state of each host before its first `sluice`.
    pub initial_states: BTreeMap<String, HostState>,
    /// Captures of each host during the distribution of requests.
    pub captures: BTreeMap<String, CaptureResult>,
    /// Packets that each balancer counted as forwarded during these captures.
    pub forwarded: BTreeMap<String, u64>,
    /// Requests answered during these captures.
    pub answered: u64,
    /// Connections that stay open over several scenarios.
    pub connections: Option<Connections>,
}

impl<'a> LabRun<'a> {
    /// A run with the default configuration and no measurements.
    pub fn new(lab: &'a Lab, reporter: &'a mut Reporter) -> Self {
        Self {
            lab,
            reporter,
            config: LabConfig::default(),
            initial_states: BTreeMap::new(),
            captures: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            answered: 0,
            connections: None,
        }
    }

    /// Prints and stores a statement.
    pub fn check(&mut self, statement: Statement) -> bool {
        self.reporter.check(statement)
    }

    /// The backends of the services.
    pub fn members(&self) -> impl Iterator<Item = &'a LabHost> + use<'a> {
        self.config.members(&self.lab.topology)
    }

    /// The balancers.
    pub fn balancers(&self) -> &'a [LabHost] {
        self.lab.topology.balancers()
    }

    /// The open connections.
    pub fn connections(&self) -> Result<&Connections> {
        self.connections
            .as_ref()
            .context("no connections are open: the scenario that opens them has failed")
    }

    /// Applies the current configuration to the balancers.
    pub fn reload_balancers(&self) -> Result<()> {
        self.lab.configure(self.config)?;
        self.lab.reload_all(self.balancers())
    }

    /// Applies the current configuration to all daemons, the backends first: they must be able to
    /// decapsulate every packet of the balancers.
    pub fn reload_all(&self) -> Result<()> {
        self.lab.configure(self.config)?;
        self.lab.reload_all(self.members().chain(self.balancers()))
    }

    /// Applies another `too_big` to the balancers.
    pub fn set_oversize_policy(&mut self, policy: OversizePolicy) -> Result<()> {
        self.config.oversize = policy;
        self.reload_balancers()
    }

    /// Sets the MTU of the balancers' interfaces and waits until their maps contain it.
    pub fn set_balancer_mtu(&self, mtu: u32) -> Result<()> {
        for balancer in self.balancers() {
            self.set_mtu(balancer, mtu)?;
        }
        self.wait_for_status(&format!("the MTU towards every backend is {mtu}"), |status| {
            let mut next_hops = status.backends.iter().flat_map(|b| b.next_hops.values());
            next_hops.all(|hop| hop.mtu == mtu)
        })
    }

    /// Sets the MTU of a host's interface.
    pub fn set_mtu(&self, host: &LabHost, mtu: u32) -> Result<()> {
        let arguments = ["link", "set", INTERFACE, "mtu", &mtu.to_string()];
        self.lab.namespaces.run(host, "ip", &arguments, "").map(drop)
    }

    /// Waits until every balancer's status satisfies a condition.
    pub fn wait_for_status(
        &self,
        condition: &str,
        holds: impl Fn(&BalancerJson) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + self.lab.scale.timeout;
        for balancer in self.balancers() {
            loop {
                let status = self.lab.status(balancer)?;
                if holds(&status) {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "timeout on {}, waiting for: {condition}; status: {status:?}",
                    balancer.name
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// Copies logs, configurations, packets and host states into a new directory, which outlives
    /// the lab; returns its path.
    pub fn save_artefacts(&self) -> Result<PathBuf> {
        let directory = tempfile::Builder::new().prefix("sluice-lab-failed-").tempdir()?.keep();
        for source in [self.lab.state.logs(), self.lab.state.config()] {
            // Missing if the removal of the lab has failed halfway.
            for entry in std::fs::read_dir(source).into_iter().flatten().flatten() {
                let name = entry.file_name();
                // The hash key must not become part of a bug report.
                if name != "hash.key" {
                    std::fs::copy(entry.path(), directory.join(name))?;
                }
            }
        }
        for (host, capture) in &self.captures {
            capture.write_pcap(&directory.join(format!("{host}.pcap")))?;
        }
        for host in self.lab.topology.hosts() {
            std::fs::write(directory.join(format!("{}.state", host.name)), self.host_report(host))?;
        }
        Ok(directory)
    }

    fn host_report(&self, host: &LabHost) -> String {
        let mut text = String::new();
        let mut add = |command: &str, output: Result<String>| {
            let output = output.unwrap_or_else(|error| format!("{error:#}\n"));
            text += &format!("--- {command}\n{output}");
        };
        for command in ["status", "counters"] {
            let output = self.lab.sluice(host, &[command, "--instance", INSTANCE]);
            add(&format!("sluice {command}"), output);
        }
        for command in
            ["ip addr", "ip route", "ip -6 route", "ip -s link", "tc -s qdisc", "ip neigh"]
        {
            let mut words = command.split(' ');
            let program = words.next().unwrap_or_default();
            let arguments: Vec<_> = words.collect();
            add(command, self.lab.namespaces.run(host, program, &arguments, ""));
        }
        text
    }
}

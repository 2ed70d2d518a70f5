//! A running lab: its hosts and daemons.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use super::config::{self, INSTANCE, LabConfig};
use super::namespaces::{Namespaces, ProcessId, reap};
use super::offload::set_tx_checksum;
use super::scale::Scale;
use super::state::{LabRecord, StartedProcess, StateDir};
use super::status::{
    BackendCountersJson, BalancerCountersJson, BalancerJson, CountersJson, StatusJson,
};
use super::topology::{HostRole, INTERFACE, IpVersion, LabHost, Topology};

/// The binaries that a lab runs.
#[derive(Clone, Debug)]
pub struct LabBinaries {
    /// `sluice-lab`: holders and servers.
    pub lab: PathBuf,
    /// `sluice`: the program under test.
    pub sluice: PathBuf,
}

impl LabBinaries {
    /// Uses the `sluice` in the environment variable `SLUICE`, by default the one in the directory
    /// of `sluice-lab`.
    pub fn find(lab: PathBuf) -> Result<Self> {
        let sluice = match std::env::var_os("SLUICE") {
            Some(path) => PathBuf::from(path),
            None => lab.with_file_name("sluice"),
        };
        let sluice = std::path::absolute(&sluice)?;
        let remedy =
            "build it with `cargo build -p sluice`, or set the environment variable SLUICE";
        ensure!(sluice.is_file(), "{} does not exist: {remedy}", sluice.display());
        Ok(Self { lab, sluice })
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    /// Its hosts.
    pub topology: Topology,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its state directory.
    pub state: StateDir,
    /// Its amounts and timeouts.
    pub scale: Scale,
    binaries: LabBinaries,
    started: Mutex<BTreeMap<String, StartedProcess>>,
    /// Whether the lab outlives this value.
    detached: bool,
}

impl Drop for Lab {
    /// Removes the lab unless it is detached, also after an error or a panic.
    fn drop(&mut self) {
        if !self.detached {
            drop(self.remove());
        }
    }
}

impl Lab {
    /// Creates hosts and links and starts the servers, but no `sluice`. The lab ends with the
    /// calling process unless `detached`.
    pub fn up(
        topology: Topology,
        state: StateDir,
        scale: Scale,
        binaries: LabBinaries,
        detached: bool,
    ) -> Result<Self> {
        state.create()?;
        let lab = Self::create(topology, state.clone(), scale, binaries, detached);
        if lab.is_err() {
            // Only the first error is returned; the next `down` finds a leftover directory.
            drop(state.remove());
        }
        lab
    }

    fn create(
        topology: Topology,
        state: StateDir,
        scale: Scale,
        binaries: LabBinaries,
        detached: bool,
    ) -> Result<Self> {
        let namespaces = Namespaces::create(&binaries.lab, state.path(), &topology, detached)?;
        let started = Mutex::default();
        let lab = Self { topology, namespaces, state, scale, binaries, started, detached };
        lab.save()?;
        lab.create_links()?;
        lab.start_servers()?;
        Ok(lab)
    }

    /// Opens a lab that another process created.
    pub fn open(state: StateDir, scale: Scale, binaries: LabBinaries) -> Result<Self> {
        let record = state.load()?;
        let namespaces = Namespaces::open(record.processes)?;
        Ok(Self {
            topology: record.topology,
            namespaces,
            state,
            scale,
            binaries,
            started: Mutex::new(record.started),
            detached: true,
        })
    }

    fn started(&self) -> MutexGuard<'_, BTreeMap<String, StartedProcess>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<()> {
        self.state.save(&LabRecord {
            topology: self.topology.clone(),
            processes: self.namespaces.processes().clone(),
            started: self.started().clone(),
        })
    }

    fn create_links(&self) -> Result<()> {
        for host in self.topology.hosts() {
            self.namespaces.within(host, || {
                for (key, value) in host.sysctls() {
                    let path = Path::new("/proc/sys/net").join(key);
                    std::fs::write(&path, value)
                        .with_context(|| format!("cannot set {} to {value}", path.display()))?;
                }
                for (key, value) in host.optional_sysctls() {
                    // Fails on kernels without the file or the value.
                    drop(std::fs::write(Path::new("/proc/sys/net").join(key), value));
                }
                Ok(())
            })?;
        }
        for host in self.topology.hosts() {
            let batch = self.topology.ip_batch(host, |name| self.namespaces.inner_pid(name));
            self.namespaces.run(host, "ip", &["-batch", "-"], &batch)?;
        }
        Ok(())
    }

    fn start_servers(&self) -> Result<()> {
        for host in self.topology.backends() {
            let mut command = Command::new(&self.binaries.lab);
            command.args(["serve", "--name", &host.name]);
            for version in IpVersion::BOTH {
                let own = |vip: SocketAddr| SocketAddr::new(host.address(version), vip.port());
                for address in [version.web(), own(version.web())] {
                    command.args(["--http", &address.to_string()]);
                }
                for address in [version.echo(), own(version.echo())] {
                    command.args(["--echo", &address.to_string()]);
                }
            }
            self.launch(host, "servers", "HTTP and UDP servers", command)?;
        }
        self.topology.backends().iter().try_for_each(|host| self.wait_ready(host, "servers", 0))
    }

    fn key(host: &LabHost, kind: &str) -> String {
        format!("{}/{kind}", host.name)
    }

    /// Starts a process in a host with its output appended to a log; returns the offset of its
    /// first byte in the log.
    fn launch(&self, host: &LabHost, kind: &str, title: &str, mut command: Command) -> Result<u64> {
        let path = self.state.logs().join(format!("{}-{kind}.log", host.name));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let start = log.metadata()?.len();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("NO_COLOR", "1")
            .process_group(0);
        let child = self.namespaces.spawn(host, command)?;
        let process = ProcessId::identify(child.id().cast_signed());
        reap(child);
        let process = process.with_context(|| {
            format!("{title} in {} ended during its start; see {}", host.name, path.display())
        })?;
        let started = StartedProcess { title: title.into(), process, log: path };
        self.started().insert(Self::key(host, kind), started);
        self.save()?;
        Ok(start)
    }

    fn wait_ready(&self, host: &LabHost, kind: &str, start: u64) -> Result<()> {
        let started = self.started().get(&Self::key(host, kind)).cloned();
        let StartedProcess { title, process, log } =
            started.with_context(|| format!("{kind} was not started in {}", host.name))?;
        let deadline = Instant::now() + self.scale.timeout;
        loop {
            // Read before the log, so that the log of an ended process is complete.
            let alive = process.alive();
            let bytes = std::fs::read(&log).unwrap_or_default();
            let output = bytes.get(usize::try_from(start)?..).unwrap_or_default();
            let text = String::from_utf8_lossy(output);
            // A whole word: "already" must not match.
            if text.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ready") {
                return Ok(());
            }
            if let Some(refusal) = text.lines().find(|line| line.contains("refused")) {
                bail!("{title} in {}: {refusal}", host.name);
            }
            let last = text.lines().last().unwrap_or("no output");
            ensure!(
                alive,
                "{title} in {} ended before it was ready: {last} (log: {})",
                host.name,
                log.display()
            );
            ensure!(
                Instant::now() <= deadline,
                "{title} in {} is not ready after {:?}: {last}",
                host.name,
                self.scale.timeout
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Generates the hash key and all configurations.
    pub fn configure(&self, config: LabConfig) -> Result<()> {
        let directory = self.state.config();
        let key = config::key_file(&directory);
        if !key.exists() {
            let key = key.display().to_string();
            self.sluice(self.topology.router(), &["key", "new", "--out", &key])?;
        }
        config.write(&self.topology, &directory, self.scale)
    }

    /// The output of `sluice check` for a host's configuration.
    pub fn check_config(&self, host: &LabHost) -> Result<String> {
        let file = config::file(&self.state.config(), host).display().to_string();
        self.sluice(host, &["check", &file])
    }

    /// Starts the host's `sluice` daemon and waits until it is ready.
    pub fn start_sluice(&self, host: &LabHost) -> Result<()> {
        let role = if host.role == HostRole::Balancer { "lb" } else { "backend" };
        let mut command = Command::new(&self.binaries.sluice);
        command.arg(role).arg("--config").arg(config::file(&self.state.config(), host));
        let start = self.launch(host, "sluice", &format!("sluice {role}"), command)?;
        self.wait_ready(host, "sluice", start)
    }

    fn daemon_log_path(&self, host: &LabHost) -> Result<PathBuf> {
        let log = self.started().get(&Self::key(host, "sluice")).map(|started| started.log.clone());
        log.with_context(|| format!("no daemon was started in {}", host.name))
    }

    /// The output of the host's daemon so far.
    pub fn daemon_log(&self, host: &LabHost) -> Result<String> {
        let log = self.daemon_log_path(host)?;
        std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
    }

    /// The host's daemon, if one was started; it may have ended.
    pub fn daemon(&self, host: &LabHost) -> Option<ProcessId> {
        self.started().get(&Self::key(host, "sluice")).map(|started| started.process)
    }

    /// Makes the host's daemon reload its configuration, and waits for the end of the reload.
    pub fn reload_sluice(&self, host: &LabHost) -> Result<()> {
        let log = self.daemon_log_path(host)?;
        let start = std::fs::metadata(&log)
            .with_context(|| format!("cannot find {}", log.display()))?
            .len();
        self.signal_sluice(host, Signal::HUP)?;
        self.wait_ready(host, "sluice", start)
    }

    /// Makes the daemons of several hosts reload, one after the other.
    pub fn reload_all<'a>(&self, hosts: impl IntoIterator<Item = &'a LabHost>) -> Result<()> {
        hosts.into_iter().try_for_each(|host| self.reload_sluice(host))
    }

    /// Sends the host's daemon a signal.
    pub fn signal_sluice(&self, host: &LabHost, signal: Signal) -> Result<ProcessId> {
        let process =
            self.daemon(host).with_context(|| format!("no daemon was started in {}", host.name))?;
        ensure!(process.signal(signal), "the daemon in {} has ended", host.name);
        Ok(process)
    }

    /// Sends a signal that ends the host's daemon, and waits for the end.
    pub fn stop_sluice(&self, host: &LabHost, signal: Signal) -> Result<()> {
        let process = self.signal_sluice(host, signal)?;
        let limit = self.scale.timeout;
        ensure!(
            process.wait_end(limit),
            "the daemon in {} does not end within {limit:?}",
            host.name
        );
        Ok(())
    }

    /// Runs a `sluice` command in a host; returns its standard output.
    pub fn sluice(&self, host: &LabHost, arguments: &[&str]) -> Result<String> {
        self.namespaces.run(host, &self.binaries.sluice, arguments, "")
    }

    /// `sluice status --json` of a balancer.
    pub fn status(&self, host: &LabHost) -> Result<BalancerJson> {
        let text = self.sluice(host, &["status", "--instance", INSTANCE, "--json"])?;
        let status: Result<StatusJson, _> = serde_json::from_str(&text);
        status
            .map(|status| status.lb)
            .with_context(|| format!("the status of {} is no valid document: {text}", host.name))
    }

    /// `sluice counters --json` of a balancer.
    pub fn counters(&self, host: &LabHost) -> Result<BalancerCountersJson> {
        let (text, counters) = self.counters_document(host)?;
        counters
            .lb
            .with_context(|| format!("the counters of {} lack the balancer: {text}", host.name))
    }

    /// A sum over the counters of all balancers.
    pub fn sum_counters(&self, value: impl Fn(&BalancerCountersJson) -> u64) -> Result<u64> {
        self.topology.balancers().iter().map(|host| Ok(value(&self.counters(host)?))).sum()
    }

    /// Packets that the balancers have dropped or answered for this reason.
    pub fn reason(&self, name: &str) -> Result<u64> {
        self.sum_counters(|counters| counters.reasons.get(name).copied().unwrap_or(0))
    }

    /// ICMP errors about too big packets that the balancers have sent to clients.
    pub fn too_big_errors_sent(&self) -> Result<u64> {
        self.reason("icmp_too_big_sent")
    }

    /// Packets that each balancer has forwarded.
    pub fn forwarded(&self) -> Result<BTreeMap<String, u64>> {
        let balancers = self.topology.balancers().iter();
        balancers.map(|host| Ok((host.name.clone(), self.counters(host)?.forwarded()))).collect()
    }

    /// The same, once the number no longer changes: after the last packets of closing connections.
    pub fn forwarded_settled(&self) -> Result<BTreeMap<String, u64>> {
        let deadline = Instant::now() + self.scale.timeout;
        let mut earlier = self.forwarded()?;
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = self.forwarded()?;
            if now == earlier {
                return Ok(now);
            }
            ensure!(
                Instant::now() < deadline,
                "packets still arrive at the balancers although all requests have ended"
            );
            earlier = now;
        }
    }

    /// `sluice counters --json` of a backend.
    pub fn backend_counters(&self, host: &LabHost) -> Result<BackendCountersJson> {
        let (text, counters) = self.counters_document(host)?;
        counters
            .backend
            .with_context(|| format!("the counters of {} lack the backend: {text}", host.name))
    }

    fn counters_document(&self, host: &LabHost) -> Result<(String, CountersJson)> {
        let text = self.sluice(host, &["counters", "--instance", INSTANCE, "--json"])?;
        let counters: Result<CountersJson, _> = serde_json::from_str(&text);
        let counters = counters.with_context(|| {
            format!("the counters of {} are no valid document: {text}", host.name)
        })?;
        Ok((text, counters))
    }

    /// Starts the daemons, those of the backends first: a packet must not reach a backend before it
    /// can decapsulate.
    pub fn start_all(&self, config: LabConfig) -> Result<()> {
        let backends = config.members(&self.topology);
        backends.chain(self.topology.balancers()).try_for_each(|host| self.start_sluice(host))
    }

    /// Sets TX checksum offload of hosts' interfaces.
    pub fn set_tx_checksum<'a>(
        &self,
        hosts: impl IntoIterator<Item = &'a LabHost>,
        on: bool,
    ) -> Result<()> {
        let set = |host| self.namespaces.within(host, || set_tx_checksum(INTERFACE, on));
        hosts.into_iter().try_for_each(set)
    }

    /// The started processes, by `host/kind`.
    pub fn processes(&self) -> BTreeMap<String, StartedProcess> {
        self.started().clone()
    }

    /// Ends the lab and removes its state. A removed lab is no error.
    pub fn remove(&self) -> Result<()> {
        self.namespaces.destroy()?;
        self.state.remove()
    }
}

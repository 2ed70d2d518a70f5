//! A lab that is up: its hosts, its daemons, and what can be asked of them.

use super::config::{self, Wanted};
use super::namespaces::{Namespaces, Process, reap};
use super::state::{Record, Started, StateDir};
use super::status::{BackendCounters, Balancer, BalancerCounters, Counters, Status};
use super::topology::{Family, HOSTS, Host, INSTANCE, Role, backends, balancers};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much the lab does, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Requests over TCP.
    pub requests: usize,
    /// Requests over UDP.
    pub datagrams: usize,
    /// Connections that stay open during changes.
    pub connections: usize,
    /// Pause between two exchanges on such a connection.
    pub pause: Duration,
    /// Bytes of a big body.
    pub body: u64,
    /// Bytes of a transfer that is looked at packet by packet.
    pub bulk: u64,
    /// Slots of each lookup table.
    pub table_size: u32,
    /// Whether balancers have every feature that steps switch on and off all the time, in a service
    /// that nobody uses: a program is loaded anew for another set of features, and an emulated
    /// machine's verifier needs some 10 seconds for it.
    pub every_feature: bool,
    /// The longest that one exchange, or a daemon's start, may take.
    pub patience: Duration,
}

impl Scale {
    /// The size that `make lab` uses.
    pub const FULL: Self = Self {
        requests: 2400,
        datagrams: 1200,
        connections: 200,
        pause: Duration::from_millis(100),
        body: 20_000_000,
        bulk: 50_000_000,
        table_size: 65_537,
        every_feature: false,
        patience: Duration::from_secs(10),
    };
    /// For slow machines, such as emulated ones.
    pub const SMALL: Self = Self {
        requests: 400,
        datagrams: 200,
        connections: 40,
        pause: Duration::from_millis(500),
        body: 1_000_000,
        bulk: 5_000_000,
        table_size: 4_093,
        every_feature: true,
        patience: Duration::from_secs(60),
    };

    /// The size that the environment variable `LAB_SCALE` asks for: `full` (also when unset) or
    /// `small`.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("LAB_SCALE").as_deref() {
            Err(_) | Ok("" | "full") => Ok(Self::FULL),
            Ok("small") => Ok(Self::SMALL),
            Ok(other) => bail!("LAB_SCALE is `{other}`; there are `full` and `small`"),
        }
    }
}

/// The two binaries that a lab needs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `sluice-lab`, for holders and servers.
    pub lab: PathBuf,
    /// `sluice`, the program under test.
    pub sluice: PathBuf,
}

impl Programs {
    /// `sluice` is the file named by the environment variable `SLUICE`, or else lies beside
    /// `sluice-lab`.
    pub fn find(lab: PathBuf) -> Result<Self> {
        let sluice = match std::env::var_os("SLUICE") {
            Some(path) => PathBuf::from(path),
            None => lab.with_file_name("sluice"),
        };
        let sluice = std::path::absolute(&sluice)?;
        let remedy =
            "build it with `cargo build -p sluice`, or name it in the environment variable SLUICE";
        ensure!(sluice.is_file(), "{} does not exist: {remedy}", sluice.display());
        Ok(Self { lab, sluice })
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its directory.
    pub state: StateDir,
    /// Its size.
    pub scale: Scale,
    programs: Programs,
    started: Mutex<BTreeMap<String, Started>>,
    /// Whether the lab outlives this value.
    detached: bool,
}

impl Drop for Lab {
    /// Whatever ends a lab's run, an error or a panic too, ends the lab. One that was left to
    /// itself stays.
    fn drop(&mut self) {
        if !self.detached {
            drop(self.remove());
        }
    }
}

impl Lab {
    /// Makes hosts and links and starts the servers; no `sluice` runs yet. Ends with the calling
    /// process unless `detached`.
    pub fn up(state: StateDir, scale: Scale, programs: Programs, detached: bool) -> Result<Self> {
        state.create()?;
        let built =
            Namespaces::create(&programs.lab, state.path(), detached).and_then(|namespaces| {
                let lab = Self {
                    namespaces,
                    state: state.clone(),
                    scale,
                    programs,
                    started: Mutex::default(),
                    detached,
                };
                lab.save()?;
                lab.wire()?;
                lab.start_servers()?;
                Ok(lab)
            });
        if built.is_err() {
            // The first error is the one to report; a leftover directory is found by the next
            // `down`.
            drop(state.remove());
        }
        built
    }

    /// Opens a lab that another process made.
    pub fn open(state: StateDir, scale: Scale, programs: Programs) -> Result<Self> {
        let record = state.load()?;
        let namespaces = Namespaces::open(record.anchors)?;
        Ok(Self {
            namespaces,
            state,
            scale,
            programs,
            started: Mutex::new(record.started),
            detached: true,
        })
    }

    fn started(&self) -> MutexGuard<'_, BTreeMap<String, Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<()> {
        self.state.save(&Record {
            anchors: self.namespaces.anchors().clone(),
            started: self.started().clone(),
        })
    }

    fn wire(&self) -> Result<()> {
        for host in &HOSTS {
            self.namespaces.within(host, || {
                for (key, value) in host.sysctls() {
                    let path = Path::new("/proc/sys/net").join(key);
                    std::fs::write(&path, value)
                        .with_context(|| format!("cannot set {} to {value}", path.display()))?;
                }
                for (key, value) in host.optional_sysctls() {
                    // Fails on kernels that do not know the file or the value; the value before
                    // stays in force.
                    drop(std::fs::write(Path::new("/proc/sys/net").join(key), value));
                }
                Ok(())
            })?;
        }
        for host in &HOSTS {
            let batch = host.wiring(|name| self.namespaces.inner_pid(name));
            self.namespaces.run(host, "ip", &["-batch", "-"], &batch)?;
        }
        Ok(())
    }

    fn start_servers(&self) -> Result<()> {
        for host in backends() {
            let mut command = Command::new(&self.programs.lab);
            command.args(["serve", "--name", host.name]);
            for family in Family::BOTH {
                let own = |vip: std::net::SocketAddr| {
                    std::net::SocketAddr::new(host.address(family), vip.port())
                };
                for address in [family.web(), own(family.web())] {
                    command.args(["--http", &address.to_string()]);
                }
                for address in [family.echo(), own(family.echo())] {
                    command.args(["--echo", &address.to_string()]);
                }
            }
            self.launch(host, "servers", "HTTP and UDP servers", command)?;
        }
        backends().try_for_each(|host| self.wait_ready(host, "servers", 0))
    }

    fn key(host: &Host, kind: &str) -> String {
        format!("{}/{kind}", host.name)
    }

    /// Starts a process in a host, its output going to a log; returns where its part of the log
    /// begins.
    fn launch(
        &self,
        host: &'static Host,
        kind: &str,
        what: &str,
        mut command: Command,
    ) -> Result<u64> {
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
        let process = Process::identify(child.id().cast_signed());
        reap(child);
        let process = process.with_context(|| {
            format!("{what} in {} ended at once; see {}", host.name, path.display())
        })?;
        self.started()
            .insert(Self::key(host, kind), Started { what: what.into(), process, log: path });
        self.save()?;
        Ok(start)
    }

    fn wait_ready(&self, host: &'static Host, kind: &str, start: u64) -> Result<()> {
        let started = self.started().get(&Self::key(host, kind)).cloned();
        let started =
            started.with_context(|| format!("{kind} was not started in {}", host.name))?;
        let deadline = Instant::now() + self.scale.patience;
        loop {
            // Asked before the log is read: what a process wrote at its end is then in the log.
            let alive = started.process.alive();
            let log = std::fs::read(&started.log).unwrap_or_default();
            let text =
                String::from_utf8_lossy(log.get(usize::try_from(start)?..).unwrap_or_default())
                    .into_owned();
            // A word of its own: "already" is no sign of being ready.
            if text.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ready") {
                return Ok(());
            }
            let Started { what, log, .. } = &started;
            if let Some(refusal) = text.lines().find(|line| line.contains("refused")) {
                bail!("{what} in {}: {refusal}", host.name);
            }
            let last = text.lines().last().unwrap_or("it wrote nothing");
            ensure!(
                alive,
                "{what} in {} ended before it was ready: {last} (all of it: {})",
                host.name,
                log.display()
            );
            if Instant::now() > deadline {
                bail!(
                    "{what} in {} is not ready after {:?}: {last}",
                    host.name,
                    self.scale.patience
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Generates the hash key and all configurations.
    pub fn configure(&self, wanted: Wanted) -> Result<()> {
        let directory = self.state.config();
        let key = config::key_file(&directory);
        if !key.exists() {
            let key = key.display().to_string();
            self.namespaces.run(
                &HOSTS[0],
                &self.programs.sluice,
                &["key", "new", "--out", &key],
                "",
            )?;
        }
        wanted.write(&directory, self.scale)
    }

    /// `sluice check` of one host's configuration: what it says.
    pub fn check_config(&self, host: &'static Host) -> Result<String> {
        let file = config::file(&self.state.config(), host).display().to_string();
        self.sluice(host, &["check", &file])
    }

    /// Starts the host's `sluice` daemon and waits until it is ready.
    pub fn start_sluice(&self, host: &'static Host) -> Result<()> {
        let role = if host.role == Role::Balancer { "lb" } else { "backend" };
        let mut command = Command::new(&self.programs.sluice);
        command.arg(role).arg("--config").arg(config::file(&self.state.config(), host));
        let start = self.launch(host, "sluice", &format!("sluice {role}"), command)?;
        self.wait_ready(host, "sluice", start)
    }

    /// What the host's daemon has said so far.
    pub fn said(&self, host: &Host) -> Result<String> {
        let log = self.started().get(&Self::key(host, "sluice")).map(|started| started.log.clone());
        let log = log.with_context(|| format!("no daemon was started in {}", host.name))?;
        std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
    }

    /// The host's daemon, if one was started; it may have ended since.
    pub fn daemon(&self, host: &Host) -> Option<Process> {
        self.started().get(&Self::key(host, "sluice")).map(|started| started.process)
    }

    /// Makes the host's daemon read its configuration again, and waits until it says that it has.
    pub fn reload_sluice(&self, host: &'static Host) -> Result<()> {
        let log = self.started().get(&Self::key(host, "sluice")).map(|started| started.log.clone());
        let log = log.with_context(|| format!("no daemon was started in {}", host.name))?;
        let start = std::fs::metadata(&log)
            .with_context(|| format!("cannot find {}", log.display()))?
            .len();
        self.signal_sluice(host, Signal::HUP)?;
        self.wait_ready(host, "sluice", start)
    }

    /// Sends the host's daemon a signal.
    pub fn signal_sluice(&self, host: &Host, signal: Signal) -> Result<Process> {
        let process =
            self.daemon(host).with_context(|| format!("no daemon was started in {}", host.name))?;
        ensure!(process.signal(signal), "the daemon in {} has ended", host.name);
        Ok(process)
    }

    /// Sends a signal that ends the host's daemon, and waits for the end.
    pub fn stop_sluice(&self, host: &Host, signal: Signal) -> Result<()> {
        let process = self.signal_sluice(host, signal)?;
        let limit = self.scale.patience;
        ensure!(
            process.wait_end(limit),
            "the daemon in {} does not end within {limit:?}",
            host.name
        );
        Ok(())
    }

    /// Runs `sluice` in a host to its end; its standard output.
    pub fn sluice(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        self.namespaces.run(host, &self.programs.sluice, arguments, "")
    }

    /// `sluice status --json` of a balancer.
    pub fn status(&self, host: &Host) -> Result<Balancer> {
        let text = self.sluice(host, &["status", "--instance", INSTANCE, "--json"])?;
        let status: Result<Status, _> = serde_json::from_str(&text);
        status
            .map(|status| status.lb)
            .with_context(|| format!("the status of {} is not as documented: {text}", host.name))
    }

    /// `sluice counters --json` of a balancer.
    pub fn counters(&self, host: &Host) -> Result<BalancerCounters> {
        let (text, counters) = self.counted(host)?;
        counters.lb.with_context(|| {
            format!("the counters of {} are not those of a balancer: {text}", host.name)
        })
    }

    /// `sluice counters --json` of a backend.
    pub fn backend_counters(&self, host: &Host) -> Result<BackendCounters> {
        let (text, counters) = self.counted(host)?;
        counters.backend.with_context(|| {
            format!("the counters of {} are not those of a backend: {text}", host.name)
        })
    }

    fn counted(&self, host: &Host) -> Result<(String, Counters)> {
        let text = self.sluice(host, &["counters", "--instance", INSTANCE, "--json"])?;
        let counters: Result<Counters, _> = serde_json::from_str(&text);
        let counters = counters.with_context(|| {
            format!("the counters of {} are not as documented: {text}", host.name)
        })?;
        Ok((text, counters))
    }

    /// Starts backends, then balancers: nothing is forwarded to a host that does not unwrap yet.
    pub fn start_all(&self, wanted: Wanted) -> Result<()> {
        wanted.listed().chain(balancers()).try_for_each(|host| self.start_sluice(host))
    }

    /// What the lab started, by `host/kind`.
    pub fn processes(&self) -> BTreeMap<String, Started> {
        self.started().clone()
    }

    /// Ends the lab and removes every trace of it; again is no error.
    pub fn remove(&self) -> Result<()> {
        self.namespaces.destroy()?;
        self.state.remove()
    }
}

//! Entry into the lab's namespaces: processes started in a host, and code on a thread in its
//! network namespace.
#![expect(unsafe_code, reason = "calls setns(2) between fork and exec")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, PipeWriter, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::topology::{LabHost, Topology};

/// A process, identified by PID and start time, so that a later process with the same PID is not
/// mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// PID in the PID namespace of the process that runs the lab.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub started: u64,
}

impl ProcessId {
    /// Identifies a running process.
    pub fn identify(pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("process {pid} does not exist"))?;
        Ok(Self { pid, started })
    }

    /// Whether it is running; false for a zombie.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// A pidfd of the process; `None` if it has ended.
    pub fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after opening, so the descriptor refers to this process and not to a later one.
        self.alive().then_some(descriptor)
    }

    /// Sends a signal; false if the process has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.open().is_some_and(|descriptor| pidfd_send_signal(descriptor, signal).is_ok())
    }

    /// Waits for the end of the process; false if it still runs after `limit`.
    pub fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may contain spaces and parentheses; the state is the first
    // field after it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// The process that keeps a host's namespaces alive.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub process: ProcessId,
    /// Its PID inside the lab's PID namespace, which `ip` needs to address the network namespace.
    pub inner_pid: i32,
}

/// The processes that keep a lab alive, as stored in its state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabProcesses {
    /// Init of the lab's PID namespace. The lab ends with it.
    pub init: ProcessId,
    /// Holders by host name.
    pub holders: BTreeMap<String, Holder>,
}

/// The lab's namespaces, held open.
#[derive(Debug)]
pub struct Namespaces {
    processes: LabProcesses,
    init: OwnedFd,
    hosts: BTreeMap<String, OwnedFd>,
    /// The init ends when this end of its pipe is closed, by the kernel if this process crashes.
    _alive: Option<PipeWriter>,
}

impl Namespaces {
    /// Creates the namespaces of all hosts, without links. `program` is the `sluice-lab` binary,
    /// `state` its state directory.
    ///
    /// Unless `detached`, they end with the calling process.
    pub fn create(
        program: &Path,
        state: &Path,
        topology: &Topology,
        detached: bool,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("pid-namespace").stdout(Stdio::piped());
        let alive = if detached {
            command.arg("--detached").stdin(Stdio::null());
            None
        } else {
            let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
            command.stdin(reader);
            Some(writer)
        };
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        drop(command);
        let mut text = String::new();
        // One line only: the init inherits the pipe and keeps it open.
        let stdout = child.stdout.take().context("the standard output is not a pipe")?;
        BufReader::new(stdout).read_line(&mut text).context("cannot read the init's PID")?;
        ensure!(
            child.wait()?.success(),
            "cannot create the lab's PID namespace; see the message above"
        );
        let init =
            ProcessId::identify(text.trim().parse().context("the init's PID is not a number")?)?;
        let descriptor = init.open().context("the lab's init ended during its start")?;
        let processes = LabProcesses { init, holders: BTreeMap::new() };
        let mut this = Self { processes, init: descriptor, hosts: BTreeMap::new(), _alive: alive };
        if let Err(error) = this.start_holders(program, state, topology) {
            this.destroy()?;
            return Err(error);
        }
        Ok(this)
    }

    fn start_holders(&mut self, program: &Path, state: &Path, topology: &Topology) -> Result<()> {
        for host in topology.hosts() {
            let mut command = Command::new(program);
            command
                .arg("hold")
                .arg(&host.name)
                .arg(state)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .process_group(0);
            let mut child = self
                .start(command)
                .with_context(|| format!("cannot start the holder of {}", host.name))?;
            let mut line = String::new();
            let stdout = child.stdout.take().context("the standard output is not a pipe")?;
            BufReader::new(stdout).read_line(&mut line)?;
            let inner_pid = line.trim().parse();
            let inner_pid = inner_pid
                .map_err(|_| anyhow!("cannot create host {}; see the message above", host.name))?;
            let process = ProcessId::identify(child.id().cast_signed())?;
            let descriptor = process
                .open()
                .with_context(|| format!("the holder of {} ended during its start", host.name))?;
            reap(child);
            self.processes.holders.insert(host.name.clone(), Holder { process, inner_pid });
            self.hosts.insert(host.name.clone(), descriptor);
        }
        Ok(())
    }

    /// Opens the namespaces of a lab that another process created.
    pub fn open(processes: LabProcesses) -> Result<Self> {
        let init = processes
            .init
            .open()
            .context("the lab's processes have ended; remove its state with `sluice-lab down`")?;
        let mut hosts = BTreeMap::new();
        for (name, holder) in &processes.holders {
            let descriptor =
                holder.process.open().with_context(|| format!("the holder of {name} has ended"))?;
            hosts.insert(name.clone(), descriptor);
        }
        Ok(Self { processes, init, hosts, _alive: None })
    }

    /// The argument of [`Self::open`] for another process.
    pub fn processes(&self) -> &LabProcesses {
        &self.processes
    }

    /// The path to the host's root directory from outside, with its private `/run` and
    /// `/sys/fs/bpf`.
    pub fn root(&self, host: &LabHost) -> PathBuf {
        let pid = self.processes.holders.get(&host.name).map_or(0, |holder| holder.process.pid);
        PathBuf::from(format!("/proc/{pid}/root"))
    }

    /// The PID that addresses this host in `ip ... netns PID` inside the lab; 0 for an unknown
    /// name.
    pub fn inner_pid(&self, host: &str) -> i32 {
        self.processes.holders.get(host).map_or(0, |holder| holder.inner_pid)
    }

    fn descriptor(&self, host: &LabHost) -> Result<BorrowedFd<'_>> {
        self.hosts
            .get(&host.name)
            .map(AsFd::as_fd)
            .with_context(|| format!("host {} is not up", host.name))
    }

    /// Starts a process in the lab's PID namespace and otherwise in the caller's namespaces.
    fn start(&self, mut command: Command) -> Result<Child> {
        let init = self.init.as_fd();
        // setns(2) with CLONE_NEWPID affects only later children of the calling thread, so a
        // temporary thread calls it.
        std::thread::scope(|scope| {
            let starter = scope.spawn(move || {
                setns(init, CloneFlags::CLONE_NEWPID)
                    .context("cannot join the lab's PID namespace")?;
                let name = command.get_program().to_owned();
                command.spawn().with_context(|| format!("cannot run {}", name.display()))
            });
            starter.join().map_err(|_| anyhow!("the starting thread panicked"))?
        })
    }

    /// Starts a process inside a host. It ends with the lab at the latest.
    pub fn spawn(&self, host: &LabHost, mut command: Command) -> Result<Child> {
        let descriptor = self.descriptor(host)?.as_raw_fd();
        let spaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe. The
        // descriptor is open: `self`, which owns it, is borrowed until the child has been started.
        unsafe {
            command.pre_exec(move || {
                let descriptor = BorrowedFd::borrow_raw(descriptor);
                setns(descriptor, spaces).map_err(std::io::Error::from)
            });
        }
        self.start(command).with_context(|| format!("in host {}", host.name))
    }

    /// Runs a process inside a host to its end and returns its output; `input` is its standard
    /// input.
    pub fn output(&self, host: &LabHost, mut command: Command, input: &str) -> Result<Output> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = self.spawn(host, command)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // On a thread, because both pipes could be full at once. The write error of a program
            // that does not read its input is ignored.
            scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
            child.wait_with_output().context("cannot wait for the process")
        })
    }

    /// Runs a program inside a host; returns its standard output, or an error with its standard
    /// error.
    pub fn run(
        &self,
        host: &LabHost,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
        input: &str,
    ) -> Result<String> {
        let mut command = Command::new(&program);
        command.args(arguments);
        let output = self.output(host, command, input)?;
        if !output.status.success() {
            let program = Path::new(&program).display().to_string();
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{program} {}` in {} failed ({}): {}",
                arguments.join(" "),
                host.name,
                output.status,
                stderr.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread in the host's network namespace, which its sockets and its view of
    /// `/proc/sys/net` belong to.
    pub fn within<T: Send>(
        &self,
        host: &LabHost,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let descriptor = self.descriptor(host)?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(descriptor, CloneFlags::CLONE_NEWNET).with_context(|| {
                    format!("cannot enter the network namespace of {}", host.name)
                })?;
                work()
            });
            worker.join().map_err(|_| anyhow!("a thread in {} panicked", host.name))?
        })
    }

    /// Starts a thread in the host's network namespace that may outlive this call.
    pub fn background<T: Send + 'static>(
        &self,
        host: &LabHost,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let descriptor =
            self.descriptor(host)?.try_clone_to_owned().context("cannot duplicate a descriptor")?;
        let name = host.name.clone();
        Ok(std::thread::spawn(move || {
            setns(descriptor, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network namespace of {name}"))?;
            work()
        }))
    }

    /// Ends all processes of the lab, and with them its namespaces; waits for their end.
    pub fn destroy(&self) -> Result<()> {
        end(&self.processes)
    }
}

/// Waits for a child on a thread.
///
/// The init of a PID namespace ends only after every process of the namespace has been reaped, and
/// only this process can reap its children. The thread ends with the child.
pub(super) fn reap(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// Ends a lab's processes and waits for their end. Processes that have already ended are no error.
pub fn end(processes: &LabProcesses) -> Result<()> {
    let init = &processes.init;
    init.signal(Signal::KILL);
    let limit = Duration::from_secs(10);
    ensure!(init.wait_end(limit), "the lab's init (PID {}) does not end", init.pid);
    for (name, holder) in &processes.holders {
        ensure!(
            holder.process.wait_end(limit),
            "the holder of {name} (PID {}) does not end",
            holder.process.pid
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_distinguished_from_an_earlier_one_with_the_same_pid() {
        let this = ProcessId::identify(std::process::id().cast_signed()).unwrap();
        assert!(this.alive() && this.open().is_some());
        let former = ProcessId { started: this.started - 1, ..this };
        assert!(!former.alive() && former.open().is_none() && !former.signal(Signal::USR1));
        assert!(former.wait_end(Duration::ZERO));
    }
}

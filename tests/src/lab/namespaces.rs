//! Entering the lab's namespaces: starting processes in a host, and running code on a thread inside
//! its network.

use super::topology::{HOSTS, Host};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A process, named so that another process that got the same PID later is never mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// PID in the namespace of whoever runs the lab.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub started: u64,
}

impl Process {
    /// Identifies a process that runs now.
    pub fn identify(pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// A descriptor of the process, or `None` when it has ended.
    pub fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the descriptor names this very process.
        self.alive().then_some(descriptor)
    }

    /// Sends a signal; false when the process has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.open().is_some_and(|descriptor| pidfd_send_signal(descriptor, signal).is_ok())
    }

    /// Waits until the process has ended; false when it still runs after `limit`.
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
    // The name, in parentheses, may itself hold spaces and parentheses; the state is the first
    // field after it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// A host's holder, as recorded in the lab's state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The process that keeps the namespaces.
    pub process: Process,
    /// Its PID inside the lab's PID namespace, by which `ip` finds its network namespace.
    pub inner_pid: i32,
}

/// The processes that a lab consists of; enough to find it again from another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Anchors {
    /// Init of the lab's PID namespace: its end is the end of the lab.
    pub init: Process,
    /// Holders by host name.
    pub holders: BTreeMap<String, Holder>,
}

/// The lab's namespaces, open for entering.
#[derive(Debug)]
pub struct Namespaces {
    anchors: Anchors,
    init: OwnedFd,
    hosts: BTreeMap<&'static str, OwnedFd>,
    /// While this end is open the init lives; the kernel closes it when this process ends, however
    /// it ends.
    _alive: Option<PipeWriter>,
}

impl Namespaces {
    /// Makes the namespaces of all hosts, without links yet. `program` is the `sluice-lab` binary,
    /// `state` its state directory.
    ///
    /// Unless `detached`, all of it ends with the calling process.
    pub fn create(program: &Path, state: &Path, detached: bool) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("pid-namespace").stdout(Stdio::piped());
        let alive = if detached {
            command.arg("--detached").stdin(Stdio::null());
            None
        } else {
            let (ours, theirs) = std::io::pipe().context("cannot make a pipe")?;
            command.stdin(ours);
            Some(theirs)
        };
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        drop(command);
        let mut text = String::new();
        // One line, not to the end: the init inherits the pipe and would keep it open.
        let stdout = child.stdout.take().context("the helper has no output")?;
        BufReader::new(stdout).read_line(&mut text).context("cannot read the init's PID")?;
        ensure!(
            child.wait()?.success(),
            "cannot make the lab's PID namespace; see the message above"
        );
        let init =
            Process::identify(text.trim().parse().context("the init's PID is not a number")?)?;
        let descriptor = init.open().context("the lab's init ended at once")?;
        let anchors = Anchors { init, holders: BTreeMap::new() };
        let mut this = Self { anchors, init: descriptor, hosts: BTreeMap::new(), _alive: alive };
        if let Err(error) = this.hold_all(program, state) {
            this.destroy()?;
            return Err(error);
        }
        Ok(this)
    }

    fn hold_all(&mut self, program: &Path, state: &Path) -> Result<()> {
        for host in &HOSTS {
            let mut command = Command::new(program);
            command
                .arg("hold")
                .arg(host.name)
                .arg(state)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .process_group(0);
            let mut child = self
                .start(command)
                .with_context(|| format!("cannot start the holder of {}", host.name))?;
            let mut line = String::new();
            let stdout = child.stdout.take().context("the holder has no output")?;
            BufReader::new(stdout).read_line(&mut line)?;
            let inner_pid = line.trim().parse();
            let inner_pid = inner_pid.map_err(|_| {
                anyhow!("host {} could not be made; see the message above", host.name)
            })?;
            let process = Process::identify(child.id().cast_signed())?;
            let descriptor = process
                .open()
                .with_context(|| format!("the holder of {} ended at once", host.name))?;
            reap(child);
            self.anchors.holders.insert(host.name.into(), Holder { process, inner_pid });
            self.hosts.insert(host.name, descriptor);
        }
        Ok(())
    }

    /// Opens the namespaces of a lab that another process made.
    pub fn open(anchors: Anchors) -> Result<Self> {
        let init = anchors
            .init
            .open()
            .context("the lab's processes have ended; run `sluice-lab down` to clear its state")?;
        let mut hosts = BTreeMap::new();
        for host in &HOSTS {
            let holder = anchors
                .holders
                .get(host.name)
                .with_context(|| format!("the lab has no host {}", host.name))?;
            let descriptor = holder
                .process
                .open()
                .with_context(|| format!("the holder of {} has ended", host.name))?;
            hosts.insert(host.name, descriptor);
        }
        Ok(Self { anchors, init, hosts, _alive: None })
    }

    /// What to record so that [`Self::open`] finds the lab again.
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// The root directory of the host as seen from outside: its private `/run`, `/sys/fs/bpf`, ...
    pub fn root(&self, host: &Host) -> PathBuf {
        let pid = self.anchors.holders.get(host.name).map_or(0, |holder| holder.process.pid);
        PathBuf::from(format!("/proc/{pid}/root"))
    }

    /// The PID by which `ip ... netns PID` inside the lab names this host; 0 for an unknown name.
    pub fn inner_pid(&self, host: &str) -> i32 {
        self.anchors.holders.get(host).map_or(0, |holder| holder.inner_pid)
    }

    fn descriptor(&self, host: &Host) -> Result<BorrowedFd<'_>> {
        self.hosts
            .get(host.name)
            .map(AsFd::as_fd)
            .with_context(|| format!("host {} is not up", host.name))
    }

    /// Starts a process in the lab's PID namespace, in the namespaces of whoever calls otherwise.
    fn start(&self, mut command: Command) -> Result<Child> {
        let init = self.init.as_fd();
        // Only a thread's later children land in the PID namespace it joined, so a thread of its
        // own does the joining.
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

    /// Starts a process inside a host. It ends with the lab, at the latest.
    pub fn spawn(&self, host: &Host, mut command: Command) -> Result<Child> {
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

    /// Runs a process inside a host to its end and returns what it wrote; `input` goes to its
    /// standard input.
    pub fn output(&self, host: &Host, mut command: Command, input: &str) -> Result<Output> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = self.spawn(host, command)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // On a thread, because a program may write much before it has read all. One that reads
            // nothing is no error.
            scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
            child.wait_with_output().context("cannot wait for the process")
        })
    }

    /// Runs a program inside a host; its standard output, or an error that quotes its standard
    /// error.
    pub fn run(
        &self,
        host: &Host,
        program: impl AsRef<std::ffi::OsStr>,
        arguments: &[&str],
        input: &str,
    ) -> Result<String> {
        let mut command = Command::new(&program);
        command.args(arguments);
        let output = self.output(host, command, input)?;
        if !output.status.success() {
            let program = Path::new(&program).display().to_string();
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{program} {}` in {} failed ({}): {}",
                arguments.join(" "),
                host.name,
                output.status,
                complaint.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread inside the host's network namespace: sockets it opens, and
    /// `/proc/sys/net`, are the host's.
    pub fn within<T: Send>(
        &self,
        host: &Host,
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

    /// Starts a thread inside the host's network namespace that may outlive this call.
    pub fn background<T: Send + 'static>(
        &self,
        host: &'static Host,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let descriptor =
            self.descriptor(host)?.try_clone_to_owned().context("cannot duplicate a descriptor")?;
        Ok(std::thread::spawn(move || {
            setns(descriptor, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network namespace of {}", host.name))?;
            work()
        }))
    }

    /// Ends every process of the lab, and with them its namespaces; waits until they are gone.
    pub fn destroy(&self) -> Result<()> {
        end(&self.anchors)
    }
}

/// Collects a child's exit status when the time comes.
///
/// The init of a PID namespace does not end before every process of the namespace has been reaped,
/// and those that this process started are its own to reap. The thread ends with the child, or with
/// this process, whose children then become others'.
pub(super) fn reap(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// Ends a lab by its recorded processes; waits until all have ended. A lab that has ended already
/// is no error.
pub fn end(anchors: &Anchors) -> Result<()> {
    anchors.init.signal(Signal::KILL);
    let limit = Duration::from_secs(10);
    ensure!(anchors.init.wait_end(limit), "the lab's init (PID {}) does not end", anchors.init.pid);
    for (name, holder) in &anchors.holders {
        ensure!(
            holder.process.wait_end(limit),
            "the holder of {name} (PID {}) does not end",
            holder.process.pid
        );
    }
    Ok(())
}

/// Reads a file whose size the kernel does not tell beforehand; for files under `/proc` and `/sys`.
pub fn read_kernel_file(path: &Path) -> Result<String> {
    let mut text = String::new();
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_is_told_from_one_that_had_its_pid_before() {
        let this = Process::identify(std::process::id().cast_signed()).unwrap();
        assert!(this.alive() && this.open().is_some());
        let former = Process { started: this.started - 1, ..this };
        assert!(!former.alive() && former.open().is_none() && !former.signal(Signal::USR1));
        assert!(former.wait_end(Duration::ZERO));
    }
}

//! The processes that keep a lab alive: one init for its PID namespace, one holder for each host.
//!
//! The whole lab runs in one PID namespace. When its init ends, the kernel kills every process of
//! the lab and thereby removes every network namespace, link, program and pin, so clean-up searches
//! nothing by name. The functions here run in single-threaded processes that [`super::namespaces`]
//! starts.
#![expect(unsafe_code, reason = "calls sigaction(2)")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Creates the lab's PID namespace, starts its init there, prints the init's PID (as seen by this
/// process) and returns.
///
/// The init inherits standard input and ends at its end of file, unless `detached`.
pub fn pid_namespace(detached: bool) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)
        .context("cannot create a PID namespace: the lab needs root (CAP_SYS_ADMIN)")?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let mut command = Command::new(program);
    command.arg("init").process_group(0);
    if detached {
        command.arg("--detached");
    }
    let child = command.spawn().context("cannot start the lab's init process")?;
    println!("{}", child.id());
    Ok(())
}

/// The lab's init: reaps orphans and ends at the end of standard input, or if `detached` by SIGKILL
/// only.
pub fn init(detached: bool) -> Result<()> {
    let reap = SigAction::new(SigHandler::SigIgn, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: the action ignores the signal, so it installs no handler.
    unsafe { sigaction(Signal::SIGCHLD, &reap) }.context("cannot set SA_NOCLDWAIT")?;
    if detached {
        close_stderr()?;
        loop {
            nix::unistd::pause();
        }
    }
    // The process that runs the lab holds the other end of the pipe and never writes.
    let mut byte = [0; 1];
    while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
    Ok(())
}

/// The holder of one host: creates its namespaces and private file systems, prints its own PID and
/// sleeps until it is killed.
///
/// `state` is the lab's state directory, which stays visible although `/run` is private.
pub fn hold(host: &str, state: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .with_context(|| {
            format!("cannot create the namespaces of {host}: the lab needs root (CAP_SYS_ADMIN)")
        })?;
    nix::unistd::sethostname(host).with_context(|| format!("cannot set the host name {host}"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;

    // Opened before other mounts cover them: the descriptors still reach the covered directories.
    let covered_state = directory(state)?;
    let covered_cgroups = directory(Path::new("/sys/fs/cgroup")).ok();

    mount_new("proc", Path::new("/proc"))?;
    // sysfs shows the interfaces of the network namespace in which it was mounted.
    mount_new("sysfs", Path::new("/sys"))?;
    if let Some(covered) = &covered_cgroups {
        bind(covered, Path::new("/sys/fs/cgroup"))?;
    }
    mount_new("bpf", Path::new("/sys/fs/bpf"))?;
    mount_new("tmpfs", Path::new("/run"))?;
    if !state.is_dir() {
        std::fs::create_dir_all(state)
            .with_context(|| format!("cannot create {}", state.display()))?;
        bind(&covered_state, state)?;
    }

    println!("{}", std::process::id());
    std::io::stdout().flush().context("cannot write the PID to standard output")?;
    close_stderr()?;
    loop {
        nix::unistd::pause();
    }
}

/// Replaces standard error by `/dev/null`: a process that outlives `sluice-lab up` would keep the
/// caller's pipe open.
fn close_stderr() -> Result<()> {
    let null = File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stderr(null).context("cannot replace standard error")
}

fn directory(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn mount_new(kind: &str, at: &Path) -> Result<()> {
    let data: Option<&str> = None;
    mount(Some(kind), at, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, data)
        .map_err(|error| anyhow!("cannot mount a private {kind} at {}: {error}", at.display()))
}

fn bind(directory: &File, to: &Path) -> Result<()> {
    let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let none: Option<&str> = None;
    mount(Some(source.as_str()), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(|error| anyhow!("cannot bind-mount {} in the host: {error}", to.display()))
}

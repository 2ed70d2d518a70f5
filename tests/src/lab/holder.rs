//! The processes that keep a lab alive: one init for its PID namespace, one holder for each host.
//!
//! The whole lab runs in one PID namespace. When its init ends, for whatever reason, the kernel
//! ends every process of the lab, with them every network namespace, and with those every link,
//! program and pin: nothing has to be found by name to clean up. The functions here run in
//! single-threaded processes of their own, started by [`super::namespaces`].

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Makes the lab's PID namespace, starts its init in it, prints the init's PID (as this process
/// sees it) and returns.
///
/// The init inherits standard input: its end is the init's end, unless `detached`.
pub fn pid_namespace(detached: bool) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)
        .context("cannot make a PID namespace: the lab needs root (CAP_SYS_ADMIN)")?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg("init").process_group(0);
    if detached {
        command.arg("--detached");
    }
    let child = command.spawn().context("cannot start the lab's init process")?;
    println!("{}", child.id());
    Ok(())
}

/// The lab's init: reaps orphans, and ends when standard input does (never, when `detached`: then
/// it ends by SIGKILL).
pub fn init(detached: bool) -> Result<()> {
    let reap = SigAction::new(SigHandler::SigIgn, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: the action ignores the signal, so no handler of ours ever runs.
    unsafe { sigaction(Signal::SIGCHLD, &reap) }
        .context("cannot ask the kernel to reap children")?;
    if detached {
        leave_caller()?;
        loop {
            nix::unistd::pause();
        }
    }
    // Whoever runs the lab holds the other end of the pipe and never writes; all that can come is
    // the end.
    let mut nothing = [0; 1];
    while matches!(std::io::stdin().read(&mut nothing), Ok(1..)) {}
    Ok(())
}

/// Becomes the holder of one host: makes its namespaces and private file systems, prints its own
/// PID and waits to be killed.
///
/// `state` is the lab's state directory, which stays visible inside although `/run` is private.
pub fn hold(host: &str, state: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .with_context(|| {
            format!("cannot make the namespaces of {host}: the lab needs root (CAP_SYS_ADMIN)")
        })?;
    nix::unistd::sethostname(host).with_context(|| format!("cannot name the host {host}"))?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make the mounts private")?;

    // Opened before they are covered; the descriptor keeps the way to what lies below.
    let state_below = directory(state)?;
    let cgroups_below = directory(Path::new("/sys/fs/cgroup")).ok();

    fresh("proc", Path::new("/proc"))?;
    // sysfs shows the interfaces of the network namespace it was mounted in.
    fresh("sysfs", Path::new("/sys"))?;
    if let Some(below) = &cgroups_below {
        carry(below, Path::new("/sys/fs/cgroup"))?;
    }
    fresh("bpf", Path::new("/sys/fs/bpf"))?;
    fresh("tmpfs", Path::new("/run"))?;
    if !state.is_dir() {
        std::fs::create_dir_all(state)
            .with_context(|| format!("cannot make {}", state.display()))?;
        carry(&state_below, state)?;
    }

    println!("{}", std::process::id());
    std::io::stdout().flush().context("cannot report to the lab")?;
    leave_caller()?;
    loop {
        nix::unistd::pause();
    }
}

/// Lets go of the caller's standard error: a process that outlives `sluice-lab up` would keep a
/// pipe behind it open for good.
fn leave_caller() -> Result<()> {
    let nowhere = File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stderr(nowhere).context("cannot let go of standard error")
}

fn directory(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn fresh(kind: &str, at: &Path) -> Result<()> {
    let data: Option<&str> = None;
    mount(Some(kind), at, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, data)
        .map_err(|error| anyhow!("cannot mount a private {kind} at {}: {error}", at.display()))
}

fn carry(below: &File, to: &Path) -> Result<()> {
    let source = format!("/proc/self/fd/{}", below.as_raw_fd());
    let nothing: Option<&str> = None;
    mount(Some(source.as_str()), to, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)
        .map_err(|error| anyhow!("cannot keep {} visible in the host: {error}", to.display()))
}

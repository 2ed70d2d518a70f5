//! A daemon followed from one change of the host to the next, and killed in between.
#![expect(unsafe_code, reason = "reads a union of ptrace(2)")]

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::fixture::Daemon;

/// Commands of the `bpf` system call (`enum bpf_cmd`).
const BPF: [(u64, &str); 3] = [(2, "write"), (6, "pin"), (26, "write")];

/// What a system call does to the host, if anything.
fn meaning(number: i64, first: u64) -> Option<&'static str> {
    match number {
        libc::SYS_bpf => BPF.iter().find(|(command, _)| *command == first).map(|(_, name)| *name),
        libc::SYS_renameat | libc::SYS_renameat2 => Some("rename"),
        libc::SYS_mkdirat => Some("mkdir"),
        libc::SYS_unlinkat => Some("unlink"),
        libc::SYS_sendto | libc::SYS_sendmsg => Some("netlink"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => Some("rename"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir => Some("mkdir"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink | libc::SYS_rmdir => Some("unlink"),
        _ => None,
    }
}

/// Sends a signal to a daemon that is ready, and kills it right before the change with this number
/// (from 0) of those that it makes then: what that would have been. `None` when it makes no more
/// than that, and is ready again.
///
/// `between` is called before each change.
pub(crate) fn kill_before(
    daemon: &Daemon,
    signal: Signal,
    change: usize,
    mut between: impl FnMut(&'static str),
) -> Option<&'static str> {
    let process = Pid::from_raw(daemon.id() as i32);
    let ready = daemon.log_count("ready: ");
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(process).unwrap();
    waitpid(process, None).unwrap();
    daemon.signal(signal);
    ptrace::syscall(process, None).unwrap();
    let mut changes = 0;
    loop {
        match waitpid(process, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(process).unwrap();
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: at the entry of a system call, this is the part of the union that the
                    // kernel filled.
                    let call = unsafe { info.u.entry };
                    if let Some(meaning) = meaning(call.nr as i64, call.args[0]) {
                        between(meaning);
                        if changes == change {
                            daemon.signal(Signal::SIGKILL);
                            return Some(meaning);
                        }
                        changes += 1;
                    } else if call.nr as i64 == libc::SYS_epoll_wait
                        && daemon.log_count("ready: ") > ready
                    {
                        ptrace::detach(process, None).unwrap();
                        return None;
                    }
                }
                ptrace::syscall(process, None).unwrap();
            }
            WaitStatus::Stopped(_, signal) => ptrace::syscall(process, signal).unwrap(),
            WaitStatus::PtraceEvent(..) => ptrace::syscall(process, None).unwrap(),
            other => panic!("{other:?} after {changes} changes:\n{}", daemon.log()),
        }
    }
}

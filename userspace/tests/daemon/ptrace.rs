//! Traces a daemon: kills it before a chosen change of the host, or makes a system call fail.
#![expect(unsafe_code, reason = "reads a union of ptrace(2)")]

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::fixture::DaemonProcess;

/// Commands of the `bpf` system call (`enum bpf_cmd`) that change the host.
const BPF: [(u64, &str); 3] = [(2, "write"), (6, "pin"), (26, "write")];

/// The kind of change that a system call makes to the host, if any.
fn host_change(number: i64, first: u64) -> Option<&'static str> {
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

/// Sends a signal to a ready daemon, and kills it before its next change number `change` (from 0).
/// Returns the kind of that change, or `None` if the daemon makes fewer and is ready again.
///
/// `before_change` is called before each change.
pub(crate) fn kill_before(
    daemon: &DaemonProcess,
    signal: Signal,
    change: usize,
    mut before_change: impl FnMut(&'static str),
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
                    // SAFETY: the kernel sets this member of the union at the entry of a system
                    // call.
                    let call = unsafe { info.u.entry };
                    if let Some(host_change) = host_change(call.nr as i64, call.args[0]) {
                        before_change(host_change);
                        if changes == change {
                            daemon.signal(Signal::SIGKILL);
                            return Some(host_change);
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

/// Gives a ready daemon work, and makes its netlink request number `request` from then on (from 0)
/// fail with `ENOBUFS`. Returns false if it sends fewer and is ready again.
#[cfg(target_arch = "x86_64")]
pub(crate) fn fail_request(daemon: &DaemonProcess, work: impl FnOnce(), request: usize) -> bool {
    let process = Pid::from_raw(daemon.id() as i32);
    let ready = daemon.log_count("ready: ");
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(process).unwrap();
    waitpid(process, None).unwrap();
    work();
    ptrace::syscall(process, None).unwrap();
    let mut requests = 0;
    loop {
        let mut forwarded = None;
        match waitpid(process, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(process).unwrap();
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: the kernel sets this member of the union at the entry of a system
                    // call.
                    let call = unsafe { info.u.entry };
                    let number = call.nr as i64;
                    // With an address: the signal handler wakes the runtime by `send`.
                    let is_request = number == libc::SYS_sendto && call.args[4] != 0;
                    if is_request && requests == request {
                        fail_call(process, libc::ENOBUFS);
                        return true;
                    }
                    requests += usize::from(is_request);
                    if number == libc::SYS_epoll_wait && daemon.log_count("ready: ") > ready {
                        ptrace::detach(process, None).unwrap();
                        return false;
                    }
                }
            }
            WaitStatus::Stopped(_, signal) => forwarded = Some(signal),
            WaitStatus::PtraceEvent(..) => {}
            other => panic!("{other:?} after {requests} requests:\n{}", daemon.log()),
        }
        ptrace::syscall(process, forwarded).unwrap();
    }
}

/// Replaces the system call that a traced process has entered by an error, and detaches.
#[cfg(target_arch = "x86_64")]
fn fail_call(process: Pid, errno: i32) {
    let mut registers = ptrace::getregs(process).unwrap();
    // A number that no system call has.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(process, registers).unwrap();
    ptrace::syscall(process, None).unwrap();
    assert!(matches!(waitpid(process, None).unwrap(), WaitStatus::PtraceSyscall(_)));
    registers = ptrace::getregs(process).unwrap();
    registers.rax = i64::from(-errno) as u64;
    ptrace::setregs(process, registers).unwrap();
    ptrace::detach(process, None).unwrap();
}

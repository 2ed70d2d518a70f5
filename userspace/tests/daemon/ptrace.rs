//! Traces a daemon: kills it before a chosen change of the host, or makes a system call fail.
#![expect(unsafe_code, reason = "reads a union of ptrace(2)")]

use std::os::unix::fs::FileExt as _;

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
    let ready = daemon.log_count("ready: ");
    let mut changes = 0;
    let work = || daemon.signal(signal);
    at_calls(daemon, work, |_, number, arguments| {
        if let Some(host_change) = host_change(number, arguments[0]) {
            before_change(host_change);
            if changes == change {
                daemon.signal(Signal::SIGKILL);
                return Some(Some(host_change));
            }
            changes += 1;
        }
        let is_idle = number == libc::SYS_epoll_wait && daemon.log_count("ready: ") > ready;
        is_idle.then_some(None)
    })
}

/// The system calls that [`fail_calls`] makes fail.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) enum FailingCall {
    /// A request to rtnetlink.
    Netlink,
    /// `BPF_PROG_LOAD`.
    LoadProgram,
}

#[cfg(target_arch = "x86_64")]
impl FailingCall {
    fn is(self, number: i64, arguments: &[u64; 6]) -> bool {
        match self {
            // With an address: the signal handler wakes the runtime by `send`.
            Self::Netlink => number == libc::SYS_sendto && arguments[4] != 0,
            Self::LoadProgram => number == libc::SYS_bpf && arguments[0] == 5,
        }
    }
}

/// Gives a ready daemon work, and makes system calls of a kind fail: `count` of them from number
/// `first` on (from 0). Returns false if it makes fewer and is ready again.
#[cfg(target_arch = "x86_64")]
pub(crate) fn fail_calls(
    daemon: &DaemonProcess,
    work: impl FnOnce(),
    call: FailingCall,
    first: usize,
    count: usize,
    errno: i32,
) -> bool {
    let ready = daemon.log_count("ready: ");
    let mut calls = 0;
    at_calls(daemon, work, |process, number, arguments| {
        if call.is(number, arguments) {
            if calls >= first {
                fail_call(process, errno);
            }
            calls += 1;
        }
        let is_idle = number == libc::SYS_epoll_wait && daemon.log_count("ready: ") > ready;
        (calls == first + count || is_idle).then_some(calls == first + count)
    })
}

/// Gives a ready daemon work, and loses its requests to rtnetlink: each seems to be sent, and gets
/// no answer. Calls `then` after the first one, and returns before the daemon ends.
#[cfg(target_arch = "x86_64")]
pub(crate) fn lose_requests(daemon: &DaemonProcess, work: impl FnOnce(), then: impl FnOnce()) {
    let mut then = Some(then);
    at_calls(daemon, work, |process, number, arguments| {
        if FailingCall::Netlink.is(number, arguments) {
            replace_call(process, arguments[2]);
            if let Some(then) = then.take() {
                then();
            }
        }
        (number == libc::SYS_exit_group).then_some(())
    });
}

/// Gives a ready daemon work, and calls `at_entry` at the entry of each system call of its core's
/// thread, with the thread, the call's number and its arguments, until there is a result.
fn at_calls<T>(
    daemon: &DaemonProcess,
    work: impl FnOnce(),
    mut at_entry: impl FnMut(Pid, i64, &[u64; 6]) -> Option<T>,
) -> T {
    let process = Pid::from_raw(daemon.id() as i32);
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(process).unwrap();
    waitpid(process, None).unwrap();
    work();
    ptrace::syscall(process, None).unwrap();
    loop {
        let mut forwarded = None;
        match waitpid(process, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(process).unwrap();
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: the kernel sets this member of the union at the entry of a system
                    // call.
                    let entry = unsafe { info.u.entry };
                    if let Some(result) = at_entry(process, entry.nr as i64, &entry.args) {
                        // Fails if it was killed.
                        let _ = ptrace::detach(process, None);
                        return result;
                    }
                }
            }
            WaitStatus::Stopped(_, signal) => forwarded = Some(signal),
            WaitStatus::PtraceEvent(..) => {}
            other => panic!("{other:?}:\n{}", daemon.log()),
        }
        ptrace::syscall(process, forwarded).unwrap();
    }
}

/// Stops the core's thread of a daemon, as a system call does that the kernel does not complete.
/// The daemon goes on when the value is dropped.
pub(crate) struct StoppedCore(Pid);

impl StoppedCore {
    pub(crate) fn new(daemon: &DaemonProcess) -> Self {
        let process = Pid::from_raw(daemon.id() as i32);
        ptrace::seize(process, Options::empty()).unwrap();
        ptrace::interrupt(process).unwrap();
        waitpid(process, None).unwrap();
        Self(process)
    }
}

impl Drop for StoppedCore {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

/// Replaces the system call that a traced process has entered by an error.
#[cfg(target_arch = "x86_64")]
fn fail_call(process: Pid, errno: i32) {
    replace_call(process, i64::from(-errno) as u64);
}

/// Replaces the system call that a traced process has entered by its result.
#[cfg(target_arch = "x86_64")]
fn replace_call(process: Pid, result: u64) {
    let mut registers = ptrace::getregs(process).unwrap();
    // A number that no system call has.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(process, registers).unwrap();
    ptrace::syscall(process, None).unwrap();
    assert!(matches!(waitpid(process, None).unwrap(), WaitStatus::PtraceSyscall(_)));
    registers = ptrace::getregs(process).unwrap();
    registers.rax = result;
    ptrace::setregs(process, registers).unwrap();
}

/// Continues a process that has stopped itself, and calls `then` when it is about to open `file` or
/// to make a thread that does so.
pub(crate) fn before_open(daemon: &DaemonProcess, file: &str, then: impl FnOnce()) {
    let process = Pid::from_raw(daemon.id() as i32);
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    daemon.signal(Signal::SIGCONT);
    ptrace::interrupt(process).unwrap();
    loop {
        match waitpid(process, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(process).unwrap();
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: the kernel sets this member of the union at the entry of a system
                    // call.
                    let entry = unsafe { info.u.entry };
                    let is_awaited = match entry.nr as i64 {
                        libc::SYS_openat => path_at(process, entry.args[1]).ends_with(file),
                        libc::SYS_clone | libc::SYS_clone3 => true,
                        _ => false,
                    };
                    if is_awaited {
                        break;
                    }
                }
            }
            WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => {}
            other => panic!("{other:?}:\n{}", daemon.log()),
        }
        ptrace::syscall(process, None).unwrap();
    }
    then();
    ptrace::detach(process, None).unwrap();
}

/// The string at an address of a process.
fn path_at(process: Pid, address: u64) -> String {
    let mut bytes = [0; 256];
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let read = memory.read_at(&mut bytes, address).unwrap_or(0);
    let end = bytes[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

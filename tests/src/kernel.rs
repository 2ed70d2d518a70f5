//! Calls to the kernel that Sluice itself has no use for: attaching by link, and test runs that tell their time.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Where a program is attached by link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// TCX ingress (Linux 6.6).
    Tcx,
    /// XDP in the driver, before the kernel has made a socket buffer (Linux 5.9).
    NativeXdp,
}

/// Attaches a program to an interface; it is detached when the link is closed.
///
/// # Errors
///
/// What the kernel refused: `EINVAL` where it has no such hook.
pub fn attach(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    const LINK_CREATE: libc::c_long = 28;
    const TCX_INGRESS: u32 = 46;
    const XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    /// `struct { ... } link_create` of `union bpf_attr` (`linux/bpf.h`), up to TCX's part of it.
    #[repr(C)]
    struct LinkCreate {
        program: i32,
        interface: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        expected_revision: u64,
    }

    let (attach_type, flags) = match hook {
        Hook::Tcx => (TCX_INGRESS, 0),
        Hook::NativeXdp => (XDP, XDP_FLAGS_DRV_MODE),
    };
    let program = program.as_raw_fd();
    let request = LinkCreate { program, interface, attach_type, flags, relative: 0, pad: 0, expected_revision: 0 };
    // SAFETY: `request` is laid out as the kernel's attribute union for this command.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, &raw const request, size_of::<LinkCreate>()) };
    match i32::try_from(descriptor) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a program once on a frame (`BPF_PROG_TEST_RUN`): its return value, and how many nanoseconds it took, reading the clock included.
///
/// Once, because the kernel does not restore the frame before it repeats a run.
///
/// # Errors
///
/// What the kernel refused.
pub fn run_timed(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, u32)> {
    const PROG_TEST_RUN: libc::c_long = 10;
    /// `struct { ... } test` of `union bpf_attr` (`linux/bpf.h`), up to the contexts.
    #[repr(C)]
    struct TestRun {
        program: i32,
        value: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        nanoseconds: u32,
    }

    let mut request = TestRun {
        program: program.as_raw_fd(),
        value: 0,
        size_in: frame.len() as u32,
        size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        nanoseconds: 0,
    };
    // SAFETY: `request` is laid out as the kernel's attribute union for this command, and `frame` outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut request, size_of::<TestRun>()) };
    if outcome == 0 { Ok((request.value, request.nanoseconds)) } else { Err(io::Error::last_os_error()) }
}

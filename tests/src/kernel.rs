//! Calls to the kernel that Sluice itself has no use for: attaching by link, and test runs that
//! tell their time.

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
    let request = LinkCreate {
        program,
        interface,
        attach_type,
        flags,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: `request` is laid out as the kernel's attribute union for this command.
    let descriptor = unsafe {
        libc::syscall(libc::SYS_bpf, LINK_CREATE, &raw const request, size_of::<LinkCreate>())
    };
    match i32::try_from(descriptor) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct { ... } test` of `union bpf_attr` (`linux/bpf.h`).
#[derive(Default)]
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
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

impl TestRun {
    fn new(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Self {
        let (size_in, data_in) = (frame.len() as u32, frame.as_ptr() as u64);
        Self { program: program.as_raw_fd(), size_in, data_in, repeat, ..Self::default() }
    }

    /// `frame` is what the request points to.
    fn submit(mut self, frame: &[u8]) -> io::Result<Self> {
        const PROG_TEST_RUN: libc::c_long = 10;

        debug_assert_eq!(self.data_in, frame.as_ptr() as u64);
        // SAFETY: `self` is laid out as the kernel's attribute union for this command, and `frame`
        // outlives the call.
        let outcome = unsafe {
            libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut self, size_of::<Self>())
        };
        if outcome == 0 { Ok(self) } else { Err(io::Error::last_os_error()) }
    }
}

/// Runs a program once on a frame (`BPF_PROG_TEST_RUN`): its return value, and how many nanoseconds
/// it took, reading the clock included.
///
/// Once, because the kernel does not restore the frame before it repeats a run.
///
/// # Errors
///
/// What the kernel refused.
pub fn run_timed(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, u32)> {
    let run = TestRun::new(program, frame, 1).submit(frame)?;
    Ok((run.value, run.nanoseconds))
}

/// Runs a program for XDP live on frames of the kernel's own, as the driver of a busy network card
/// does, 64 at a time: what it redirects leaves. Nanoseconds a frame, all that follows on the same
/// CPU included. Linux 5.18.
///
/// # Errors
///
/// What the kernel refused.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], frames: u32) -> io::Result<u32> {
    const LIVE_FRAMES: u32 = 1 << 1;

    let request = TestRun { flags: LIVE_FRAMES, batch: 64, ..TestRun::new(program, frame, frames) };
    request.submit(frame).map(|run| run.nanoseconds)
}

//! BPF system calls that Sluice itself does not need: attaching by link, timed test runs, loading a
//! classifier from instructions.
#![expect(unsafe_code, reason = "calls bpf(2)")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, XDP_FLAGS_DRV_MODE, bpf_attach_type, bpf_attr,
    bpf_attr__bindgen_ty_7 as TestRun, bpf_cmd, bpf_insn, bpf_prog_type,
};

/// Where a program is attached by link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkHook {
    /// TCX ingress (Linux 6.6).
    Tcx,
    /// XDP in the driver, before the kernel allocates a socket buffer (Linux 5.9).
    NativeXdp,
}

/// Attaches a program to an interface; closing the link detaches it. A kernel without the hook
/// returns `EINVAL`.
pub fn attach(program: BorrowedFd<'_>, interface: u32, hook: LinkHook) -> io::Result<OwnedFd> {
    let (attach_type, flags) = match hook {
        LinkHook::Tcx => (bpf_attach_type::BPF_TCX_INGRESS, 0),
        LinkHook::NativeXdp => (bpf_attach_type::BPF_XDP, XDP_FLAGS_DRV_MODE),
    };
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attributes.link_create.__bindgen_anon_2.target_ifindex = interface;
    attributes.link_create.attach_type = attach_type as u32;
    attributes.link_create.flags = flags;
    // SAFETY: `BPF_LINK_CREATE` reads `link_create`, which holds no pointers.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just created this descriptor for the link.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Loads a program for TC from its instructions.
pub fn load_classifier(instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    attributes.__bindgen_anon_3.insn_cnt = instructions.len() as u32;
    attributes.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attributes.__bindgen_anon_3.license = c"MIT".as_ptr() as u64;
    // SAFETY: `BPF_PROG_LOAD` reads the instructions and the licence, both of which outlive the
    // call.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just created this descriptor for the program.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Runs a program once on a frame (`BPF_PROG_TEST_RUN`): its return value and its run time in
/// nanoseconds, which includes reading the clock.
///
/// Once, because the kernel does not restore the frame before it repeats a run.
pub fn run_timed(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, u32)> {
    let run = test_run(program, frame, |run| run.repeat = 1)?;
    Ok((run.retval, run.duration))
}

/// Runs an XDP program on live frames of the kernel (Linux 5.18), 64 at a time as the driver of a
/// busy network card does: redirected frames are transmitted. Returns nanoseconds per frame, which
/// include everything that follows on the same CPU.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], frames: u32) -> io::Result<u32> {
    let run = test_run(program, frame, |run| {
        run.repeat = frames;
        run.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        run.batch_size = 64;
    })?;
    Ok(run.duration)
}

fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    set: impl FnOnce(&mut TestRun),
) -> io::Result<TestRun> {
    let mut attributes = zeroed();
    // SAFETY: every bit pattern is a valid `TestRun`.
    let run = unsafe { &mut attributes.test };
    run.prog_fd = program.as_raw_fd().cast_unsigned();
    run.data_size_in = frame.len() as u32;
    run.data_in = frame.as_ptr() as u64;
    set(run);
    // SAFETY: `BPF_PROG_TEST_RUN` reads the frame, which outlives the call, and writes only the
    // attributes, since they name no buffer for output.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }?;
    // SAFETY: as above.
    Ok(unsafe { attributes.test })
}

fn zeroed() -> bpf_attr {
    // SAFETY: the union's members are integers and byte arrays, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

/// The `bpf()` system call; its return value, which may be a file descriptor.
///
/// # Safety
///
/// Pointers in the attributes of the command point to memory that outlives the call and is as long
/// as the attributes say.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<RawFd> {
    let attributes: *mut bpf_attr = attributes;
    // SAFETY: the attributes are the kernel's union; the caller vouches for its pointers.
    let value =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, attributes, size_of::<bpf_attr>()) };
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value as RawFd) }
}

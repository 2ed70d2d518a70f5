//! The filter behind the one that is tested: it sends whatever passed to an interface where it can
//! be captured.
//!
//! A packet socket on the interface itself would hear frames before the filters, and one behind
//! them without their VLAN tags.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

/// The filter's program in the kernel.
#[derive(Debug)]
pub(super) struct Onward(OwnedFd);

impl Onward {
    /// Loads a program that sends every frame out of an interface.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub(super) fn new(interface: u32) -> io::Result<Self> {
        /// `BPF_PROG_LOAD` of `enum bpf_cmd`, and `BPF_PROG_TYPE_SCHED_CLS`.
        const LOAD: libc::c_long = 5;
        const CLASSIFIER: u32 = 3;
        /// Opcodes: move a constant into a register, call a helper, end.
        const MOVE: u64 = 0xb7;
        const CALL: u64 = 0x85;
        const EXIT: u64 = 0x95;
        /// The helper `bpf_redirect(interface, flags)`.
        const REDIRECT: u64 = 23;

        // An instruction is an opcode, a register, an offset of zero, and a constant in the upper
        // half.
        let instruction =
            |code: u64, register: u64, constant: u64| code | register << 8 | constant << 32;
        let program = [
            instruction(MOVE, 1, interface.into()),
            instruction(MOVE, 2, 0),
            instruction(CALL, 0, REDIRECT),
            EXIT,
        ];
        /// The part of `union bpf_attr` that loads a program.
        #[repr(C)]
        struct Request {
            kind: u32,
            count: u32,
            instructions: u64,
            licence: u64,
            log: [u64; 2],
        }
        let request = Request {
            kind: CLASSIFIER,
            count: program.len() as u32,
            instructions: program.as_ptr() as u64,
            licence: c"MIT".as_ptr() as u64,
            log: [0; 2],
        };
        // SAFETY: the request is laid out as the kernel's attribute union for this command, and
        // what it points to outlives the call.
        let descriptor =
            unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const request, size_of::<Request>()) };
        match i32::try_from(descriptor) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(descriptor) if descriptor >= 0 => {
                Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Onward {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

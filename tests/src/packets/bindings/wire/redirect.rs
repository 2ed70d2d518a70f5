//! The filter after the program under test: it redirects every frame that passes to an interface
//! where it can be captured.
//!
//! A packet socket on the interface itself receives frames before the filters run, and a socket
//! after them receives frames without their VLAN tags.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{
    BPF_ALU64, BPF_CALL, BPF_EXIT, BPF_JMP, BPF_K, BPF_MOV, bpf_func_id, bpf_insn,
};

use crate::kernel::load_classifier;

/// The filter's program.
#[derive(Debug)]
pub(super) struct RedirectAll(OwnedFd);

impl RedirectAll {
    /// Loads a program that redirects every frame to an interface.
    pub(super) fn new(interface: u32) -> io::Result<Self> {
        let instruction = |code: u32, register: u8, immediate: u32| bpf_insn {
            code: code as u8,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(register, 0),
            off: 0,
            imm: immediate.cast_signed(),
        };
        let redirect = bpf_func_id::BPF_FUNC_redirect as u32;
        let program = [
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 1, interface),
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0),
            instruction(BPF_JMP | BPF_CALL, 0, redirect),
            instruction(BPF_JMP | BPF_EXIT, 0, 0),
        ];
        load_classifier(&program).map(Self)
    }
}

impl AsFd for RedirectAll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

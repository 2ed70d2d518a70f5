//! Stages as BPF subprograms with a stack frame of their own. They are called from an entry that
//! uses next to no stack: the kernel allows 512 bytes for a function and all its callers together.

use sluice_datapath::balance::{self, Hook, Stage, StageRunner};

use crate::maps::{Maps, UNCAPTURED};

/// Balances a packet. Returns the action of the hook.
#[inline(always)]
pub fn run<H: Hook + Copy>(hook: H) -> u32 {
    balance::balance(Subprograms { hook, capture_enabled: 0 })
}

struct Subprograms<H> {
    hook: H,
    capture_enabled: u64,
}

impl<H: Hook + Copy> StageRunner for Subprograms<H> {
    type Maps = Maps;

    #[inline(always)]
    fn maps(&self) -> &Maps {
        &UNCAPTURED
    }

    #[inline(always)]
    fn set_capture_enabled(&mut self, enabled: u64) {
        self.capture_enabled = enabled;
    }

    #[inline(always)]
    fn run<S: Stage>(&mut self, argument: u32) -> u64 {
        stage::<S, H>(self.hook, argument, self.capture_enabled)
    }
}

/// One stage as a subprogram.
#[inline(never)]
fn stage<S: Stage, H: Hook>(mut hook: H, argument: u32, capture_enabled: u64) -> u64 {
    S::run(&mut hook, argument, &Maps { capture_enabled })
}

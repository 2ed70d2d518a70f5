//! Signals during work of the verifier.

use nix::sys::signal::{SigSet, SigmaskHow};

/// Runs `work` with the signals of this thread blocked, and delivers them afterwards.
///
/// While a signal is pending, the verifier refuses every program with `EAGAIN`: those of the
/// daemon, and the small ones by which aya determines what the kernel supports.
pub(super) fn uninterrupted<T>(work: impl FnOnce() -> T) -> T {
    // Fails for an invalid argument only.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = work();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    result
}

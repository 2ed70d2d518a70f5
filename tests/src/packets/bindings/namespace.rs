//! What every test of a loaded program needs: privilege, and a network namespace of its own.

use anyhow::Context as _;
use libtest_mimic::Failed;
use nix::sched::{CloneFlags, unshare};
use sluice::kernel::bpf;

/// Why programs cannot be run here, in the kernel's terms; `None` when they can.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN".to_owned());
    }
    // Mounted here, before any test has a mount namespace or two of them race to mount it.
    bpf::bpffs().err().map(|error| format!("no BPF file system: {error}"))
}

/// Runs a test in a network namespace of its own, which vanishes with the test's thread.
///
/// # Errors
///
/// The test's own, or that there is no namespace.
pub fn in_namespace<T: Send + 'static>(
    test: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        test()
    });
    match thread.join() {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}").into()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

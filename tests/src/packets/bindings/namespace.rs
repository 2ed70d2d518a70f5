//! Privileges and a network namespace for tests of loaded programs.

use anyhow::Context as _;
use libtest_mimic::Failed;
use nix::sched::{CloneFlags, unshare};
use sluice::kernel::bpf;

/// The reason why programs cannot be loaded here; `None` if they can.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN".to_owned());
    }
    // Mounted before tests create mount namespaces or race to mount it.
    bpf::bpffs().err().map(|error| format!("no BPF file system: {error}"))
}

/// Runs a test in a new network namespace, which ends with the test's thread.
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

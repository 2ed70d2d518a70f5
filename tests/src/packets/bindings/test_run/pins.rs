//! Pins of one test.

use std::sync::atomic::{AtomicU32, Ordering};

use sluice::kernel::bpf::{self, Pins};
use sluice::role::Role;

/// Pins of one test, removed on drop.
pub(super) struct OwnPins(pub(super) Pins);

impl OwnPins {
    pub(super) fn new(role: Role) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("test-{}-{number}", std::process::id());
        Ok(Self(Pins::new(&bpf::bpffs()?, &instance, role)))
    }
}

impl Drop for OwnPins {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("cannot remove the pins at {}: {error}", self.0.directory().display());
        }
    }
}

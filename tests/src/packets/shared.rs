//! Loaded programs that tests share: loading takes longer than most tests do, above all where a
//! kernel is emulated.

use std::sync::Mutex;

use super::loaded::{Hook, Loaded};

/// Programs that nobody has.
static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// Lends the program of a hook to a test. Its maps hold no trace of other tests' packets; of their
/// worlds they may, until [`configure`](super::world::Balancer::configure) comes.
///
/// # Errors
///
/// The test's own, or what the kernel refused.
pub fn lend<T>(
    hook: Hook,
    test: impl FnOnce(&mut Loaded) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let take = |idle: &mut Vec<Loaded>| {
        idle.iter().position(|l| l.hook() == hook).map(|index| idle.swap_remove(index))
    };
    let idle = take(&mut IDLE.lock().expect("nobody panics with it"));
    let mut loaded = idle.map_or_else(|| Loaded::new(hook), Ok)?;
    let outcome = test(&mut loaded)?;
    loaded.forget()?;
    IDLE.lock().expect("nobody panics with it").push(loaded);
    Ok(outcome)
}

/// Removes all of them; comes when all tests have run.
pub fn unload() {
    IDLE.lock().expect("nobody panics with it").clear();
}

//! TestRunBalancer programs that tests share: loading takes longer than most tests do, above all where a
//! kernel is emulated.

use std::sync::Mutex;

use super::balancer::TestRunBalancer;
use super::hook::BalancerHook;

/// Programs that nobody has.
static IDLE: Mutex<Vec<TestRunBalancer>> = Mutex::new(Vec::new());

/// Lends the program of a hook to a test. Its maps hold no trace of other tests' packets; of their
/// fixtures they may, until [`configure`](super::fixture::BalancerBinding::configure) comes.
///
/// # Errors
///
/// The test's own, or what the kernel refused.
pub fn lend<T>(
    hook: BalancerHook,
    test: impl FnOnce(&mut TestRunBalancer) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let take = |idle: &mut Vec<TestRunBalancer>| {
        idle.iter().position(|l| l.hook() == hook).map(|index| idle.swap_remove(index))
    };
    let idle = take(&mut IDLE.lock().expect("nobody panics with it"));
    let mut loaded = idle.map_or_else(|| TestRunBalancer::new(hook), Ok)?;
    let outcome = test(&mut loaded)?;
    loaded.forget()?;
    IDLE.lock().expect("nobody panics with it").push(loaded);
    Ok(outcome)
}

/// Removes all of them; comes when all tests have run.
pub fn unload() {
    IDLE.lock().expect("nobody panics with it").clear();
}

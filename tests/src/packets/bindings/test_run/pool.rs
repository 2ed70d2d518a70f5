//! A pool of loaded programs. Loading takes longer than most tests, in particular on an emulated
//! machine.

use std::sync::Mutex;

use super::balancer::TestRunBalancer;
use super::hook::BalancerHook;

/// Programs that are not in use.
static IDLE: Mutex<Vec<TestRunBalancer>> = Mutex::new(Vec::new());

/// Runs a test with a program from the pool. Maps that packets write are empty; other maps may hold
/// the fixture of an earlier test until
/// [`configure`](crate::packets::bindings::BalancerBinding::configure) replaces it.
pub fn with_program<T>(
    hook: BalancerHook,
    test: impl FnOnce(&mut TestRunBalancer) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let take = |idle: &mut Vec<TestRunBalancer>| {
        idle.iter().position(|l| l.hook() == hook).map(|index| idle.swap_remove(index))
    };
    let idle = take(&mut IDLE.lock().expect("no panic while locked"));
    let mut loaded = idle.map_or_else(|| TestRunBalancer::new(hook), Ok)?;
    let outcome = test(&mut loaded)?;
    loaded.reset()?;
    IDLE.lock().expect("no panic while locked").push(loaded);
    Ok(outcome)
}

/// Unloads all programs, after all tests.
pub fn clear() {
    IDLE.lock().expect("no panic while locked").clear();
}

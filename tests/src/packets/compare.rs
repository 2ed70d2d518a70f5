//! Sends a frame through a binding and compares verdict, bytes and counters with the expectation.
//! Functions return the first difference as their error.

use anyhow::ensure;
use sluice_datapath::Reason;

use super::bindings::{BalancerBinding, DecapBinding};
use super::expectation::{Action, BalancerCounters, DecapCounters, DecapExpectation, Expectation};
use crate::packets::frames::Frame;

/// Sends a frame to a backend and compares verdict, bytes and counters.
pub fn send_to_backend(
    host: &mut dyn DecapBinding,
    frame: &Frame,
    expected: &DecapExpectation,
    total: &mut DecapCounters,
) -> anyhow::Result<()> {
    let exchanged = exchange_with_backend(host, frame, expected, total);
    let counters = host.counters()?;
    // A failure must not affect the comparison of the next frame.
    let expected = std::mem::replace(total, counters.clone());
    exchanged?;
    ensure!(counters == expected, "counters are {counters:?} instead of {expected:?}");
    Ok(())
}

/// Sends a frame to a backend and compares verdict and bytes. Adds the expected counts to `total`.
pub fn exchange_with_backend(
    host: &mut dyn DecapBinding,
    frame: &Frame,
    expected: &DecapExpectation,
    total: &mut DecapCounters,
) -> anyhow::Result<()> {
    let refused = host.rejects_merged() && frame.segment_size != 0;
    let expected = match expected {
        DecapExpectation::Decapsulated(..) if refused => {
            &DecapExpectation::Untouched(Action::Drop, Reason::AdjustRoomFailed)
        }
        expected => expected,
    };
    let (action, bytes) = match expected {
        DecapExpectation::Untouched(action, reason) => {
            *total.1.entry(*reason).or_default() += 1;
            (*action, &frame.bytes)
        }
        DecapExpectation::Decapsulated(bytes, packets, length) => {
            total.0 = (total.0.0 + packets, total.0.1 + length);
            (Action::Pass, bytes)
        }
    };
    let (did, left) = host.send(frame)?;
    ensure!(did == action, "{did:?} instead of {action:?}: {:02x?}", frame.bytes);
    ensure!(left == *bytes, "{:02x?} became {left:02x?} instead of {bytes:02x?}", frame.bytes);
    Ok(())
}

/// Sends a frame and compares verdict, bytes and counters.
pub fn send(
    balancer: &mut dyn BalancerBinding,
    frame: &Frame,
    expected: &Expectation,
    total: &mut BalancerCounters,
) -> anyhow::Result<()> {
    let exchanged = exchange(balancer, frame, expected, total);
    let counters = balancer.counters()?;
    // A failure must not affect the comparison of the next frame.
    let expected = std::mem::replace(total, counters.clone());
    exchanged?;
    ensure!(counters == expected, "counters are {counters:?} instead of {expected:?}");
    Ok(())
}

/// Sends a frame and compares verdict and bytes. Adds the expected counts to `total`.
pub fn exchange(
    balancer: &mut dyn BalancerBinding,
    frame: &Frame,
    expected: &Expectation,
    total: &mut BalancerCounters,
) -> anyhow::Result<()> {
    let refused = balancer.rejects_merged() && frame.segment_size != 0;
    let expected = match expected {
        Expectation::Forward(_) if refused => &Expectation::Drop(Reason::AdjustRoomFailed),
        expected => expected,
    };
    total.add(expected);
    let (action, bytes) = match expected {
        Expectation::Pass(_) => (Action::Pass, &frame.bytes),
        Expectation::Drop(_) => (Action::Drop, &frame.bytes),
        Expectation::Forward(forwarded) => (balancer.forward_action(), &forwarded.bytes),
        Expectation::Reply(_, bytes) => (balancer.reply_action(), bytes),
    };
    let (did, left) = balancer.send(frame)?;
    ensure!(did == action, "{did:?} instead of {action:?}");
    // A frame that the kernel refuses room may have lost its tags before the drop.
    let seen = *expected != Expectation::Drop(Reason::AdjustRoomFailed);
    ensure!(
        !seen || left == *bytes,
        "{:02x?} became {left:02x?} instead of {bytes:02x?}",
        frame.bytes
    );
    Ok(())
}

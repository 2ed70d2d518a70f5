//! Minimises a sequence of frames whose last one fails.

use std::time::{Duration, Instant};

use super::harness::DifferentialHarness;
use crate::packets::frames::Frame;
use crate::packets::frames::SHORTEST;

/// Time limit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes harnesses with the fixture in which the frames failed.
pub(super) type Make<'a> = &'a dyn Fn() -> anyhow::Result<DifferentialHarness>;

/// Removes frames from the sequence, then simplifies its last frame.
pub(super) fn minimise(make: Make<'_>, frames: Vec<Frame>) -> anyhow::Result<Vec<Frame>> {
    let deadline = Instant::now() + PATIENCE;
    let frames = history(make, frames, deadline)?;
    let (last, before) =
        frames.split_last().map_or((None, &[][..]), |(last, before)| (Some(last.clone()), before));
    let Some(whole) = last else { return Ok(frames) };
    // A frame that fails alone needs one harness for all attempts; otherwise each attempt needs a
    // new one.
    let mut harness = make()?;
    let mut still_fails = |candidate: &Frame| -> anyhow::Result<bool> {
        if Instant::now() > deadline {
            return Ok(false);
        }
        if before.is_empty() {
            return Ok(fails(&mut harness, std::slice::from_ref(candidate)));
        }
        Ok(fails(&mut make()?, &[before, std::slice::from_ref(candidate)].concat()))
    };
    let less = frame(whole.clone(), &mut still_fails)?;
    // The result must not depend on state that earlier attempts left in the maps.
    let small = [before, &[less]].concat();
    if fails(&mut make()?, &small) { Ok(small) } else { Ok([before, &[whole]].concat()) }
}

/// Whether any of the frames fails.
pub(super) fn fails(harness: &mut DifferentialHarness, frames: &[Frame]) -> bool {
    frames.iter().any(|frame| {
        let judged = harness.check(frame).is_err();
        // Both, so that the counters are equal again for the next frame.
        harness.check_counters().is_err() || judged
    })
}

/// Removes frames before the last one while it still fails: all of them, then smaller and smaller
/// parts.
fn history(
    make: Make<'_>,
    mut frames: Vec<Frame>,
    deadline: Instant,
) -> anyhow::Result<Vec<Frame>> {
    let mut part = frames.len().saturating_sub(1);
    while part > 0 {
        let mut at = 0;
        while at < frames.len() - 1 && Instant::now() < deadline {
            let end = (at + part).min(frames.len() - 1);
            let without = [&frames[..at], &frames[end..]].concat();
            if fails(&mut make()?, &without) {
                frames = without;
            } else {
                at = end;
            }
        }
        part /= 2;
    }
    Ok(frames)
}

/// Simplifies a frame: no metadata, fewer bytes, more zeros.
fn frame(
    mut whole: Frame,
    still_fails: &mut dyn FnMut(&Frame) -> anyhow::Result<bool>,
) -> anyhow::Result<Frame> {
    let plain = Frame::from(whole.bytes.clone());
    if plain != whole && still_fails(&plain)? {
        whole = plain;
    }
    loop {
        let before = whole.clone();
        // Remove bytes, from the end to the start.
        let mut part = whole.bytes.len() / 2;
        while part > 0 {
            let mut end = whole.bytes.len();
            while end >= part && whole.bytes.len() - part >= SHORTEST {
                let mut candidate = whole.clone();
                candidate.bytes.drain(end - part..end);
                if still_fails(&candidate)? {
                    whole = candidate;
                }
                end = (end - part).min(whole.bytes.len());
            }
            part /= 2;
        }
        // Zero bytes.
        let mut part = whole.bytes.len() / 2;
        while part > 0 {
            for start in (0..whole.bytes.len()).step_by(part) {
                let mut candidate = whole.clone();
                let end = (start + part).min(candidate.bytes.len());
                candidate.bytes[start..end].fill(0);
                if candidate != whole && still_fails(&candidate)? {
                    whole = candidate;
                }
            }
            part /= 2;
        }
        // Clear bits of the other bytes.
        for at in 0..whole.bytes.len() {
            for bit in 0..8 {
                let mut candidate = whole.clone();
                candidate.bytes[at] &= !(1 << bit);
                if candidate != whole && still_fails(&candidate)? {
                    whole = candidate;
                }
            }
        }
        if whole == before {
            return Ok(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::bindings::BalancerBinding;
    use crate::packets::bindings::memory::InMemoryBalancer;
    use crate::packets::expectation::{Action, BalancerCounters};
    use crate::packets::fixture::Fixture;
    use crate::packets::fuzz::Generator;

    /// The packet path in memory with a fault: it changes frames that match `is_damaged` after this
    /// many ARP frames.
    #[derive(Default)]
    struct Faulty {
        native: InMemoryBalancer,
        totals: usize,
        after: usize,
    }

    impl BalancerBinding for Faulty {
        fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
            self.native.configure(fixture)
        }

        fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
            let (action, mut bytes) = self.native.send(frame)?;
            self.totals += usize::from(frame.bytes[12..14] == [0x08, 0x06]);
            if self.totals >= self.after && is_damaged(frame) {
                bytes[17] ^= 1;
            }
            Ok((action, bytes))
        }

        fn counters(&self) -> anyhow::Result<BalancerCounters> {
            self.native.counters()
        }

        fn accepts(&self, _: &Frame) -> bool {
            true
        }

        fn forward_action(&self) -> Action {
            self.native.forward_action()
        }

        fn reply_action(&self) -> Action {
            Action::TransmitBack
        }

        fn rejects_merged(&self) -> bool {
            false
        }
    }

    /// Matches IPv4 frames with bit 5 of the TOS set and bit 0 clear.
    fn is_damaged(frame: &Frame) -> bool {
        frame.bytes.len() > 30
            && frame.bytes[12..14] == [0x08, 0x00]
            && frame.bytes[15] & 0x21 == 0x20
    }

    fn found(after: usize) -> Vec<Frame> {
        let make = || {
            DifferentialHarness::of(
                &Fixture::new(),
                Box::new(Faulty { native: InMemoryBalancer::default(), totals: 0, after }),
            )
        };
        let mut generator = Generator::new(11);
        let mut frames = Vec::new();
        let mut harness = make().unwrap();
        while !fails(&mut harness, frames.last().map_or(&[][..], std::slice::from_ref)) {
            frames.push(generator.frame());
        }
        assert!(frames.len() > after + 1, "the fault occurs too early");
        minimise(&make, frames).unwrap()
    }

    #[test]
    fn a_fault_of_one_frame_is_minimised_to_its_bits() {
        let frames = found(0);
        let mut least = vec![0; 31];
        least[12] = 0x08;
        least[15] = 0x20;
        assert_eq!(frames, [Frame::from(least)]);
    }

    #[test]
    fn a_fault_that_needs_earlier_frames_keeps_only_those() {
        let frames = found(2);
        assert_eq!(frames.len(), 3, "{frames:02x?}");
        assert!(frames[..2].iter().all(|frame| frame.bytes[12..14] == [0x08, 0x06]));
        assert!(is_damaged(&frames[2]) && frames[2].bytes.len() == 31);
    }
}

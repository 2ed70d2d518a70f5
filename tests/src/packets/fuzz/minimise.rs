//! The least that still fails, of a sequence of frames whose last one fails.

use std::time::{Duration, Instant};

use super::bench::Bench;
use crate::packets::cases::SHORTEST;
use crate::packets::world::Frame;

/// How long to look for less.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes benches of the world in which the frames failed.
pub(super) type Make<'a> = &'a dyn Fn() -> anyhow::Result<Bench>;

/// Shortens the sequence, then its last frame.
///
/// # Errors
///
/// What the kernel refused.
pub(super) fn minimise(make: Make<'_>, frames: Vec<Frame>) -> anyhow::Result<Vec<Frame>> {
    let deadline = Instant::now() + PATIENCE;
    let frames = history(make, frames, deadline)?;
    let (last, before) = frames.split_last().map_or((None, &[][..]), |(last, before)| (Some(last.clone()), before));
    let Some(whole) = last else { return Ok(frames) };
    // A frame that fails without the others can be tried again and again on one bench; else each try begins anew.
    let mut bench = make()?;
    let mut still_fails = |candidate: &Frame| -> anyhow::Result<bool> {
        if Instant::now() > deadline {
            return Ok(false);
        }
        if before.is_empty() {
            return Ok(fails(&mut bench, std::slice::from_ref(candidate)));
        }
        Ok(fails(&mut make()?, &[before, std::slice::from_ref(candidate)].concat()))
    };
    let less = frame(whole.clone(), &mut still_fails)?;
    // What the earlier tries left in the maps must not be part of it.
    let small = [before, &[less]].concat();
    if fails(&mut make()?, &small) { Ok(small) } else { Ok([before, &[whole]].concat()) }
}

/// Whether any of the frames fails.
pub(super) fn fails(bench: &mut Bench, frames: &[Frame]) -> bool {
    frames.iter().any(|frame| {
        let judged = bench.judge(frame).is_err();
        // Both, so that counters are the same again for the next frame.
        bench.settle().is_err() || judged
    })
}

/// Leaves out frames before the last one, as long as it still fails: all, then ever smaller parts.
fn history(make: Make<'_>, mut frames: Vec<Frame>, deadline: Instant) -> anyhow::Result<Vec<Frame>> {
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

/// Simplifies a frame: nothing beside its bytes, fewer of them, zeros.
fn frame(mut whole: Frame, still_fails: &mut dyn FnMut(&Frame) -> anyhow::Result<bool>) -> anyhow::Result<Frame> {
    let plain = Frame::from(whole.bytes.clone());
    if plain != whole && still_fails(&plain)? {
        whole = plain;
    }
    loop {
        let before = whole.clone();
        // Without some bytes, from the end to the start.
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
        // With zeros in place of some bytes.
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
        if whole == before {
            return Ok(whole);
        }
    }
}

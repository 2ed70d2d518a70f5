//! Mutations of valid frames: changed bytes, wrong lengths, truncation.

use fastrand::Rng;

use super::frame_builder::FrameBuilder;
use super::values;
use crate::packets::frames::SHORTEST;

/// The longest frame, in bytes: a test run accepts it with headroom.
pub(super) const LONGEST: usize = 3_400;
/// Number of kept frames, whose parts other frames get.
const KEPT: usize = 64;

/// Mutates frames, and keeps some whose parts other frames get.
#[derive(Debug, Default)]
pub(super) struct Mutator {
    kept: Vec<Vec<u8>>,
}

impl Mutator {
    /// Keeps a frame in place of an earlier one.
    pub(super) fn keep(&mut self, bytes: &[u8], rng: &mut Rng) {
        if self.kept.len() < KEPT {
            self.kept.push(bytes.to_vec());
        } else {
            let place = &mut self.kept[rng.usize(..KEPT)];
            place.clear();
            place.extend_from_slice(bytes);
        }
    }

    /// Applies one mutation.
    pub(super) fn mutate(&mut self, builder: &mut FrameBuilder, rng: &mut Rng) {
        match rng.u8(..32) {
            0..=7 => {
                let at = self.random_offset(builder, rng);
                if let Some(byte) = builder.bytes.get_mut(at) {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
            8..=12 => {
                let (at, value) = (self.random_offset(builder, rng), values::extreme8(rng));
                if let Some(byte) = builder.bytes.get_mut(at) {
                    *byte = value;
                }
            }
            13..=18 => change_length(builder, rng),
            19..=21 => {
                let length = builder.bytes.len();
                builder.bytes.truncate(SHORTEST + rng.usize(..=length.saturating_sub(SHORTEST)));
            }
            22..=24 => {
                let at = edge(builder, rng) + rng.usize(..44);
                builder.bytes.truncate(at.max(SHORTEST));
            }
            25 => {
                let length = builder.bytes.len() + rng.usize(1..60);
                builder.bytes.resize(length, rng.u8(..) & rng.u8(..) & rng.u8(..));
            }
            26 => {
                let at = edge(builder, rng).max(12).min(builder.bytes.len());
                let count = rng.usize(1..24);
                builder.bytes.splice(at..at, std::iter::repeat_n(rng.u8(..), count));
            }
            27 => {
                let at = edge(builder, rng).max(12).min(builder.bytes.len());
                let end = (at + rng.usize(1..48)).min(builder.bytes.len());
                builder.bytes.drain(at..end);
            }
            28 => self.borrow(builder, rng),
            29 => swap_addresses(builder),
            30 => {
                let kind: u16 = [0x0800, 0x86dd, 0x8100, 0x88a8][rng.usize(..4)];
                builder.set16(12, kind.into());
            }
            _ => {
                let at = self.random_offset(builder, rng);
                if at + 2 <= builder.bytes.len() {
                    builder.set16(at, values::extreme16(rng).into());
                }
            }
        }
        builder.bytes.truncate(LONGEST);
        if builder.bytes.len() < SHORTEST {
            builder.bytes.resize(SHORTEST, 0);
        }
    }

    /// A random offset, mostly in the headers.
    fn random_offset(&self, builder: &FrameBuilder, rng: &mut Rng) -> usize {
        if rng.u8(..8) == 0 {
            rng.usize(..builder.bytes.len())
        } else {
            edge(builder, rng) + rng.usize(..24)
        }
    }

    /// Replaces the frame from a layer on by a part of a kept frame.
    fn borrow(&self, builder: &mut FrameBuilder, rng: &mut Rng) {
        if self.kept.is_empty() {
            return;
        }
        let other = &self.kept[rng.usize(..self.kept.len())];
        let at = edge(builder, rng).max(SHORTEST).min(builder.bytes.len());
        let from = rng.usize(SHORTEST..=other.len());
        builder.bytes.truncate(at);
        builder.bytes.extend_from_slice(&other[from..]);
    }
}

/// The offset of a random layer.
fn edge(builder: &FrameBuilder, rng: &mut Rng) -> usize {
    let within = |at: &usize| (*at).min(builder.bytes.len());
    match builder.edges.len() {
        0 => 12.min(builder.bytes.len()),
        count => builder.edges.get(rng.usize(..count)).map_or(0, within),
    }
}

/// Changes a length field by a little or to a random value.
fn change_length(builder: &mut FrameBuilder, rng: &mut Rng) {
    if builder.lengths.is_empty() {
        return;
    }
    let at = builder.lengths[rng.usize(..builder.lengths.len())];
    let Some(&[high, low]) = builder.bytes.get(at..at + 2) else { return };
    let length = u16::from_be_bytes([high, low]);
    let claim = match rng.u8(..4) {
        0 => values::extreme16(rng),
        1 => rng.u16(..),
        _ => length.wrapping_add_signed(rng.i16(-60..60)),
    };
    builder.set16(at, claim.into());
}

/// Swaps source and destination of the first IP header.
fn swap_addresses(builder: &mut FrameBuilder) {
    let (at, size) = match builder.bytes.get(12..14) {
        Some([0x08, 0x00]) => (26, 4),
        Some([0x86, 0xdd]) => (22, 16),
        _ => return,
    };
    if let Some(both) = builder.bytes.get_mut(at..at + 2 * size) {
        both.rotate_left(size);
    }
}

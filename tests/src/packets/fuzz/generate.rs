//! Generates random frames from a seed.

use fastrand::Rng;

use super::frame_builder::FrameBuilder;
use super::layers;
use super::mutate::{LONGEST, Mutator};
use super::traffic::Traffic;
use crate::packets::frames::Frame;
use crate::packets::frames::SHORTEST;

/// A generator of frames. Generators with the same seed make the same frames.
#[derive(Debug)]
pub struct Generator {
    traffic: Traffic,
    rng: Rng,
    builder: FrameBuilder,
    mutator: Mutator,
}

impl Generator {
    /// A generator of frames from clients.
    pub fn new(seed: u64) -> Self {
        Self::of(Traffic::FromClients, seed)
    }

    /// A generator of frames of a kind of traffic.
    pub fn of(traffic: Traffic, seed: u64) -> Self {
        let builder = FrameBuilder {
            handshakes: traffic == Traffic::FromBackends,
            ..FrameBuilder::default()
        };
        Self { traffic, rng: Rng::with_seed(seed), builder, mutator: Mutator::default() }
    }

    /// The next frame: a third is valid, the others have one to four mutations; one in fifty is
    /// noise.
    pub fn frame(&mut self) -> Frame {
        let Self { traffic, rng, builder, mutator } = self;
        builder.clear();
        if rng.u8(..50) == 0 {
            builder.bytes.resize(rng.usize(SHORTEST..200), 0);
            rng.fill(&mut builder.bytes);
        } else {
            layers::frame(builder, rng, *traffic);
            builder.bytes.truncate(LONGEST);
            if rng.u8(..64) == 0 {
                mutator.keep(&builder.bytes, rng);
            }
            let mutations = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4][rng.usize(..12)];
            for _ in 0..mutations {
                mutator.mutate(builder, rng);
            }
        }
        let mut frame = Frame::from(builder.bytes.clone());
        match rng.u8(..24) {
            0 => {
                frame.segment_size = rng.u32(1..300);
                frame.segments = rng.u32(..9);
            }
            1 => frame.segments = rng.u32(..65_536),
            2 => frame.vlan = rng.u8(..4) == 0,
            _ => {}
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_determines_the_frames() {
        let frames = |seed| {
            let mut generator = Generator::new(seed);
            (0..500).map(|_| generator.frame().bytes).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn frames_have_every_length_that_a_test_run_accepts_and_rarely_repeat() {
        let mut generator = Generator::new(1);
        let frames: Vec<_> = (0..20_000).map(|_| generator.frame().bytes).collect();
        assert!(frames.iter().all(|bytes| (SHORTEST..=LONGEST).contains(&bytes.len())));
        let lengths: BTreeSet<_> = frames.iter().map(Vec::len).collect();
        assert!(
            (SHORTEST..200).all(|length| lengths.contains(&length)),
            "a length is missing: {lengths:?}"
        );
        let different: BTreeSet<_> = frames.iter().collect();
        assert!(different.len() > 19_000, "only {} of 20,000 frames differ", different.len());
    }
}

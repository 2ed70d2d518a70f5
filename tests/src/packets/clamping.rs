//! Random frames that leave a backend: handshakes with options of every kind, bent at random, on
//! which every way of running the program must agree with the oracle.

use anyhow::ensure;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::cases::{LARGEST, handshake};
use super::frames;
use super::oracle::clamp::clamped;
use crate::packets::addresses::{VIP_V4, VIP_V6};
use crate::packets::bindings::ClampBinding;
use crate::packets::frames::Frame;
use crate::packets::frames::SHORTEST;

/// One option of a random handshake, as bytes.
fn option() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(vec![1]),
        4 => any::<u16>().prop_map(|size| [&[2, 4][..], &size.to_be_bytes()].concat()),
        1 => Just(vec![4, 2]),
        1 => Just(vec![3, 3, 7]),
        1 => any::<[u8; 8]>().prop_map(|times| [&[8, 10][..], &times].concat()),
        1 => (5..=255u8, vec(any::<u8>(), 0..6)).prop_map(|(kind, value)| [&[kind, value.len() as u8 + 2][..], &value].concat()),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(kind, length)| vec![kind, length]),
    ]
}

/// A handshake from a VIP or its neighbour, with a byte changed, the end cut off, or tags inserted,
/// sometimes.
fn frame() -> impl Strategy<Value = Frame> {
    let options = vec(option(), 0..8).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.truncate(40);
        bytes
    });
    let byte = prop::option::weighted(0.3, (12..90usize, any::<u8>()));
    let cut = prop::option::weighted(0.1, any::<prop::sample::Index>());
    let tags = prop_oneof![8 => Just(0usize), 1 => 1..4usize];
    (any::<bool>(), prop::bool::weighted(0.9), prop::bool::weighted(0.9), options, byte, cut, tags)
        .prop_map(|(v6, vip, syn, options, byte, cut, tags)| {
            let mut bytes = handshake(v6, vip, syn, &options);
            if let Some((at, value)) = byte
                && let Some(place) = bytes.get_mut(at)
            {
                *place = value;
            }
            bytes = frames::tagged(&bytes, &[(0x88a8, 7), (0x8100, 5), (0x8100, 6)][..tags]);
            if let Some(cut) = cut {
                let length = SHORTEST + cut.index(bytes.len() - SHORTEST + 1);
                bytes.truncate(length);
            }
            bytes.into()
        })
}

/// Gives random frames to each of several ways of running the program, as far as they take them,
/// and compares with the oracle.
///
/// # Errors
///
/// What differs, or what the kernel refused.
pub fn agree(
    config: Config,
    ways: &mut [(&str, &mut dyn ClampBinding)],
    takes: impl Fn(&Frame) -> bool,
) -> anyhow::Result<()> {
    let vips =
        [IpNet::from(std::net::IpAddr::from(VIP_V4)), IpNet::from(std::net::IpAddr::from(VIP_V6))];
    for (_, way) in &mut *ways {
        way.configure(&vips, LARGEST)?;
    }
    let ways = std::cell::RefCell::new(ways);
    let changed = std::cell::Cell::new(0_u64);
    let stayed = std::cell::Cell::new(0_u64);
    let tried = TestRunner::new(config).run(&frame(), |frame| {
        if !takes(&frame) {
            return Ok(());
        }
        let judged = clamped(&frame, &vips, LARGEST);
        let count = if judged.is_some() { &changed } else { &stayed };
        count.set(count.get() + 1);
        let each = || -> anyhow::Result<()> {
            for (name, way) in ways.borrow_mut().iter_mut() {
                let before = way.clamped()?;
                let (left, counted) = (way.send(&frame)?, way.clamped()? - before);
                let expected = judged.as_ref().unwrap_or(&frame.bytes);
                ensure!(left == *expected, "{name}: {left:02x?} instead of {expected:02x?}");
                ensure!(counted == u64::from(judged.is_some()), "{name}: {counted} counted");
            }
            Ok(())
        };
        each().map_err(|error| TestCaseError::fail(format!("{:02x?}: {error:#}", frame.bytes)))
    });
    tried.map_err(|error| anyhow::anyhow!("{error}"))?;
    let (changed, stayed) = (changed.get(), stayed.get());
    ensure!(
        changed > 100 && stayed > 100,
        "the frames are too dull: {changed} changed, {stayed} stayed"
    );
    Ok(())
}

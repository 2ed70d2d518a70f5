//! The hooks of the balancer's programs, the frames that a test run accepts there, and the test
//! run.

use anyhow::{Context as _, bail};
use sluice::kernel::bpf::Program;

use super::sk_buff::SkBuff;
use crate::packets::expectation::Action;
use crate::packets::frames::{ETHERNET, Frame};

/// A hook of the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalancerHook {
    /// `sluice_tc`.
    Tc,
    /// `sluice_xdp`.
    Xdp,
}

impl BalancerHook {
    /// The verdict of a return value; other values than those of Sluice's programs are an error.
    pub fn action(self, value: u32) -> anyhow::Result<Action> {
        const UNSPECIFIED: u32 = u32::MAX;

        match (self, value) {
            (Self::Tc, UNSPECIFIED) | (Self::Xdp, 2) => Ok(Action::Pass),
            (Self::Tc, 2) | (Self::Xdp, 1) => Ok(Action::Drop),
            (Self::Tc, 7) | (Self::Xdp, 4) => Ok(Action::Redirect),
            (Self::Xdp, 3) => Ok(Action::TransmitBack),
            _ => bail!("unexpected return value {value} at {self:?}"),
        }
    }
}

/// Whether a test run at TC accepts a frame: no VLAN tag in metadata, no truncated IP header, and
/// no frame that does not fit a page with its headroom and `skb_shared_info`.
pub fn accepts_at_tc(frame: &Frame) -> bool {
    const LONGEST: usize = 3_500;

    let header = match frame.bytes.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 1,
    };
    !frame.vlan && (ETHERNET + header..=LONGEST).contains(&frame.bytes.len())
}

/// Whether a test run at XDP accepts a frame: without metadata, and to the receiver's link address,
/// which is not checked before XDP.
pub fn accepts_at_xdp(frame: &Frame) -> bool {
    !frame.is_for_other_host() && !frame.vlan && frame.segment_size == 0 && frame.segments == 0
}

pub(super) fn run(
    program: &Program,
    hook: BalancerHook,
    frame: &Frame,
) -> anyhow::Result<(Action, Vec<u8>)> {
    let (value, bytes) = program
        .run(&frame.bytes, &SkBuff::of(frame))
        .with_context(|| format!("a frame of {} bytes", frame.bytes.len()))?;
    Ok((hook.action(value)?, bytes))
}

//! The hooks of the programs, what a test run can be given there, and the run itself.

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
    /// What a program's return value does to the packet.
    ///
    /// # Errors
    ///
    /// A value that no program of ours returns.
    pub fn action(self, value: u32) -> anyhow::Result<Action> {
        const UNSPECIFIED: u32 = u32::MAX;

        match (self, value) {
            (Self::Tc, UNSPECIFIED) | (Self::Xdp, 2) => Ok(Action::Pass),
            (Self::Tc, 2) | (Self::Xdp, 1) => Ok(Action::Drop),
            (Self::Tc, 7) | (Self::Xdp, 4) => Ok(Action::Redirect),
            (Self::Xdp, 3) => Ok(Action::SendBack),
            _ => bail!("the program returned {value}, which is no action of ours at {self:?}"),
        }
    }
}

/// Whether a test run at TC takes a frame: it takes no VLAN tag beside the bytes, no IP packet that
/// ends inside its header, and nothing that does not fit into a page with what the kernel keeps
/// beside it.
pub fn takes(frame: &Frame) -> bool {
    const LONGEST: usize = 3_500;

    let header = match frame.bytes.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 1,
    };
    !frame.vlan && (ETHERNET + header..=LONGEST).contains(&frame.bytes.len())
}

/// Whether a test run at XDP takes a frame: there nothing stands beside the bytes, and nobody has
/// looked at the link address yet.
pub fn takes_at_xdp(frame: &Frame) -> bool {
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

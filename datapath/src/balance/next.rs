//! The transition from one stage to the next, as the return value of a stage.

use crate::balance::gue::GueMeta;
use crate::verifier::widen_for_verifier;
use crate::wire::offsets::HeaderOffsets;

/// Set in every return value that is a transition to another stage: an action has 32 bits.
const TRANSITION: u64 = 1 << 32;

const PARSE_HEADERS: u64 = TRANSITION;
const BY_CLASS: u64 = TRANSITION | (1 << 33);
const TOO_BIG: u64 = TRANSITION | (1 << 34);
const ECHO_REPLY: u64 = TRANSITION | (1 << 35);
const FINISH_GUE: u64 = TRANSITION | (1 << 36);
const QUIC: u64 = TRANSITION | (1 << 37);

/// The bits that distinguish the transitions.
const KIND: u64 = PARSE_HEADERS | BY_CLASS | TOO_BIG | ECHO_REPLY | FINISH_GUE | QUIC;

/// Position of the action in [`Next::FinishGue`].
const ACTION_SHIFT: u32 = 38;

/// The stage that comes next. With [`Next::Action`] and [`Next::FinishGue`] the packet may have
/// changed; otherwise it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// No stage: the return value is the action of the hook.
    Action,
    /// [`ParseHeadersStage`](crate::balance::slow_path::ParseHeadersStage).
    ParseHeaders,
    /// The stage of [`HeaderOffsets::class`].
    ByClass(HeaderOffsets),
    /// [`EchoReplyStage`](crate::balance::icmp::EchoReplyStage), at the same offsets.
    EchoReply,
    /// [`QuicStage`](crate::balance::quic::QuicStage), with encoded [`HeaderOffsets`].
    Quic(u32),
    /// [`PacketTooBigStage`](crate::balance::packet_too_big::PacketTooBigStage), with the MTU to
    /// report.
    TooBig(u32),
    /// [`FinishGueStage`](crate::balance::finish_gue::FinishGueStage), and the action after it,
    /// which fits into the 26 bits from [`ACTION_SHIFT`] on.
    FinishGue(u32, GueMeta),
}

impl Next {
    /// Encodes the transition as the stage's return value. [`Next::Action`] has no encoding: the
    /// return value is then the action itself.
    #[inline(always)]
    pub(crate) const fn encode(self) -> u64 {
        match self {
            Self::Action => 0,
            Self::ParseHeaders => PARSE_HEADERS,
            Self::ByClass(offsets) => BY_CLASS | offsets.encode() as u64,
            Self::EchoReply => ECHO_REPLY,
            Self::Quic(offsets) => QUIC | offsets as u64,
            Self::TooBig(mtu) => TOO_BIG | mtu as u64,
            Self::FinishGue(action, gue) => {
                FINISH_GUE | ((action as u64) << ACTION_SHIFT) | gue.encode() as u64
            }
        }
    }

    /// Decodes a stage's return value.
    #[inline(always)]
    pub(crate) fn decode(word: u64) -> Self {
        match word & KIND {
            PARSE_HEADERS => Self::ParseHeaders,
            BY_CLASS => Self::ByClass(HeaderOffsets::decode(word as u32)),
            ECHO_REPLY => Self::EchoReply,
            QUIC => Self::Quic(word as u32),
            TOO_BIG => Self::TooBig(widen_for_verifier(word as u32)),
            FINISH_GUE => Self::FinishGue(
                (word >> ACTION_SHIFT) as u32,
                GueMeta::decode(widen_for_verifier(word as u32)),
            ),
            _ => Self::Action,
        }
    }
}

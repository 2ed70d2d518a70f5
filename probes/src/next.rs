//! What one stage tells the next, in place of an action of TC's or XDP's.

use sluice_datapath::balance::GueMeta;
use sluice_datapath::verifier::widen_for_verifier;
use sluice_datapath::wire::offsets::HeaderOffsets;

/// What all numbers have in common that are no action: an action has 32 bits.
const NO_ACTION: u64 = 1 << 32;

const PARSE_HEADERS: u64 = NO_ACTION;
const AT: u64 = NO_ACTION | 1 << 33;
const TOO_BIG: u64 = NO_ACTION | 1 << 34;
const ECHO_REPLY: u64 = NO_ACTION | 1 << 35;
const FINISH_GUE: u64 = NO_ACTION | 1 << 36;
const QUIC: u64 = NO_ACTION | 1 << 37;

/// The bits that say which.
const WHICH: u64 = PARSE_HEADERS | AT | TOO_BIG | ECHO_REPLY | FINISH_GUE | QUIC;

/// Where an action is, beside what is to be done before it.
const ACTION: u32 = 38;

/// The stage that comes next. The packet is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// None: the number is an action.
    Action,
    /// [`sluice_datapath::balance::parse_headers`].
    ParseHeaders,
    /// The stage that [`HeaderOffsets::class`] says, at this place.
    At(HeaderOffsets),
    /// [`sluice_datapath::balance::echo_reply`], at the same place.
    EchoReply,
    /// [`sluice_datapath::balance::quic()`], at the place that this number says; what names nobody
    /// there goes on as any other packet.
    Quic(u32),
    /// [`sluice_datapath::balance::packet_too_big()`], which tells this MTU.
    TooBig(u32),
    /// [`sluice_datapath::balance::gue::finish`]; then the action, which has less than 26 bits.
    FinishGue(u32, GueMeta),
}

impl Next {
    /// The number that a stage returns. Of [`Next::Action`] there is none: that is an action.
    #[inline(always)]
    pub const fn encode(self) -> u64 {
        match self {
            Self::Action => 0,
            Self::ParseHeaders => PARSE_HEADERS,
            Self::At(offsets) => AT | offsets.encode() as u64,
            Self::EchoReply => ECHO_REPLY,
            Self::Quic(offsets) => QUIC | offsets as u64,
            Self::TooBig(mtu) => TOO_BIG | mtu as u64,
            Self::FinishGue(action, gue) => {
                FINISH_GUE | (action as u64) << ACTION | gue.encode() as u64
            }
        }
    }

    /// What a number says that a stage returned.
    #[inline(always)]
    pub fn decode(word: u64) -> Self {
        match word & WHICH {
            PARSE_HEADERS => Self::ParseHeaders,
            AT => Self::At(HeaderOffsets::decode(word as u32)),
            ECHO_REPLY => Self::EchoReply,
            QUIC => Self::Quic(word as u32),
            TOO_BIG => Self::TooBig(widen_for_verifier(word as u32)),
            FINISH_GUE => Self::FinishGue(
                (word >> ACTION) as u32,
                GueMeta::decode(widen_for_verifier(word as u32)),
            ),
            _ => Self::Action,
        }
    }
}

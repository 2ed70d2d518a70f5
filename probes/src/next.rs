//! What one stage tells the next, in place of an action of TC's or XDP's.

use sluice_datapath::gue::Behind;
use sluice_datapath::verifier::forgotten;
use sluice_datapath::walk::Place;

/// What all numbers have in common that are no action: an action has 32 bits.
const NO_ACTION: u64 = 1 << 32;

const LOCATE: u64 = NO_ACTION;
const AT: u64 = NO_ACTION | 1 << 33;
const TOO_BIG: u64 = NO_ACTION | 1 << 34;
const PING: u64 = NO_ACTION | 1 << 35;
const FINISH: u64 = NO_ACTION | 1 << 36;
const DATAGRAM: u64 = NO_ACTION | 1 << 37;

/// The bits that say which.
const WHICH: u64 = LOCATE | AT | TOO_BIG | PING | FINISH | DATAGRAM;

/// Where an action is, beside what is to be done before it.
const ACTION: u32 = 38;

/// The stage that comes next. The packet is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// None: the number is an action.
    Nothing,
    /// [`sluice_datapath::balance::locate`].
    Locate,
    /// The stage that [`Place::matter`] says, at this place.
    At(Place),
    /// [`sluice_datapath::icmp::ping`], at the same place.
    Ping,
    /// [`sluice_datapath::quic()`], at the place that this number says; what names nobody there
    /// goes on as any other packet.
    Datagram(u32),
    /// [`sluice_datapath::reject()`], which tells this MTU.
    TooBig(u32),
    /// [`sluice_datapath::gue::finish`]; then the action, which has less than 26 bits.
    Finish(u32, Behind),
}

impl Next {
    /// The number that a stage returns. Of [`Next::Nothing`] there is none: that is an action.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Locate => LOCATE,
            Self::At(place) => AT | place.to_word() as u64,
            Self::Ping => PING,
            Self::Datagram(place) => DATAGRAM | place as u64,
            Self::TooBig(mtu) => TOO_BIG | mtu as u64,
            Self::Finish(action, behind) => {
                FINISH | (action as u64) << ACTION | behind.to_word() as u64
            }
        }
    }

    /// What a number says that a stage returned.
    #[inline(always)]
    pub fn of(word: u64) -> Self {
        match word & WHICH {
            LOCATE => Self::Locate,
            AT => Self::At(Place::from_word(word as u32)),
            PING => Self::Ping,
            DATAGRAM => Self::Datagram(word as u32),
            TOO_BIG => Self::TooBig(forgotten(word as u32)),
            FINISH => {
                Self::Finish((word >> ACTION) as u32, Behind::from_word(forgotten(word as u32)))
            }
            _ => Self::Nothing,
        }
    }
}

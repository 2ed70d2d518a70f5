//! What one stage tells the next, in place of an action of TC's or XDP's.

use sluice_datapath::verifier::forgotten;
use sluice_datapath::walk::Place;

/// What all numbers have in common that are no action: neither TC nor XDP has one with this bit alone in its upper half.
const NO_ACTION: u32 = 1 << 30;

const UNUSUAL: u32 = NO_ACTION;
const ICMP: u32 = NO_ACTION | 1 << 16;
const LATER: u32 = NO_ACTION | 2 << 16;
const TOO_BIG: u32 = NO_ACTION | 3 << 16;

/// The part of a number that says what it is about.
const KIND: u32 = 0xffff_0000;

/// The stage that comes next. The packet is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// None: the number is an action.
    Nothing,
    /// [`sluice_datapath::balance::unusual`].
    Unusual,
    /// [`sluice_datapath::icmp()`], at this place.
    Icmp(Place),
    /// [`sluice_datapath::follow()`], at this place.
    Later(Place),
    /// [`sluice_datapath::reject()`], which tells this MTU, at most 65,535.
    TooBig(u32),
}

impl Next {
    /// The number that a stage returns. Of [`Next::Nothing`] there is none: that is an action.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Unusual => UNUSUAL,
            Self::Icmp(place) => ICMP | place.to_word(),
            Self::Later(place) => LATER | place.to_word(),
            Self::TooBig(mtu) => TOO_BIG | (mtu & !KIND),
        }
    }

    /// What a number says that a stage returned.
    #[inline(always)]
    pub fn of(word: u32) -> Self {
        match word & KIND {
            UNUSUAL => Self::Unusual,
            ICMP => Self::Icmp(Place::from_word(word)),
            LATER => Self::Later(Place::from_word(word)),
            TOO_BIG => Self::TooBig(forgotten(word) & !KIND),
            _ => Self::Nothing,
        }
    }
}

const _: () = assert!(Place::LARGEST <= !KIND, "a place leaves room for the kind");

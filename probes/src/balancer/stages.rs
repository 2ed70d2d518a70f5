//! The stages of the packet path, one function each with a stack frame of its own, called from an
//! entry that has next to none: the kernel allows 512 bytes to a function and all its callers
//! together.

use sluice_datapath::balance::{direct, general, locate};
use sluice_datapath::gue::{Behind, finish};
use sluice_datapath::icmp::{Heard, ping};
use sluice_datapath::observe;
use sluice_datapath::options::Features;
use sluice_datapath::quic::named;
use sluice_datapath::walk::{Matter, Place};
use sluice_datapath::{BalancerTables as _, First, Forward, Outcome, follow, icmp, quic, reject};
use sluice_probes::hook::Hook;
use sluice_probes::next::Next;

use crate::maps::{Maps, NEIGHBOURS, UNWATCHED};

/// Balances a packet; the hook's action.
#[inline(always)]
pub fn run(hook: impl Hook) -> u32 {
    let until = observe::watched(&UNWATCHED);
    let watched = apart(until);
    if until != 0 {
        begin_at(hook);
    }
    let action = one_after_the_other(hook, watched);
    if watched != 0 {
        end();
    }
    action
}

/// A number that is 0 when `until`, a time in nanoseconds, is, but of which the verifier knows
/// nothing when it knows that.
///
/// Else it would go through all stages once for packets that are watched and once for others, and
/// Linux 6.1 comes near its limit.
#[inline(always)]
fn apart(until: u64) -> u64 {
    core::hint::black_box(until >> 1)
}

/// One stage after the other, as far as a packet needs them.
#[inline(always)]
fn one_after_the_other(hook: impl Hook, watched: u64) -> u32 {
    let mut word = direct_at(hook, watched);
    if let Next::Locate = Next::of(word) {
        word = locate_at(hook, watched);
    }
    if let Next::Datagram(place) = Next::of(word) {
        word = quic_at(hook, place, watched);
    }
    if let Next::At(place) = Next::of(word) {
        word = match place.matter() {
            Matter::General | Matter::Datagram => general_at(hook, place.to_word(), watched),
            Matter::Icmp => match icmp_at(hook, place.to_word(), watched) {
                word if Next::of(word) == Next::Ping => ping_at(hook, place.to_word(), watched),
                word => word,
            },
            Matter::Later => follow_at(hook, place.to_word(), watched),
        };
    }
    match Next::of(word) {
        Next::TooBig(mtu) => reject_at(hook, mtu),
        Next::Finish(action, behind) => match finish_at(hook, behind.to_word()) {
            0 => action,
            refused => refused,
        },
        _ => word as u32,
    }
}

/// While a capture is on, what comes first.
#[inline(never)]
fn begin_at<H: Hook>(hook: H) {
    observe::begin(&hook.packet(), &UNWATCHED);
}

/// While a capture is on, what comes last.
#[inline(never)]
fn end() {
    observe::end(&UNWATCHED);
}

#[inline(never)]
fn direct_at<H: Hook>(hook: H, watched: u64) -> u64 {
    match direct(hook.arrived(), &Maps { watched }) {
        Ok(First::Forward(forward)) => forwarded(hook, &forward),
        Ok(First::Unusual(_)) => Next::Locate.to_word(),
        Ok(First::Datagram(_, place)) => Next::Datagram(place).to_word(),
        Ok(First::TooBig(_, mtu)) => Next::TooBig(mtu).to_word(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn locate_at<H: Hook>(hook: H, watched: u64) -> u64 {
    match locate(hook.packet(), &Maps { watched }) {
        Ok((_, place)) => located(place).to_word(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

/// The stage that goes on where the headers end.
#[inline(always)]
fn located(place: Place) -> Next {
    if UNWATCHED.uses(Features::QUIC) && place.matter() == Matter::Datagram {
        return Next::Datagram(place.to_word());
    }
    Next::At(place)
}

/// What names nobody is a matter for the stage that takes everything, at the same place.
#[inline(never)]
fn quic_at<H: Hook>(hook: H, place: u32, watched: u64) -> u64 {
    let (place, maps) = (Place::from_word(place), Maps { watched });
    let packet = hook.packet();
    let server = match named(&packet, place, &maps) {
        Ok(Some(server)) => server,
        Ok(None) => return Next::At(place).to_word(),
        Err(reason) => return hook.refuse(reason).into(),
    };
    match quic(packet, place, &server, &maps) {
        Ok(Outcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(Outcome::TooBig(_, mtu)) => Next::TooBig(mtu).to_word(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn general_at<H: Hook>(hook: H, place: u32, watched: u64) -> u64 {
    match general(hook.packet(), Place::from_word(place), &Maps { watched }) {
        Ok(Outcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(Outcome::TooBig(_, mtu)) => Next::TooBig(mtu).to_word(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn icmp_at<H: Hook>(hook: H, place: u32, watched: u64) -> u64 {
    match icmp(hook.packet(), Place::from_word(place), &Maps { watched }) {
        Ok(Heard::Forward(forward)) => forwarded(hook, &forward),
        Ok(Heard::Ping(_)) => Next::Ping.to_word(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn ping_at<H: Hook>(hook: H, place: u32, watched: u64) -> u64 {
    hook.refuse(ping(hook.packet(), Place::from_word(place), &Maps { watched })).into()
}

#[inline(never)]
fn follow_at<H: Hook>(hook: H, place: u32, watched: u64) -> u64 {
    match follow(hook.packet(), Place::from_word(place), &Maps { watched }) {
        Ok(forward) => forwarded(hook, &forward),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn reject_at<H: Hook>(hook: H, mtu: u32) -> u32 {
    hook.refuse(reject(hook.packet(), mtu, &UNWATCHED))
}

/// Not 0, but the action, when the packet is not forwarded after all.
#[inline(never)]
fn finish_at<H: Hook>(hook: H, behind: u32) -> u32 {
    match finish(hook.packet(), Behind::from_word(behind), &UNWATCHED) {
        Ok(()) => 0,
        Err(reason) => {
            UNWATCHED.count_refused(reason);
            hook.refuse(reason)
        }
    }
}

/// The action for an encapsulated packet, or what its last stage needs.
#[inline(always)]
fn forwarded(hook: impl Hook, forward: &Forward) -> u64 {
    let action = hook.redirect(forward, |index| NEIGHBOURS.get(index));
    match forward.behind {
        Behind::NONE => action.into(),
        behind => Next::Finish(action, behind).to_word(),
    }
}

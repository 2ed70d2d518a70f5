//! What a capture sees: events of the packet path, one record each, for whoever reads the ring
//! buffer `CAPTURE_EVENTS`.
//!
//! A capture is on for as long as the first word of the map `CAPTURE_CONTROL` says, a moment that
//! whoever reads pushes ahead of itself: when it dies, the capture ends by itself. While none is
//! on, a packet costs one look at that word. While one is on, [`begin`] keeps the packet's first
//! bytes, before anything changes them, and [`end`] writes the event if it is wanted: drops, and a
//! share of what is forwarded. Both obey a rate limit for each CPU, so that a flood of drops costs
//! little.

use crate::abi::capture::{control, outcome};
use crate::abi::{BURST, Features, Reason, Verdict};
use crate::balance::tables::BalancerTables;
use crate::wire::packet::Packet;

/// Whether a capture may be on: 0 when there is none, which is all that a packet costs otherwise,
/// and nothing where the program has not got the feature. When it is another number, [`begin`]
/// comes next, and [`CaptureTables::capture_enabled`] is not 0 until the packet is done.
#[inline(always)]
pub fn enabled_until<T: BalancerTables>(tables: &T) -> u64 {
    if tables.uses(Features::CAPTURE) { tables.control(control::UNTIL) } else { 0 }
}

/// Looks at a packet that is watched before anything else does.
#[inline(always)]
pub fn start<P: Packet, T: BalancerTables>(packet: &P, tables: &T) {
    let now = tables.now();
    let ahead = tables.control(control::INTERVAL).wrapping_mul(BURST);
    let over = now >= tables.control(control::UNTIL);
    if over {
        // Whoever captured has died: the packets to come need not ask for the time.
        tables.stop_capture();
    }
    tables.with_capture_state(|state| {
        state.outcome = outcome::NONE;
        if over || state.due > now.wrapping_add(ahead) {
            state.event.time = 0;
            return;
        }
        let event = &mut state.event;
        event.time = now;
        event.interface = packet.interface();
        event.segments = packet.segments() as u32;
        event.length = packet.frame_len() as u32;
        event.captured = packet.copy_head(&mut event.head);
    });
}

/// Keeps that a packet was encapsulated, for [`end`].
#[inline(always)]
pub(crate) fn record_forwarded<T: BalancerTables>(
    tables: &T,
    service: u32,
    backend: u16,
    is_syn: bool,
    interface: u32,
) {
    if !is_captured(tables) {
        return;
    }
    tables.with_capture_state(|state| {
        state.outcome = if is_syn { outcome::FORWARDED_SYN } else { outcome::FORWARDED };
        let event = &mut state.event;
        (event.service, event.backend, event.leaves) = (service, backend.into(), interface);
        event.reason = 0;
    });
}

/// Keeps that a packet is not forwarded, for [`end`]; one that passes leaves it at
/// [`outcome::NONE`]. The service is 0 until it is known.
#[inline(always)]
pub(crate) fn record_refusal<T: BalancerTables>(tables: &T, service: u32, reason: Reason) {
    if !is_captured(tables) {
        return;
    }
    tables.with_capture_state(|state| {
        state.event.service = service;
        if reason.verdict() == Verdict::Drop {
            state.outcome = outcome::DROPPED;
            let event = &mut state.event;
            (event.reason, event.backend, event.leaves) = (reason.index(), 0, 0);
        }
    });
}

/// Whether a packet may have an event. A stage does no more than to keep what becomes of it: its
/// code is gone through once for each way in which it ends, and [`end`] just once.
#[inline(always)]
fn is_captured<T: BalancerTables>(tables: &T) -> bool {
    tables.uses(Features::CAPTURE) && tables.capture_enabled() != 0
}

/// Writes the event of a packet that was watched, if it is wanted. Comes when the packet is done
/// with.
#[inline(always)]
pub fn emit<T: BalancerTables>(tables: &T) {
    if tables.control(control::UNTIL) == 0 {
        return;
    }
    let select = tables.control(control::SELECT);
    let sample = tables.control(control::SAMPLE);
    let interval = tables.control(control::INTERVAL);
    tables.with_capture_state(|state| {
        let event = &state.event;
        let only = select as u32;
        if state.outcome == outcome::NONE || only != 0 && only != event.service {
            return;
        }
        if state.outcome != outcome::DROPPED {
            let unwanted =
                select & control::NEW_CONNECTIONS != 0 && state.outcome != outcome::FORWARDED_SYN;
            if unwanted || u64::from(tables.random()) >= sample {
                return;
            }
        }
        let now = event.time;
        if now == 0 {
            state.suppressed = state.suppressed.wrapping_add(1);
            return;
        }
        let due = if state.due > now { state.due } else { now };
        state.due = due.wrapping_add(interval);
        if !tables.output_event(&state.event) {
            state.lost = state.lost.wrapping_add(1);
        }
    });
}

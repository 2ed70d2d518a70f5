//! Captures: one event per captured packet, in the ring buffer `CAPTURE_EVENTS`.
//!
//! A capture is enabled until the time in the first word of the map `CAPTURE_CONTROL`. The reader
//! extends that time while it runs, so that the capture ends if the reader dies. Without a capture,
//! a packet costs one read of that word. With one, [`StartCaptureStage`] copies the first bytes of
//! the packet before any stage changes them, the stages record the packet's outcome, and
//! [`EmitCaptureStage`] writes the event if the capture's filter and sampling select it: drops, and
//! a sample of forwarded packets. A rate limit per CPU (GCRA, the generic cell rate algorithm)
//! bounds the cost under a flood of drops.

use crate::abi::capture::{control, outcome};
use crate::abi::{CAPTURE_BURST, Features, Reason, Verdict};
use crate::balance::maps::BalancerMaps;
use crate::balance::stage::{Hook, Stage};
use crate::wire::packet::Packet;

/// Runs before all other stages while a capture is enabled.
pub(crate) struct StartCaptureStage;

impl Stage for StartCaptureStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, _: u32, maps: &M) -> u64 {
        start(&hook.packet(), maps);
        0
    }
}

/// Runs after all other stages while a capture is enabled.
pub(crate) struct EmitCaptureStage;

impl Stage for EmitCaptureStage {
    #[inline(always)]
    fn run<H: Hook, M: BalancerMaps>(_: &mut H, _: u32, maps: &M) -> u64 {
        emit(maps);
        0
    }
}

/// The time until which a capture is enabled; 0 without a capture.
#[inline(always)]
pub(crate) fn enabled_until<M: BalancerMaps>(maps: &M) -> u64 {
    if maps.uses(Features::CAPTURE) { maps.capture_control(control::UNTIL) } else { 0 }
}

/// Copies the start of the packet.
#[inline(always)]
fn start<P: Packet, M: BalancerMaps>(packet: &P, maps: &M) {
    let now = maps.now();
    let burst_tolerance = maps.capture_control(control::INTERVAL).wrapping_mul(CAPTURE_BURST);
    let expired = now >= maps.capture_control(control::UNTIL);
    if expired {
        // The reader has died. Later packets need not read the clock.
        maps.stop_capture();
    }
    maps.with_capture_state(|state| {
        state.outcome = outcome::NONE;
        if expired || state.theoretical_arrival > now.wrapping_add(burst_tolerance) {
            // Marks a packet beyond the rate limit.
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

/// Records that a packet is encapsulated.
#[inline(always)]
pub(crate) fn record_forwarded<M: BalancerMaps>(
    maps: &M,
    service: u32,
    backend: u16,
    is_syn: bool,
    interface: u32,
) {
    if !is_captured(maps) {
        return;
    }
    maps.with_capture_state(|state| {
        state.outcome = if is_syn { outcome::FORWARDED_SYN } else { outcome::FORWARDED };
        let event = &mut state.event;
        (event.service, event.backend, event.egress_interface) =
            (service, backend.into(), interface);
        event.reason = 0;
    });
}

/// Records that a packet is not forwarded. A packet that passes keeps [`outcome::NONE`]. `service`
/// is 0 before the packet has matched a VIP.
#[inline(always)]
pub(crate) fn record_refusal<M: BalancerMaps>(maps: &M, service: u32, reason: Reason) {
    if !is_captured(maps) {
        return;
    }
    maps.with_capture_state(|state| {
        state.event.service = service;
        if reason.verdict() == Verdict::Drop {
            state.outcome = outcome::DROPPED;
            let event = &mut state.event;
            (event.reason, event.backend, event.egress_interface) = (reason.index(), 0, 0);
        }
    });
}

/// Whether a capture is enabled for the packet. [`emit`] decides whether its event is written: the
/// verifier explores this code once for each exit of each stage, and [`emit`] only once.
#[inline(always)]
fn is_captured<M: BalancerMaps>(maps: &M) -> bool {
    maps.uses(Features::CAPTURE) && maps.capture_enabled() != 0
}

/// Writes the event of the packet, if the filter and the sampling select it.
#[inline(always)]
fn emit<M: BalancerMaps>(maps: &M) {
    if maps.capture_control(control::UNTIL) == 0 {
        return;
    }
    let filter = maps.capture_control(control::FILTER);
    let sample = maps.capture_control(control::SAMPLE);
    let interval = maps.capture_control(control::INTERVAL);
    maps.with_capture_state(|state| {
        let event = &state.event;
        let service_filter = filter as u32;
        if state.outcome == outcome::NONE
            || (service_filter != 0 && service_filter != event.service)
        {
            return;
        }
        if state.outcome != outcome::DROPPED {
            let is_filtered_out =
                filter & control::NEW_CONNECTIONS != 0 && state.outcome != outcome::FORWARDED_SYN;
            if is_filtered_out || u64::from(maps.random()) >= sample {
                return;
            }
        }
        let captured_at = event.time;
        if captured_at == 0 {
            state.suppressed = state.suppressed.wrapping_add(1);
            return;
        }
        let arrival = if state.theoretical_arrival > captured_at {
            state.theoretical_arrival
        } else {
            captured_at
        };
        state.theoretical_arrival = arrival.wrapping_add(interval);
        if !maps.output_event(&state.event) {
            state.lost = state.lost.wrapping_add(1);
        }
    });
}

//! The stages of the packet path, one function each with a stack frame of its own, called from an
//! entry that has next to none: the kernel allows 512 bytes to a function and all its callers
//! together.

use sluice_datapath::abi::Features;
use sluice_datapath::balance::{
    BalancerTables as _, FastPathOutcome, Forward, GueMeta, IcmpOutcome, SlowPathOutcome, capture,
    echo_reply, fast_path, finish_gue, forward_to_quic_server, fragment, icmp, packet_too_big,
    parse_headers, select_by_connection_id, slow_path,
};
use sluice_datapath::wire::offsets::{HeaderOffsets, PacketClass};
use sluice_probes::hook::Hook;
use sluice_probes::next::Next;

use crate::maps::{Maps, NEIGHBOURS, UNCAPTURED};

/// Balances a packet; the hook's action.
#[inline(always)]
pub fn run(hook: impl Hook) -> u32 {
    let until = capture::enabled_until(&UNCAPTURED);
    let capture_enabled = opaque(until);
    if until != 0 {
        start_capture(hook);
    }
    let action = run_stages(hook, capture_enabled);
    if capture_enabled != 0 {
        emit_capture();
    }
    action
}

/// A number that is 0 when `until`, a time in nanoseconds, is, but of which the verifier knows
/// nothing when it knows that.
///
/// Else it would go through all stages once for packets that are capture_enabled and once for
/// others, and Linux 6.1 comes near its limit.
#[inline(always)]
fn opaque(until: u64) -> u64 {
    core::hint::black_box(until >> 1)
}

/// One stage after the other, as far as a packet needs them.
#[inline(always)]
fn run_stages(hook: impl Hook, capture_enabled: u64) -> u32 {
    let mut word = fast_path_stage(hook, capture_enabled);
    if let Next::ParseHeaders = Next::decode(word) {
        word = parse_headers_stage(hook, capture_enabled);
    }
    if let Next::Quic(offsets) = Next::decode(word) {
        word = quic_stage(hook, offsets, capture_enabled);
    }
    if let Next::At(offsets) = Next::decode(word) {
        word = match offsets.class() {
            PacketClass::SlowPath | PacketClass::Udp => {
                slow_path_stage(hook, offsets.encode(), capture_enabled)
            }
            PacketClass::Icmp => match icmp_stage(hook, offsets.encode(), capture_enabled) {
                word if Next::decode(word) == Next::EchoReply => {
                    echo_reply_stage(hook, offsets.encode(), capture_enabled)
                }
                word => word,
            },
            PacketClass::NonFirstFragment => {
                fragment_stage(hook, offsets.encode(), capture_enabled)
            }
        };
    }
    match Next::decode(word) {
        Next::TooBig(mtu) => packet_too_big_stage(hook, mtu),
        Next::FinishGue(action, gue) => match finish_gue_stage(hook, gue.encode()) {
            0 => action,
            refused => refused,
        },
        _ => word as u32,
    }
}

/// While a capture is on, what comes first.
#[inline(never)]
fn start_capture<H: Hook>(hook: H) {
    capture::start(&hook.packet(), &UNCAPTURED);
}

/// While a capture is on, what comes last.
#[inline(never)]
fn emit_capture() {
    capture::emit(&UNCAPTURED);
}

#[inline(never)]
fn fast_path_stage<H: Hook>(hook: H, capture_enabled: u64) -> u64 {
    match fast_path(hook.pull_and_wrap(), &Maps { capture_enabled }) {
        Ok(FastPathOutcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(FastPathOutcome::SlowPath(_)) => Next::ParseHeaders.encode(),
        Ok(FastPathOutcome::Udp(_, offsets)) => Next::Quic(offsets).encode(),
        Ok(FastPathOutcome::TooBig(_, mtu)) => Next::TooBig(mtu).encode(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn parse_headers_stage<H: Hook>(hook: H, capture_enabled: u64) -> u64 {
    match parse_headers(hook.packet(), &Maps { capture_enabled }) {
        Ok((_, offsets)) => located(offsets).encode(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

/// The stage that goes on where the headers end.
#[inline(always)]
fn located(offsets: HeaderOffsets) -> Next {
    if UNCAPTURED.uses(Features::QUIC) && offsets.class() == PacketClass::Udp {
        return Next::Quic(offsets.encode());
    }
    Next::At(offsets)
}

/// What names nobody is a matter for the stage that takes everything, at the same place.
#[inline(never)]
fn quic_stage<H: Hook>(hook: H, offsets: u32, capture_enabled: u64) -> u64 {
    let (offsets, maps) = (HeaderOffsets::decode(offsets), Maps { capture_enabled });
    let packet = hook.packet();
    let server = match select_by_connection_id(&packet, offsets, &maps) {
        Ok(Some(server)) => server,
        Ok(None) => return Next::At(offsets).encode(),
        Err(reason) => return hook.refuse(reason).into(),
    };
    match forward_to_quic_server(packet, offsets, &server, &maps) {
        Ok(SlowPathOutcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(SlowPathOutcome::TooBig(_, mtu)) => Next::TooBig(mtu).encode(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn slow_path_stage<H: Hook>(hook: H, offsets: u32, capture_enabled: u64) -> u64 {
    match slow_path(hook.packet(), HeaderOffsets::decode(offsets), &Maps { capture_enabled }) {
        Ok(SlowPathOutcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(SlowPathOutcome::TooBig(_, mtu)) => Next::TooBig(mtu).encode(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn icmp_stage<H: Hook>(hook: H, offsets: u32, capture_enabled: u64) -> u64 {
    match icmp(hook.packet(), HeaderOffsets::decode(offsets), &Maps { capture_enabled }) {
        Ok(IcmpOutcome::Forward(forward)) => forwarded(hook, &forward),
        Ok(IcmpOutcome::EchoRequest(_)) => Next::EchoReply.encode(),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn echo_reply_stage<H: Hook>(hook: H, offsets: u32, capture_enabled: u64) -> u64 {
    hook.refuse(echo_reply(
        hook.packet(),
        HeaderOffsets::decode(offsets),
        &Maps { capture_enabled },
    ))
    .into()
}

#[inline(never)]
fn fragment_stage<H: Hook>(hook: H, offsets: u32, capture_enabled: u64) -> u64 {
    match fragment(hook.packet(), HeaderOffsets::decode(offsets), &Maps { capture_enabled }) {
        Ok(forward) => forwarded(hook, &forward),
        Err(reason) => hook.refuse(reason).into(),
    }
}

#[inline(never)]
fn packet_too_big_stage<H: Hook>(hook: H, mtu: u32) -> u32 {
    hook.refuse(packet_too_big(hook.packet(), mtu, &UNCAPTURED))
}

/// Not 0, but the action, when the packet is not forwarded after all.
#[inline(never)]
fn finish_gue_stage<H: Hook>(hook: H, gue: u32) -> u32 {
    match finish_gue(hook.packet(), GueMeta::decode(gue), &UNCAPTURED) {
        Ok(()) => 0,
        Err(reason) => {
            UNCAPTURED.count_refused(reason);
            hook.refuse(reason)
        }
    }
}

/// The action for an encapsulated packet, or what its last stage needs.
#[inline(always)]
fn forwarded(hook: impl Hook, forward: &Forward) -> u64 {
    let action = hook.redirect(forward, |index| NEIGHBOURS.get(index));
    match forward.gue {
        GueMeta::NONE => action.into(),
        gue => Next::FinishGue(action, gue).encode(),
    }
}

//! The order of the stages: the same for TC, XDP and memory.

use crate::balance::capture::{self, EmitCaptureStage, StartCaptureStage};
use crate::balance::fast_path::FastPathStage;
use crate::balance::finish_gue::FinishGueStage;
use crate::balance::fragment::FragmentStage;
use crate::balance::icmp::{EchoReplyStage, IcmpStage};
use crate::balance::maps::BalancerMaps;
use crate::balance::next::Next;
use crate::balance::packet_too_big::PacketTooBigStage;
use crate::balance::quic::QuicStage;
use crate::balance::slow_path::{ParseHeadersStage, SlowPathStage};
use crate::balance::stage::Stage;
use crate::wire::offsets::PacketClass;

/// How a binding runs stages.
pub trait StageRunner {
    /// The maps.
    type Maps: BalancerMaps;

    /// The maps, before a capture is enabled for the packet.
    fn maps(&self) -> &Self::Maps;

    /// Sets [`CaptureMaps::capture_enabled`](crate::balance::CaptureMaps::capture_enabled) for
    /// the stages that follow.
    fn set_capture_enabled(&mut self, enabled: u64);

    /// Runs one stage. The kernel bindings call a BPF subprogram.
    fn run<S: Stage>(&mut self, argument: u32) -> u64;
}

/// Balances one packet. Returns the action of the hook.
#[inline(always)]
pub fn balance<R: StageRunner>(mut runner: R) -> u32 {
    let capture_until = capture::enabled_until(runner.maps());
    let enabled = decouple_for_verifier(capture_until);
    runner.set_capture_enabled(enabled);
    if capture_until != 0 {
        runner.run::<StartCaptureStage>(0);
    }
    let action = run_stages(&mut runner);
    if enabled != 0 {
        runner.run::<EmitCaptureStage>(0);
    }
    action
}

/// Returns 0 if `until` is 0, else another number: a time is more than one nanosecond, so its half
/// is not 0. The compiler and the verifier do not see how the two numbers are related. If the
/// verifier did, it would explore all stages once with a capture and once without, and Linux 6.1
/// comes close to its limit of a million instructions.
#[inline(always)]
fn decouple_for_verifier(until: u64) -> u64 {
    core::hint::black_box(until >> 1)
}

/// Runs the stages that the packet needs.
#[inline(always)]
fn run_stages<R: StageRunner>(runner: &mut R) -> u32 {
    let mut word = runner.run::<FastPathStage>(0);
    if let Next::ParseHeaders = Next::decode(word) {
        word = runner.run::<ParseHeadersStage>(0);
    }
    if let Next::Quic(offsets) = Next::decode(word) {
        word = runner.run::<QuicStage>(offsets);
    }
    if let Next::ByClass(offsets) = Next::decode(word) {
        word = match offsets.class() {
            PacketClass::SlowPath | PacketClass::Udp => {
                runner.run::<SlowPathStage>(offsets.encode())
            }
            PacketClass::Icmp => match runner.run::<IcmpStage>(offsets.encode()) {
                word if Next::decode(word) == Next::EchoReply => {
                    runner.run::<EchoReplyStage>(offsets.encode())
                }
                word => word,
            },
            PacketClass::NonFirstFragment => runner.run::<FragmentStage>(offsets.encode()),
        };
    }
    match Next::decode(word) {
        Next::TooBig(mtu) => runner.run::<PacketTooBigStage>(mtu) as u32,
        Next::FinishGue(action, gue) => match runner.run::<FinishGueStage>(gue.encode()) as u32 {
            0 => action,
            drop_action => drop_action,
        },
        _ => word as u32,
    }
}

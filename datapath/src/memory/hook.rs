//! The in-memory hook.

use crate::abi::Reason;
use crate::balance::{self, BalancerMaps, Egress, Hook, Stage, StageRunner};
use crate::memory::balancer::MemoryBalancer;
use crate::memory::packet::PacketBuffer;

/// Balances one packet. Returns where it leaves, or the counted reason why it is not forwarded.
///
/// Unless the reason's verdict is a reply, or the reason is [`Reason::AdjustRoomFailed`], a packet
/// that is not forwarded is unchanged.
pub fn balance(packet: PacketBuffer<'_>, maps: &MemoryBalancer) -> Result<Egress, Reason> {
    let mut result = None;
    balance::balance(MemoryStages { hook: MemoryHook { packet, result: &mut result }, maps });
    match result {
        Some(result) => result,
        None => unreachable!("the last stage forwards or refuses the packet"),
    }
}

/// The action of every packet; its result is in the hook.
const ACTION: u32 = 0;

struct MemoryHook<'a> {
    packet: PacketBuffer<'a>,
    result: &'a mut Option<Result<Egress, Reason>>,
}

impl Hook for MemoryHook<'_> {
    type Packet<'b>
        = PacketBuffer<'b>
    where
        Self: 'b;

    fn pull_and_wrap(&mut self) -> PacketBuffer<'_> {
        self.packet()
    }

    fn packet(&mut self) -> PacketBuffer<'_> {
        self.packet.reborrow()
    }

    fn redirect<M: BalancerMaps>(&mut self, egress: &Egress, _: &M) -> u32 {
        *self.result = Some(Ok(*egress));
        ACTION
    }

    fn apply_verdict(&mut self, reason: Reason) -> u32 {
        *self.result = Some(Err(reason));
        ACTION
    }
}

struct MemoryStages<'a> {
    hook: MemoryHook<'a>,
    maps: &'a MemoryBalancer,
}

impl StageRunner for MemoryStages<'_> {
    type Maps = MemoryBalancer;

    fn maps(&self) -> &MemoryBalancer {
        self.maps
    }

    fn set_capture_enabled(&mut self, enabled: u64) {
        self.maps.capture_enabled.set(enabled);
    }

    fn run<S: Stage>(&mut self, argument: u32) -> u64 {
        S::run(&mut self.hook, argument, self.maps)
    }
}

//! Stages, and the hook at which they run.

use crate::abi::{Family, Reason};
use crate::balance::gue::GueMeta;
use crate::balance::maps::BalancerMaps;
use crate::wire::packet::Packet;

/// Where an encapsulated packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// Index of the interface towards the backend.
    pub interface: u32,
    /// Family of the outer header.
    pub family: Family,
    /// Index of the next hop's address in `NEIGHBOURS`; 0 when the kernel looks it up.
    pub neighbour: u32,
    /// Inputs of the UDP header, which `FinishGueStage` writes; [`GueMeta::NONE`] without GUE.
    pub gue: GueMeta,
}

/// The context of one packet at a hook: TC, XDP, or memory.
pub trait Hook {
    /// The binding of packets.
    type Packet<'a>: Packet
    where
        Self: 'a;

    /// The packet, with its headers pulled into the linear part (`bpf_skb_pull_data`), where
    /// programs can read them. The fast path calls it. Of all stages, only the one that starts a
    /// capture runs earlier, and it copies bytes with a helper.
    fn pull_and_wrap(&mut self) -> Self::Packet<'_>;

    /// The packet, without pulling its headers.
    fn packet(&mut self) -> Self::Packet<'_>;

    /// Returns the action for an encapsulated packet.
    fn redirect<M: BalancerMaps>(&mut self, egress: &Egress, maps: &M) -> u32;

    /// Returns the action for a packet that is not forwarded: pass, drop, or send back a packet
    /// that has become a reply.
    fn apply_verdict(&mut self, reason: Reason) -> u32;
}

/// One stage of the path. In the kernel, each stage is a BPF subprogram with a stack frame of its
/// own.
pub trait Stage {
    /// Runs the stage. `argument` comes from the previous stage's `Next`. Returns the encoded
    /// `Next`, or the action of the hook.
    fn run<H: Hook, M: BalancerMaps>(hook: &mut H, argument: u32, maps: &M) -> u64;
}

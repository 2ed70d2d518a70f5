//! What TC and XDP have in common as places where a program meets packets.

use sluice_datapath::abi::Neighbour;
use sluice_datapath::balance::Forward;
use sluice_datapath::{Packet, Reason};

/// A packet's context at a hook.
pub trait Hook: Copy {
    /// The binding of packets.
    type Packet: Packet;

    /// The packet, which nobody has read yet.
    fn pull_and_wrap(self) -> Self::Packet;

    /// The packet, once [`Hook::pull_and_wrap`] has seen it.
    fn packet(self) -> Self::Packet;

    /// The action for an encapsulated packet; `neighbours` looks up whom it is handed to, where
    /// that is known.
    fn redirect(
        self,
        forward: &Forward,
        neighbours: impl FnOnce(u32) -> Option<&'static Neighbour>,
    ) -> u32;

    /// The action for a packet that is not forwarded; it may have become an answer.
    fn refuse(self, reason: Reason) -> u32;
}

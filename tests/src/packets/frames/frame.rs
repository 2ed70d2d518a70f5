//! A frame with the metadata that the kernel keeps outside its bytes.

use crate::packets::addresses::RECEIVER;

/// Bytes of the shortest frame that `BPF_PROG_TEST_RUN` takes: an Ethernet header.
pub const SHORTEST: usize = 14;

/// A frame and what the kernel knows about it beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Payload of each segment of a merged packet, in bytes; 0 when it is not merged.
    pub segment_size: u32,
    /// Packets that a merged packet stands for; 0 when the kernel does not say.
    pub segments: u32,
    /// Whether a VLAN tag is held beside the bytes.
    pub vlan: bool,
}

impl Frame {
    /// Whether its link address is not the receiver's.
    pub fn is_for_other_host(&self) -> bool {
        !self.bytes.starts_with(&RECEIVER)
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, segment_size: 0, segments: 0, vlan: false }
    }
}

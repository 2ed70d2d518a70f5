//! A frame with the metadata of its socket buffer.

use crate::packets::addresses::RECEIVER;

/// Bytes of the shortest frame that `BPF_PROG_TEST_RUN` takes: an Ethernet header.
pub const SHORTEST: usize = 14;

/// A frame with the metadata of its socket buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Bytes of payload in each segment of a merged packet (`gso_size`); 0 if it is not merged.
    pub segment_size: u32,
    /// Segments of a merged packet (`gso_segs`); 0 if unknown.
    pub segments: u32,
    /// Whether a VLAN tag is in the metadata (`vlan_present`) instead of the bytes.
    pub vlan: bool,
}

impl Frame {
    /// Whether the destination link address differs from the receiver's.
    pub fn is_for_other_host(&self) -> bool {
        !self.bytes.starts_with(&RECEIVER)
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, segment_size: 0, segments: 0, vlan: false }
    }
}

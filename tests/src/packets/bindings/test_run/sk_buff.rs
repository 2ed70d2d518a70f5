//! The `__sk_buff` context of a test run (`include/uapi/linux/bpf.h`).
#![expect(unsafe_code, reason = "passes a struct of the kernel as bytes")]

use crate::packets::frames::Frame;

/// `struct __sk_buff`. Fields that a test run may not set must be zero.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct SkBuff {
    length_to_priority: [u32; 9],
    ingress_to_traffic_index: [u32; 3],
    control: [u32; 5],
    hash_to_data_meta: [u32; 19],
    flow_keys: u64,
    timestamp: u64,
    wire_length: u32,
    segments: u32,
    socket: u64,
    segment_size: u32,
    timestamp_type: u8,
    pad: [u8; 3],
    hardware_timestamp: u64,
}

const _: () = assert!(size_of::<SkBuff>() == 192);
const _: () = assert!(
    std::mem::offset_of!(SkBuff, segments) == 164
        && std::mem::offset_of!(SkBuff, segment_size) == 176
);

impl SkBuff {
    /// The context of a frame; empty without metadata.
    pub(super) fn of(frame: &Frame) -> Vec<u8> {
        if frame.segment_size == 0 && frame.segments == 0 {
            return Vec::new();
        }
        let context =
            Self { segments: frame.segments, segment_size: frame.segment_size, ..Self::default() };
        let start = std::ptr::from_ref(&context).cast::<u8>();
        // SAFETY: the struct has no padding (its size is the sum of its fields), so all its bytes
        // are initialised.
        unsafe { std::slice::from_raw_parts(start, size_of::<Self>()) }.to_vec()
    }
}

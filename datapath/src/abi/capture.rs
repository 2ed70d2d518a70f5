//! Records and controls of packet captures.

use crate::abi::pod::pod;

/// The most bytes of a packet that an event holds: all headers of nearly every packet.
pub const CAPTURE_LEN: usize = 128;
const _: () =
    assert!(CAPTURE_LEN.is_power_of_two(), "the TC binding bounds what it copies by a mask");

/// What became of one packet: a record of the ring buffer `CAPTURE_EVENTS`. Numbers in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureEvent {
    /// When the packet came, nanoseconds of the kernel's monotonic clock; never 0.
    pub time: u64,
    /// [`Reason::index`] of a packet that was dropped; 0 for one that was forwarded.
    pub reason: u32,
    /// Index of the service; 0 when the packet was dropped before it had one.
    pub service: u32,
    /// Index of the backend that got it; 0 when it was dropped.
    pub backend: u32,
    /// Index of the interface on which it came.
    pub interface: u32,
    /// Index of the interface through which it left; 0 when it was dropped.
    pub leaves: u32,
    /// Packets that it stands for: the segments of a merged one, else 1.
    pub segments: u32,
    /// Bytes of the frame as it came.
    pub length: u32,
    /// Bytes of `head` that are of this packet.
    pub captured: u32,
    /// The first bytes of the frame as it came, from the Ethernet header; a VLAN tag that the
    /// kernel holds beside them is not among them.
    pub head: [u8; CAPTURE_LEN],
}
pod!(CaptureEvent, 168);

impl CaptureEvent {
    /// Nothing.
    pub const NONE: Self = Self {
        time: 0,
        reason: 0,
        service: 0,
        backend: 0,
        interface: 0,
        leaves: 0,
        segments: 0,
        length: 0,
        captured: 0,
        head: [0; CAPTURE_LEN],
    };

    /// The first bytes of the frame.
    pub fn bytes(&self) -> &[u8] {
        &self.head[..(self.captured as usize).min(CAPTURE_LEN)]
    }
}

/// One CPU's share of a capture: value of the per-CPU array `CAPTURE_STATE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureState {
    /// The packet that is under way. Its time is 0 when the rate limit leaves no room for its
    /// event.
    pub event: CaptureEvent,
    /// What became of it: see [`outcome`].
    pub outcome: u64,
    /// When the next event is due at the allowed rate, nanoseconds of the monotonic clock.
    pub due: u64,
    /// Events that the rate limit suppressed.
    pub suppressed: u64,
    /// Events for which the ring buffer had no room.
    pub lost: u64,
}
pod!(CaptureState, 200);

impl Default for CaptureState {
    fn default() -> Self {
        Self { event: CaptureEvent::NONE, outcome: outcome::NONE, due: 0, suppressed: 0, lost: 0 }
    }
}

/// What became of the packet that is under way, as far as captures go.
pub mod outcome {
    /// It passes, or it is not known yet.
    pub const NONE: u64 = 0;
    /// It is forwarded.
    pub const FORWARDED: u64 = 1;
    /// It is forwarded, and is_syn a TCP connection.
    pub const FORWARDED_SYN: u64 = 2;
    /// It is dropped.
    pub const DROPPED: u64 = 3;
}

/// The words of the array `CAPTURE_CONTROL`, by index. Each is written as one.
pub mod control {
    /// Until when a capture is on, nanoseconds of the monotonic clock; 0 for never.
    pub const UNTIL: u32 = 0;
    /// How many of 2³² forwarded packets are captured, at random; 0 for drops only.
    pub const SAMPLE: u32 = 1;
    /// The lower half is the index of the only service that is captured, 0 for all. Above are bits.
    pub const SELECT: u32 = 2;
    /// Nanoseconds between two events on one CPU, on average.
    pub const INTERVAL: u32 = 3;
    /// How many words there are.
    pub const WORDS: u32 = 4;

    /// A bit of [`SELECT`]: of forwarded packets only those that open a TCP connection.
    pub const NEW_CONNECTIONS: u64 = 1 << 32;
    /// The value of [`SAMPLE`] for all.
    pub const ALL: u64 = 1 << 32;
}

/// Events that a CPU may write at once after it wrote none for a while.
pub const BURST: u64 = 64;

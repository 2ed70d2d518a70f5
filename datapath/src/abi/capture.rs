//! Records and controls of packet captures.

use crate::abi::pod::pod;

/// Maximum bytes of a packet in an event: enough for all headers of nearly every packet.
pub const CAPTURE_LEN: usize = 128;
const _: () = assert!(CAPTURE_LEN.is_power_of_two(), "the TC binding bounds its copies by a mask");

/// One captured packet: a record of the ring buffer `CAPTURE_EVENTS`. All fields but `head` are in
/// host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureEvent {
    /// Arrival time, nanoseconds of `CLOCK_MONOTONIC`; never 0.
    pub time: u64,
    /// [`Reason::index`](crate::Reason::index) of a dropped packet; 0 for a forwarded one.
    pub reason: u32,
    /// Index of the service; 0 if the packet was dropped before a service was found.
    pub service: u32,
    /// Index of the selected backend; 0 if the packet was dropped.
    pub backend: u32,
    /// Index of the ingress interface.
    pub interface: u32,
    /// Index of the egress interface; 0 if the packet was dropped.
    pub egress_interface: u32,
    /// Number of segments of a merged packet, else 1.
    pub segments: u32,
    /// Bytes of the received frame.
    pub length: u32,
    /// Bytes of `head` that are valid.
    pub captured: u32,
    /// The first bytes of the received frame, from the Ethernet header on. A VLAN tag in the
    /// packet's metadata (`skb->vlan_tci`) is not included.
    pub head: [u8; CAPTURE_LEN],
}
pod!(CaptureEvent, 168);

impl CaptureEvent {
    /// An empty event.
    pub const NONE: Self = Self {
        time: 0,
        reason: 0,
        service: 0,
        backend: 0,
        interface: 0,
        egress_interface: 0,
        segments: 0,
        length: 0,
        captured: 0,
        head: [0; CAPTURE_LEN],
    };

    /// The captured bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.head[..(self.captured as usize).min(CAPTURE_LEN)]
    }
}

/// Capture state of one CPU: value of the per-CPU array `CAPTURE_STATE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureState {
    /// Event of the packet being processed. Its time is 0 if the rate limit suppresses the event.
    pub event: CaptureEvent,
    /// Outcome of the packet: a constant of [`outcome`].
    pub outcome: u64,
    /// The time at which the next event conforms to the rate without a burst (GCRA's theoretical
    /// arrival time), nanoseconds of `CLOCK_MONOTONIC`.
    pub theoretical_arrival: u64,
    /// Events that the rate limit suppressed.
    pub suppressed: u64,
    /// Events for which the ring buffer had no room.
    pub lost: u64,
}
pod!(CaptureState, 200);

impl Default for CaptureState {
    fn default() -> Self {
        Self {
            event: CaptureEvent::NONE,
            outcome: outcome::NONE,
            theoretical_arrival: 0,
            suppressed: 0,
            lost: 0,
        }
    }
}

/// Outcomes of the packet being processed.
pub mod outcome {
    /// Passed, or not decided yet.
    pub const NONE: u64 = 0;
    /// Forwarded.
    pub const FORWARDED: u64 = 1;
    /// Forwarded, and a TCP SYN that opens a connection.
    pub const FORWARDED_SYN: u64 = 2;
    /// Dropped.
    pub const DROPPED: u64 = 3;
}

/// Indices of the words of the array `CAPTURE_CONTROL`. Each word is written by one store.
pub mod control {
    /// End of the capture, nanoseconds of `CLOCK_MONOTONIC`; 0 if no capture is enabled.
    pub const UNTIL: u32 = 0;
    /// Sampling probability of forwarded packets, in units of 2⁻³²; 0 captures drops only.
    pub const SAMPLE: u32 = 1;
    /// Filter. Lower half: index of the captured service, 0 for all. Upper half: flags.
    pub const FILTER: u32 = 2;
    /// Mean interval between events on one CPU, in nanoseconds.
    pub const INTERVAL: u32 = 3;
    /// Number of words.
    pub const WORDS: u32 = 4;

    /// Flag of [`FILTER`]: of the forwarded packets, capture only those that open a TCP connection.
    pub const NEW_CONNECTIONS: u64 = 1 << 32;
    /// Value of [`SAMPLE`] that captures every forwarded packet.
    pub const ALL: u64 = 1 << 32;
}

/// Maximum burst of events on one CPU after an idle period.
pub const CAPTURE_BURST: u64 = 64;

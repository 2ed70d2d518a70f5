//! What a capture sees: events of the packet path, one record each, for whoever reads the ring
//! buffer `EVENTS`.
//!
//! A capture is on for as long as the first word of the map `EVENT_SWITCH` says, a moment that
//! whoever reads pushes ahead of itself: when it dies, the capture ends by itself. While none is
//! on, a packet costs one look at that word. While one is on, [`begin`] keeps the packet's first
//! bytes, before anything changes them, and [`end`] writes the event if it is wanted: drops, and a
//! share of what is forwarded. Both obey a rate limit for each CPU, so that a flood of drops costs
//! little.

use crate::options::Features;
use crate::plain::plain;
use crate::tables::BalancerTables;
#[cfg(doc)]
use crate::tables::EventTables;
use crate::{Packet, Reason, Verdict};

/// The most bytes of a packet that an event holds: all headers of nearly every packet.
pub const HEAD: usize = 128;
const _: () = assert!(HEAD.is_power_of_two(), "the TC binding bounds what it copies by a mask");

/// What became of one packet: a record of the ring buffer `EVENTS`. Numbers in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
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
    pub head: [u8; HEAD],
}
plain!(Event, 168);

impl Event {
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
        head: [0; HEAD],
    };

    /// The first bytes of the frame.
    pub fn bytes(&self) -> &[u8] {
        &self.head[..(self.captured as usize).min(HEAD)]
    }
}

/// One CPU's share of a capture: value of the per-CPU array `OBSERVERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Observer {
    /// The packet that is under way. Its time is 0 when the rate limit leaves no room for its
    /// event.
    pub event: Event,
    /// What became of it: see [`outcome`].
    pub outcome: u64,
    /// When the next event is due at the allowed rate, nanoseconds of the monotonic clock.
    pub due: u64,
    /// Events that the rate limit suppressed.
    pub suppressed: u64,
    /// Events for which the ring buffer had no room.
    pub lost: u64,
}
plain!(Observer, 200);

impl Default for Observer {
    fn default() -> Self {
        Self { event: Event::NONE, outcome: outcome::NONE, due: 0, suppressed: 0, lost: 0 }
    }
}

/// What became of the packet that is under way, as far as captures go.
pub mod outcome {
    /// It passes, or it is not known yet.
    pub const NONE: u64 = 0;
    /// It is forwarded.
    pub const FORWARDED: u64 = 1;
    /// It is forwarded, and opens a TCP connection.
    pub const OPENED: u64 = 2;
    /// It is dropped.
    pub const DROPPED: u64 = 3;
}

/// The words of the array `EVENT_SWITCH`, by index. Each is written as one.
pub mod switch {
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
    pub const NEW_FLOWS: u64 = 1 << 32;
    /// The value of [`SAMPLE`] for all.
    pub const ALL: u64 = 1 << 32;
}

/// Events that a CPU may write at once after it wrote none for a while.
pub const BURST: u64 = 64;

/// Whether a capture may be on: 0 when there is none, which is all that a packet costs otherwise,
/// and nothing where the program has not got the feature. When it is another number, [`begin`]
/// comes next, and [`EventTables::watched`] is not 0 until the packet is done.
#[inline(always)]
pub fn watched<T: BalancerTables>(tables: &T) -> u64 {
    if tables.uses(Features::EVENTS) { tables.switch(switch::UNTIL) } else { 0 }
}

/// Looks at a packet that is watched before anything else does.
#[inline(always)]
pub fn begin<P: Packet, T: BalancerTables>(packet: &P, tables: &T) {
    let now = tables.now();
    let ahead = tables.switch(switch::INTERVAL).wrapping_mul(BURST);
    let over = now >= tables.switch(switch::UNTIL);
    if over {
        // Whoever captured has died: the packets to come need not ask for the time.
        tables.switch_off();
    }
    tables.observer(|observer| {
        observer.outcome = outcome::NONE;
        if over || observer.due > now.wrapping_add(ahead) {
            observer.event.time = 0;
            return;
        }
        let event = &mut observer.event;
        event.time = now;
        event.interface = packet.interface();
        event.segments = packet.segments() as u32;
        event.length = packet.length() as u32;
        event.captured = packet.head(&mut event.head);
    });
}

/// Keeps that a packet was encapsulated, for [`end`].
#[inline(always)]
pub(crate) fn forwarded<T: BalancerTables>(
    tables: &T,
    service: u32,
    backend: u16,
    opens: bool,
    interface: u32,
) {
    if !is_watched(tables) {
        return;
    }
    tables.observer(|observer| {
        observer.outcome = if opens { outcome::OPENED } else { outcome::FORWARDED };
        let event = &mut observer.event;
        (event.service, event.backend, event.leaves) = (service, backend.into(), interface);
        event.reason = 0;
    });
}

/// Keeps that a packet is not forwarded, for [`end`]; one that passes leaves it at
/// [`outcome::NONE`]. The service is 0 until it is known.
#[inline(always)]
pub(crate) fn refused<T: BalancerTables>(tables: &T, service: u32, reason: Reason) {
    if !is_watched(tables) {
        return;
    }
    tables.observer(|observer| {
        observer.event.service = service;
        if reason.verdict() == Verdict::Drop {
            observer.outcome = outcome::DROPPED;
            let event = &mut observer.event;
            (event.reason, event.backend, event.leaves) = (reason.index(), 0, 0);
        }
    });
}

/// Whether a packet may have an event. A stage does no more than to keep what becomes of it: its
/// code is gone through once for each way in which it ends, and [`end`] just once.
#[inline(always)]
fn is_watched<T: BalancerTables>(tables: &T) -> bool {
    tables.uses(Features::EVENTS) && tables.watched() != 0
}

/// Writes the event of a packet that was watched, if it is wanted. Comes when the packet is done
/// with.
#[inline(always)]
pub fn end<T: BalancerTables>(tables: &T) {
    if tables.switch(switch::UNTIL) == 0 {
        return;
    }
    let select = tables.switch(switch::SELECT);
    let sample = tables.switch(switch::SAMPLE);
    let interval = tables.switch(switch::INTERVAL);
    tables.observer(|observer| {
        let event = &observer.event;
        let only = select as u32;
        if observer.outcome == outcome::NONE || only != 0 && only != event.service {
            return;
        }
        if observer.outcome != outcome::DROPPED {
            let unwanted = select & switch::NEW_FLOWS != 0 && observer.outcome != outcome::OPENED;
            if unwanted || u64::from(tables.random()) >= sample {
                return;
            }
        }
        let now = event.time;
        if now == 0 {
            observer.suppressed = observer.suppressed.wrapping_add(1);
            return;
        }
        let due = if observer.due > now { observer.due } else { now };
        observer.due = due.wrapping_add(interval);
        if !tables.emit(&observer.event) {
            observer.lost = observer.lost.wrapping_add(1);
        }
    });
}

//! What a program should do with a frame, and what its counters should show.

use std::collections::BTreeMap;

use sluice_datapath::Reason;

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// It goes on untouched, counted under a reason.
    Pass(Reason),
    /// It is dropped, counted under a reason.
    Drop(Reason),
    /// It is encapsulated.
    Forward(Forwarded),
    /// It becomes its own answer, these bytes, counted under a reason.
    Reply(Reason, Vec<u8>),
}

/// An encapsulated frame and what it adds to counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Service that it is accounted to.
    pub service: u32,
    /// BackendSpec that it goes to.
    pub backend: u16,
    /// Packets that it counts as.
    pub packets: u64,
    /// Bytes of the client's IP packet.
    pub length: u64,
    /// Whether it opens a connection.
    pub opens: bool,
}

/// BalancerCounters that are not zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalancerCounters {
    /// By service: packets, bytes, new flows.
    pub services: BTreeMap<u32, (u64, u64, u64)>,
    /// By backend: packets, bytes, new flows.
    pub backends: BTreeMap<u16, (u64, u64, u64)>,
    /// By reason.
    pub reasons: BTreeMap<Reason, u64>,
}

impl BalancerCounters {
    /// Adds what an outcome should add.
    pub fn add(&mut self, outcome: &Expectation) {
        match outcome {
            Expectation::Drop(reason @ Reason::IcmpTooBigRateLimited)
            | Expectation::Reply(reason @ Reason::IcmpTooBigSent, _) => {
                *self.reasons.entry(Reason::TooBig).or_default() += 1;
                *self.reasons.entry(*reason).or_default() += 1;
            }
            Expectation::Pass(reason)
            | Expectation::Drop(reason)
            | Expectation::Reply(reason, _) => *self.reasons.entry(*reason).or_default() += 1,
            Expectation::Forward(forwarded) => {
                let service = self.services.entry(forwarded.service).or_default();
                service.0 += forwarded.packets;
                service.1 += forwarded.length;
                service.2 += u64::from(forwarded.opens);
                let backend = self.backends.entry(forwarded.backend).or_default();
                backend.0 += forwarded.packets;
                backend.1 += forwarded.length;
                backend.2 += u64::from(forwarded.opens);
            }
        }
    }
}

impl BalancerCounters {
    /// Adds other counters.
    pub fn add_all(&mut self, other: &Self) {
        for (service, (packets, bytes, new_flows)) in &other.services {
            let sum = self.services.entry(*service).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes, sum.2 + new_flows);
        }
        for (backend, (packets, bytes, new_flows)) in &other.backends {
            let sum = self.backends.entry(*backend).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes, sum.2 + new_flows);
        }
        for (reason, count) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
    }
}

/// What a hook did with a frame, as far as it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The frame goes on.
    Pass,
    /// The frame is dropped.
    Drop,
    /// The frame leaves through an interface.
    Redirect,
    /// The frame leaves through the interface that it came from.
    SendBack,
}

/// What the backend should do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecapExpectation {
    /// It leaves the frame alone, or drops it: verdict and reason.
    Untouched(Action, Reason),
    /// It takes the outer header off: the frame that is left, packets and bytes of the inner
    /// packet.
    Decapsulated(Vec<u8>, u64, u64),
}

/// Packets and bytes decapsulated, and the reasons that occurred.
pub type DecapCounters = ((u64, u64), BTreeMap<Reason, u64>);

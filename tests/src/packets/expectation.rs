//! The expected result of a frame: verdict, bytes and counters.

use std::collections::BTreeMap;

use sluice_datapath::Reason;

/// What the balancer should do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// Pass it unchanged and count it by a reason.
    Pass(Reason),
    /// Drop it and count it by a reason.
    Drop(Reason),
    /// Encapsulate and forward it.
    Forward(Forwarded),
    /// Turn it into a reply with these bytes and count it by a reason.
    Reply(Reason, Vec<u8>),
}

/// An encapsulated frame and its share of the counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The bytes, from the Ethernet header.
    pub bytes: Vec<u8>,
    /// Service that counts it.
    pub service: u32,
    /// Index of the backend.
    pub backend: u16,
    /// Number of packets it counts as: the segments of a merged packet, otherwise 1.
    pub packets: u64,
    /// Bytes of the client's IP packet.
    pub length: u64,
    /// Whether it is a SYN, which counts as a new connection.
    pub is_syn: bool,
}

/// Non-zero counters of the balancer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalancerCounters {
    /// By service: packets, bytes, new connections.
    pub services: BTreeMap<u32, (u64, u64, u64)>,
    /// By backend: packets, bytes, new connections.
    pub backends: BTreeMap<u16, (u64, u64, u64)>,
    /// By reason.
    pub reasons: BTreeMap<Reason, u64>,
}

impl BalancerCounters {
    /// Adds the counts of an expected result.
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
                service.2 += u64::from(forwarded.is_syn);
                let backend = self.backends.entry(forwarded.backend).or_default();
                backend.0 += forwarded.packets;
                backend.1 += forwarded.length;
                backend.2 += u64::from(forwarded.is_syn);
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

/// The verdict of a program, as far as the binding can observe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Pass to the network stack.
    Pass,
    /// Drop.
    Drop,
    /// Redirect to an interface.
    Redirect,
    /// Transmit through the receiving interface.
    TransmitBack,
}

/// What the backend should do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecapExpectation {
    /// Pass or drop the unchanged frame: verdict and reason.
    Untouched(Action, Reason),
    /// Remove the outer header: the remaining frame, packets and bytes of the inner packet.
    Decapsulated(Vec<u8>, u64, u64),
}

/// Decapsulated packets and bytes, and counters by reason.
pub type DecapCounters = ((u64, u64), BTreeMap<Reason, u64>);

//! The table of cases, by theme, and how a case is judged.

mod addressing;
mod clamping;
mod decapsulating;
mod dropping;
mod families;
mod forwarding;
mod fragments;
mod gue;
mod icmp;
mod limits;
mod lists;
mod passing;
mod pings;
mod quic;
mod rejecting;
mod routes;
mod tracking;
mod unusual;

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use sluice_datapath::Reason;

use super::build::{self, Client, Transport};
use super::oracle::decapsulate::decapsulated;
use super::oracle::{self, Oracle};
use super::world::{
    Action, Balancer, Counters, DNS, Decapsulator, Forwarded, Frame, Host, Outcome, Slot, Unwraps,
    WEB, World,
};

pub use clamping::{ClampCase, LARGEST, cases as clamping, handshake};
pub use decapsulating::cases as decapsulating;

/// Bytes of the shortest frame that `BPF_PROG_TEST_RUN` takes: an Ethernet header.
pub const SHORTEST: usize = 14;

/// One step of a case.
#[derive(Debug, Clone)]
pub enum Step {
    /// The maps change.
    Configure(World),
    /// A frame comes, and this should become of it.
    Send(Frame, Outcome),
}

/// What the balancer should do, in a sentence, and the frames that show it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The sentence.
    pub name: &'static str,
    /// The steps; the first one is a [`Step::Configure`].
    pub steps: Vec<Step>,
}

/// What the backend should do with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwrapped {
    /// It leaves the frame alone, or drops it: verdict and reason.
    Refused(Action, Reason),
    /// It takes the outer header off: the frame that is left, packets and bytes of the inner
    /// packet.
    Taken(Vec<u8>, u64, u64),
}

/// What the backend should do, in a sentence, and the frames that show it.
#[derive(Debug, Clone)]
pub struct HostCase {
    /// The sentence.
    pub name: &'static str,
    /// What the host serves.
    pub host: Host,
    /// Frames and what should become of each.
    pub frames: Vec<(Frame, Unwrapped)>,
}

/// Every case of the balancer.
pub fn balancing() -> Vec<Case> {
    [
        forwarding::cases(),
        families::cases(),
        addressing::cases(),
        unusual::cases(),
        fragments::cases(),
        icmp::cases(),
        gue::cases(),
        pings::cases(),
        rejecting::cases(),
        passing::cases(),
        dropping::cases(),
        tracking::cases(),
        lists::cases(),
        routes::cases(),
        quic::cases(),
        limits::cases(),
    ]
    .concat()
}

impl Case {
    fn new(name: &'static str, world: World, frames: Vec<(Frame, Outcome)>) -> Self {
        let sends = frames.into_iter().map(|(frame, outcome)| Step::Send(frame, outcome));
        Self { name, steps: [Step::Configure(world)].into_iter().chain(sends).collect() }
    }

    /// Its frames.
    pub fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.steps.iter().filter_map(|step| match step {
            Step::Send(frame, _) => Some(frame),
            Step::Configure(_) => None,
        })
    }

    /// The same with only those frames that a binding of the packet path can be given; `None` when
    /// there are none, or when a frame that it cannot be given would have left fewer tokens to the
    /// others.
    #[must_use]
    pub fn only(mut self, accepts: impl Fn(&Frame) -> bool) -> Option<Self> {
        let limited = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::Configure(world) if !world.rates.is_empty()));
        let all = self.frames().count();
        self.steps.retain(|step| !matches!(step, Step::Send(frame, _) if !accepts(frame)));
        let left = self.frames().count();
        (left > 0 && (left == all || !limited)).then_some(self)
    }

    /// Runs the case: verdict, bytes and counters after each frame.
    ///
    /// # Errors
    ///
    /// What differs, or what the kernel refused.
    pub fn run(&self, balancer: &mut dyn Balancer) -> anyhow::Result<()> {
        let mut total = Counters::default();
        let mut sent = 0;
        for step in &self.steps {
            match step {
                Step::Configure(world) => balancer.configure(world)?,
                Step::Send(frame, expected) => {
                    sent += 1;
                    send(balancer, frame, expected, &mut total)
                        .with_context(|| format!("frame {sent}"))?;
                }
            }
        }
        ensure!(sent > 0, "the case sends nothing");
        Ok(())
    }

    /// Whether the oracle, which judges random frames, says the same as this row of the table.
    ///
    /// # Errors
    ///
    /// What differs.
    pub fn agrees_with_oracle(&self) -> anyhow::Result<()> {
        let mut oracle = Oracle::default();
        for step in &self.steps {
            match step {
                Step::Configure(world) => oracle.configure(world),
                Step::Send(frame, expected) => {
                    let judged = oracle.judge(frame);
                    ensure!(
                        judged == *expected,
                        "{}: the table says {expected:02x?}, the oracle {judged:02x?}",
                        self.name
                    );
                }
            }
        }
        Ok(())
    }
}

impl HostCase {
    /// Whether an outer header in it is of another family than the packet inside, which not every
    /// kernel's BPF can take off.
    pub fn crosses(&self) -> bool {
        self.frames.iter().any(|(frame, _)| match frame.bytes.get(12..14) {
            Some([0x08, 0x00]) => match frame.bytes.get(14 + 9) {
                Some(17) => frame.bytes.get(14 + 28).is_some_and(|first| first >> 4 == 6),
                protocol => protocol == Some(&41),
            },
            Some([0x86, 0xdd]) => match frame.bytes.get(14 + 6) {
                Some(17) => frame.bytes.get(14 + 48).is_some_and(|first| first >> 4 == 4),
                protocol => protocol == Some(&4),
            },
            _ => false,
        })
    }

    /// The same with only those frames that a binding of the packet path can be given; `None` when
    /// there are none.
    #[must_use]
    pub fn only(mut self, accepts: impl Fn(&Frame) -> bool) -> Option<Self> {
        self.frames.retain(|(frame, _)| accepts(frame));
        (!self.frames.is_empty()).then_some(self)
    }

    /// Runs the case: verdict, bytes and counters after each frame.
    ///
    /// # Errors
    ///
    /// What differs, or what the kernel refused.
    pub fn run(&self, host: &mut dyn Decapsulator) -> anyhow::Result<()> {
        host.configure(&self.host)?;
        let mut total = Unwraps::default();
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            unwrap(host, frame, expected, &mut total).with_context(|| format!("frame {number}"))?;
        }
        ensure!(!self.frames.is_empty(), "the case sends nothing");
        Ok(())
    }

    /// Whether the oracle, which judges random frames, says the same as this row of the table.
    ///
    /// # Errors
    ///
    /// What differs.
    pub fn agrees_with_oracle(&self) -> anyhow::Result<()> {
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            let judged = decapsulated(frame, &self.host, true);
            ensure!(
                judged == *expected,
                "{}: frame {number}: the table says {expected:02x?}, the oracle {judged:02x?}",
                self.name
            );
        }
        Ok(())
    }
}

/// Sends a frame to a backend and compares verdict, bytes and counters.
///
/// # Errors
///
/// What differs, or what the kernel refused.
pub fn unwrap(
    host: &mut dyn Decapsulator,
    frame: &Frame,
    expected: &Unwrapped,
    total: &mut Unwraps,
) -> anyhow::Result<()> {
    let exchanged = exchange_with_backend(host, frame, expected, total);
    let counters = host.counters()?;
    // After a failure the next frame is judged by itself, so that a random frame can be shrunk.
    let expected = std::mem::replace(total, counters.clone());
    exchanged?;
    ensure!(counters == expected, "counters are {counters:?} instead of {expected:?}");
    Ok(())
}

/// Sends a frame to a backend and compares verdict and bytes; adds to `total` what counters should
/// show of it.
///
/// # Errors
///
/// What differs, or what the kernel refused.
pub fn exchange_with_backend(
    host: &mut dyn Decapsulator,
    frame: &Frame,
    expected: &Unwrapped,
    total: &mut Unwraps,
) -> anyhow::Result<()> {
    let refused = host.refuses_merged() && frame.segment_size != 0;
    let expected = match expected {
        Unwrapped::Taken(..) if refused => &Unwrapped::Refused(Action::Drop, Reason::NoRoom),
        expected => expected,
    };
    let (action, bytes) = match expected {
        Unwrapped::Refused(action, reason) => {
            *total.1.entry(*reason).or_default() += 1;
            (*action, &frame.bytes)
        }
        Unwrapped::Taken(bytes, packets, length) => {
            total.0 = (total.0.0 + packets, total.0.1 + length);
            (Action::Pass, bytes)
        }
    };
    let (did, left) = host.send(frame)?;
    ensure!(did == action, "{did:?} instead of {action:?}: {:02x?}", frame.bytes);
    ensure!(left == *bytes, "{:02x?} became {left:02x?} instead of {bytes:02x?}", frame.bytes);
    Ok(())
}

/// Sends a frame and compares verdict, bytes and counters.
///
/// # Errors
///
/// What differs, or what the kernel refused.
pub fn send(
    balancer: &mut dyn Balancer,
    frame: &Frame,
    expected: &Outcome,
    total: &mut Counters,
) -> anyhow::Result<()> {
    let exchanged = exchange(balancer, frame, expected, total);
    let counters = balancer.counters()?;
    // After a failure the next frame is judged by itself, so that a random frame can be shrunk.
    let expected = std::mem::replace(total, counters.clone());
    exchanged?;
    ensure!(counters == expected, "counters are {counters:?} instead of {expected:?}");
    Ok(())
}

/// Sends a frame and compares verdict and bytes; adds to `total` what counters should show of it.
///
/// # Errors
///
/// What differs, or what the kernel refused.
pub fn exchange(
    balancer: &mut dyn Balancer,
    frame: &Frame,
    expected: &Outcome,
    total: &mut Counters,
) -> anyhow::Result<()> {
    let refused = balancer.refuses_merged() && frame.segment_size != 0;
    let expected = match expected {
        Outcome::Forward(_) if refused => &Outcome::Drop(Reason::NoRoom),
        expected => expected,
    };
    total.add(expected);
    let (action, bytes) = match expected {
        Outcome::Pass(_) => (Action::Pass, &frame.bytes),
        Outcome::Drop(_) => (Action::Drop, &frame.bytes),
        Outcome::Forward(forwarded) => (balancer.forwards_as(), &forwarded.bytes),
        Outcome::Answer(_, bytes) => (balancer.answers_as(), bytes),
    };
    let (did, left) = balancer.send(frame)?;
    ensure!(did == action, "{did:?} instead of {action:?}");
    // What was refused room may have lost its tags before; nobody sees it again.
    let seen = *expected != Outcome::Drop(Reason::NoRoom);
    ensure!(
        !seen || left == *bytes,
        "{:02x?} became {left:02x?} instead of {bytes:02x?}",
        frame.bytes
    );
    Ok(())
}

/// The frame of a client's packet going to a backend of [`World::new`], and what should become of
/// it.
fn to(client: &Client, backend: u16, hint: u16) -> (Frame, Outcome) {
    let bytes = client.frame();
    let outcome = forwarded(&bytes, client, backend, hint);
    (bytes.into(), outcome)
}

/// What should become of a client's packet in these bytes, which may be padded.
fn forwarded(bytes: &[u8], client: &Client, backend: u16, hint: u16) -> Outcome {
    let length = client.packet().len();
    let host = super::world::Backend::new(backend);
    let outer = if client.is_v6() {
        build::outer_v6(host.v6.expect("every backend has one"), client.traffic_class, hint, length)
    } else {
        build::outer_v4(host.v4.expect("every backend has one"), client.traffic_class, hint, length)
    };
    Outcome::Forward(Forwarded {
        bytes: build::wrapped(bytes, &outer),
        service: if client.transport == Transport::Udp { DNS } else { WEB },
        backend,
        packets: 1,
        length: length as u64,
        opens: client.transport == Transport::TcpSyn,
    })
}

/// The slot of a client's packet in a world's tables.
fn slot_of(world: &World, client: &Client) -> Slot {
    let (service, protocol) = if client.transport == Transport::Udp { (DNS, 17) } else { (WEB, 6) };
    let ports =
        [client.source.port().to_be_bytes(), client.destination.port().to_be_bytes()].concat();
    let addresses: (IpAddr, IpAddr) = (client.source.ip(), client.destination.ip());
    let tuple = oracle::tuple(addresses.0, addresses.1, &ports, protocol);
    oracle::slot(&world.tables[&service].slots, &tuple).expect("the table has slots")
}

fn passes(bytes: Vec<u8>, reason: Reason) -> (Frame, Outcome) {
    (bytes.into(), Outcome::Pass(reason))
}

fn drops(bytes: Vec<u8>, reason: Reason) -> (Frame, Outcome) {
    (bytes.into(), Outcome::Drop(reason))
}

/// The bytes with some of them changed.
fn with(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

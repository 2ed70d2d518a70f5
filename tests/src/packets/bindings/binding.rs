//! What every binding offers: configure the maps, send a frame, read the counters.

use ipnet::IpNet;
use sluice::kernel::bpf::Selection;
use sluice_datapath::Reason;
use sluice_datapath::abi::CaptureEvent;

use crate::packets::expectation::{Action, BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::Frame;

/// Something that runs the balancer's packet path: natively, or a program in the kernel.
pub trait BalancerBinding {
    /// Makes the maps hold a fixture, and nothing that an earlier one held; connections and counters
    /// stay.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()>;

    /// Gives it a frame: what it did, and the bytes as it left them.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// The counters since the start.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn counters(&self) -> anyhow::Result<BalancerCounters>;

    /// Whether it can be told that a frame is merged, or tagged beside its bytes.
    fn accepts(&self, frame: &Frame) -> bool;

    /// What a frame that is encapsulated looks like from outside.
    fn forward_action(&self) -> Action;

    /// What a frame that became its own answer looks like from outside.
    fn reply_action(&self) -> Action;

    /// Whether the kernel refuses room in a merged packet, as it does in a test run: there the
    /// packet lacks a segment type.
    fn refuses_merged(&self) -> bool;
}

/// Something that runs the backend's packet path.
pub trait DecapBinding {
    /// Makes the maps hold what a host serves.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()>;

    /// Gives it a frame: what it did, and the bytes as it left them.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// Packets and bytes decapsulated, and the reasons that occurred.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn counters(&self) -> anyhow::Result<DecapCounters>;

    /// As [`BalancerBinding::refuses_merged`].
    fn refuses_merged(&self) -> bool;
}

/// Something that runs the packet path of what leaves a backend.
pub trait ClampBinding {
    /// Makes the maps hold the VIP addresses and prefixes, and the largest maximum segment sizes of
    /// IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()>;

    /// Gives it a frame: the bytes as it left them. It lets everything pass.
    ///
    /// # Errors
    ///
    /// What the kernel refused, or another verdict.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>>;

    /// How many frames it says that it changed.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn clamped(&self) -> anyhow::Result<u64>;
}

/// A balancer that can be watched.
pub trait CaptureBinding: BalancerBinding {
    /// Captures from now on.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn watch(&mut self, selection: &Selection) -> anyhow::Result<()>;

    /// The events since the last call.
    fn events(&mut self) -> Vec<CaptureEvent>;

    /// Events that were suppressed and lost since [`Self::watch`].
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn missed(&self) -> anyhow::Result<(u64, u64)>;

    /// Packets dropped by a service.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    fn drops(&self, service: u32, reason: Reason) -> anyhow::Result<u64>;
}

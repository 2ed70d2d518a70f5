//! The traits of bindings: configure the maps, send a frame, read the counters. Errors are those of
//! the kernel.

use ipnet::IpNet;
use sluice::kernel::bpf::CaptureFilter;
use sluice_datapath::Reason;
use sluice_datapath::abi::CaptureEvent;

use crate::packets::expectation::{Action, BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::Frame;

/// A binding of the balancer's packet path.
pub trait BalancerBinding {
    /// Replaces the contents of the maps by a fixture. Connection table and counters keep theirs.
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()>;

    /// Runs the program on a frame: its verdict and the bytes afterwards.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// The counters since the binding was created.
    fn counters(&self) -> anyhow::Result<BalancerCounters>;

    /// Whether the binding can run on this frame with its metadata.
    fn accepts(&self, frame: &Frame) -> bool;

    /// The observed verdict for a forwarded frame.
    fn forward_action(&self) -> Action;

    /// The observed verdict for a frame that became a reply.
    fn reply_action(&self) -> Action;

    /// Whether the kernel refuses to make room in a merged packet. It does in a test run, where the
    /// packet has no `gso_type`.
    fn rejects_merged(&self) -> bool;
}

/// A binding of the backend's decapsulation.
pub trait DecapBinding {
    /// Replaces the contents of the maps by a fixture.
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()>;

    /// Runs the program on a frame: its verdict and the bytes afterwards.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)>;

    /// Decapsulated packets and bytes, and counters by reason.
    fn counters(&self) -> anyhow::Result<DecapCounters>;

    /// See [`BalancerBinding::rejects_merged`].
    fn rejects_merged(&self) -> bool;
}

/// A binding of the backend's MSS clamp.
pub trait ClampBinding {
    /// Sets VIP addresses and prefixes, and the largest MSS of IPv4 and IPv6.
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()>;

    /// Runs the program on a frame: the bytes afterwards. A verdict other than pass is an error.
    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>>;

    /// The counter of clamped frames.
    fn clamped(&self) -> anyhow::Result<u64>;
}

/// A balancer binding with captures.
pub trait CaptureBinding: BalancerBinding {
    /// Starts a capture.
    fn start_capture(&mut self, selection: &CaptureFilter) -> anyhow::Result<()>;

    /// The events since the last call.
    fn events(&mut self) -> Vec<CaptureEvent>;

    /// Suppressed and lost events since [`Self::start_capture`].
    fn missed_events(&self) -> anyhow::Result<(u64, u64)>;

    /// The drop counter of a service and reason.
    fn drop_count(&self, service: u32, reason: Reason) -> anyhow::Result<u64>;
}

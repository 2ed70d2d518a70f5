//! The programs, attached to the link.

use std::collections::BTreeMap;

use anyhow::ensure;
use ipnet::IpNet;
use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::exchange::exchange;
use super::link::VethLink;
use super::offload::link_accepts;
use crate::packets::bindings::binding::{BalancerBinding, ClampBinding, DecapBinding};
use crate::packets::bindings::test_run::{BalancerHook, TestRunBackend, TestRunBalancer, pool};
use crate::packets::expectation::{Action, BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::Frame;

/// The balancer's program at TC on the link.
pub struct WireBalancer<'a> {
    loaded: &'a mut TestRunBalancer,
    link: &'a mut VethLink,
    /// Requested bytes in the linear part of the buffer; `None` for the whole frame. The kernel
    /// keeps frames shorter than a memory page linear.
    pub linear: Option<u16>,
    /// Whether frames have a partial L4 checksum, like those of a virtual machine or a local
    /// sender. Merged packets always have one.
    pub partial: bool,
    /// The MTU towards backends if a service has the resegment option.
    resegments: Option<u32>,
}

impl WireBalancer<'_> {
    /// Runs a test with a program from the pool that is attached to the link.
    pub fn lend<T>(
        link: &mut VethLink,
        test: impl FnOnce(WireBalancer<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        pool::with_program(BalancerHook::Tc, |loaded| {
            link.attach(loaded.program())?;
            let outcome = test(WireBalancer {
                loaded,
                link,
                linear: None,
                partial: false,
                resegments: None,
            })?;
            // Before another link gets the program, because it would also count frames of this
            // link.
            link.detach()?;
            Ok(outcome)
        })
    }

    /// See [`VethLink::refuses`].
    pub fn refuses(&self, frame: &Frame) -> Option<&'static str> {
        self.link.refuses(frame)
    }
}

impl BalancerBinding for WireBalancer<'_> {
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        let mtus =
            fixture.backends.values().filter_map(|backend| backend.next_hop).map(|(_, mtu)| mtu);
        let asked = fixture.vip_options.values().any(|options| options.has(VipOptions::RESEGMENT));
        self.resegments = mtus.min().filter(|_| asked);
        self.loaded.configure(fixture)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        exchange(self.link, frame, self.linear, self.partial, self.resegments)
    }

    fn counters(&self) -> anyhow::Result<BalancerCounters> {
        let mut counters = self.loaded.counters()?;
        without_markers(&mut counters.reasons, self.link.markers())?;
        Ok(counters)
    }

    fn accepts(&self, frame: &Frame) -> bool {
        link_accepts(frame)
    }

    fn forward_action(&self) -> Action {
        Action::Redirect
    }

    fn reply_action(&self) -> Action {
        Action::TransmitBack
    }

    fn rejects_merged(&self) -> bool {
        false
    }
}

/// The backend's program that decapsulates, on the link.
pub struct WireBackend<'a> {
    loaded: TestRunBackend,
    link: &'a mut VethLink,
}

impl<'a> WireBackend<'a> {
    /// Loads the program with new maps and attaches it.
    pub fn new(link: &'a mut VethLink) -> anyhow::Result<Self> {
        let loaded = TestRunBackend::new()?;
        link.attach(loaded.program())?;
        Ok(Self { loaded, link })
    }
}

impl DecapBinding for WireBackend<'_> {
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()> {
        DecapBinding::configure(&mut self.loaded, host)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        exchange(self.link, frame, None, false, None)
    }

    fn counters(&self) -> anyhow::Result<DecapCounters> {
        let (total, mut reasons) = self.loaded.counters()?;
        without_markers(&mut reasons, self.link.markers())?;
        Ok((total, reasons))
    }

    fn rejects_merged(&self) -> bool {
        false
    }
}

/// The backend's program that clamps, on the link. It is attached at ingress, because its result
/// does not depend on the direction.
pub struct WireClamp<'a> {
    loaded: TestRunBackend,
    link: &'a mut VethLink,
    /// See [`WireBalancer::linear`].
    pub linear: Option<u16>,
    /// See [`WireBalancer::partial`].
    pub partial: bool,
}

impl<'a> WireClamp<'a> {
    /// Loads the program with new maps and attaches it.
    pub fn new(link: &'a mut VethLink) -> anyhow::Result<Self> {
        let loaded = TestRunBackend::new()?;
        link.attach(loaded.clamp())?;
        Ok(Self { loaded, link, linear: None, partial: false })
    }
}

impl ClampBinding for WireClamp<'_> {
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()> {
        ClampBinding::configure(&mut self.loaded, vips, largest)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>> {
        let (action, bytes) = exchange(self.link, frame, self.linear, self.partial, None)?;
        ensure!(action == Action::Pass, "{action:?} instead of {:?}", Action::Pass);
        Ok(bytes)
    }

    fn clamped(&self) -> anyhow::Result<u64> {
        self.loaded.clamped()
    }
}

fn without_markers(reasons: &mut BTreeMap<Reason, u64>, markers: u64) -> anyhow::Result<()> {
    if markers == 0 {
        return Ok(());
    }
    let counted = reasons.entry(Reason::NotIp).or_default();
    ensure!(*counted >= markers, "{counted} of {markers} markers are counted as {}", Reason::NotIp);
    *counted -= markers;
    reasons.retain(|_, count| *count != 0);
    Ok(())
}

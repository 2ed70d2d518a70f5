//! The backend's programs in test runs.

use anyhow::ensure;
use ipnet::IpNet;
use sluice::kernel::bpf::{self, BackendMaps, LoadParameters, Program};
use sluice::role::Role;
use sluice_datapath::Family;
use sluice_datapath::abi::maps::backend;

use super::hook::{BalancerHook, run};
use super::pins::OwnPins;
use crate::packets::addresses::GUE_PORT;
use crate::packets::bindings::binding::{ClampBinding, DecapBinding};
use crate::packets::expectation::{Action, DecapCounters};
use crate::packets::fixture::HostFixture;
use crate::packets::frames::Frame;

/// The backend's programs with their maps.
pub struct TestRunBackend {
    decapsulate: Program,
    clamp: Program,
    maps: BackendMaps,
    _pins: OwnPins,
}

impl TestRunBackend {
    /// Loads the programs with new maps.
    pub fn new() -> anyhow::Result<Self> {
        let pins = OwnPins::new(Role::Backend)?;
        let parameters = LoadParameters::backend(16, 16, GUE_PORT);
        let load = |program| bpf::BACKEND.load_program(&pins.0, &parameters, program);
        Ok(Self {
            decapsulate: load(bpf::DECAPSULATE)?,
            clamp: load(bpf::CLAMP)?,
            maps: BackendMaps::open(&pins.0)?,
            _pins: pins,
        })
    }

    /// The program that decapsulates.
    pub fn program(&self) -> &Program {
        &self.decapsulate
    }

    /// The program that clamps.
    pub fn clamp(&self) -> &Program {
        &self.clamp
    }
}

impl DecapBinding for TestRunBackend {
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()> {
        self.maps.set_addresses(&host.local_entries(), &host.balancers)?;
        Ok(self.maps.set_vips(&host.vips)?)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        run(&self.decapsulate, BalancerHook::Tc, frame)
    }

    fn counters(&self) -> anyhow::Result<DecapCounters> {
        let total = self.maps.total(backend::DECAPSULATED, 0)?;
        Ok(((total.packets, total.bytes), self.maps.reasons()?.into_iter().collect()))
    }

    fn rejects_merged(&self) -> bool {
        true
    }
}

impl ClampBinding for TestRunBackend {
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()> {
        self.maps.set_addresses(&[], &[])?;
        self.maps.set_vips(vips)?;
        let indexes = [Family::V4, Family::V6].map(Family::index);
        let sizes = indexes.map(|index| (index, largest[index as usize]));
        Ok(self.maps.write(backend::MAX_SEGMENT_SIZES, &sizes)?)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>> {
        let (action, bytes) = run(&self.clamp, BalancerHook::Tc, frame)?;
        ensure!(action == Action::Pass, "{action:?} instead of {:?}", Action::Pass);
        Ok(bytes)
    }

    fn clamped(&self) -> anyhow::Result<u64> {
        Ok(self.maps.total(backend::MSS_CLAMPED, 0)?)
    }
}

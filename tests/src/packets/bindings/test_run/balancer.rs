//! The balancer's program in test runs.
#![expect(unsafe_code, reason = "`aya::Pod` is unsafe to implement")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use sluice::kernel::bpf::{
    self, AclTrie, BalancerMaps, Capture, CaptureFilter, LoadParameters, Pins, Program,
};
use sluice::role::Role;
use sluice_control::apply::{MapStore as _, put_vip_addresses, remove_vip_addresses};
use sluice_control::capacities::Capacities;
use sluice_control::service_table::ServiceTable;
use sluice_datapath::abi::maps::balancer;
use sluice_datapath::abi::{
    BackendCounters, Buckets, CaptureEvent, CaptureState, ClientKey, Connection, FirstFragment,
    FragmentKey, Neighbour, NextHop, Rate, RateKind, ServiceCounters, Settings, Slot, TableHead,
};
use sluice_datapath::{Family, Flow, Reason};

use super::hook::{BalancerHook, accepts_at_tc, accepts_at_xdp, run};
use super::pins::OwnPins;
use crate::packets::addresses::{NEIGHBOUR_V4, NEIGHBOUR_V6};
use crate::packets::bindings::binding::{BalancerBinding, CaptureBinding};
use crate::packets::bindings::entries::{backend_entry, key, next_hop_entry, settings, vip_key};
use crate::packets::expectation::{Action, BalancerCounters};
use crate::packets::fixture::{Fixture, LARGEST_INDEX, TableSpec};
use crate::packets::frames::Frame;

/// Capacity of the connection table: more than the flows of any test, so that none is evicted.
pub const CONNECTIONS: u32 = 1 << 17;

/// The balancer's program at one hook with its maps.
pub struct TestRunBalancer {
    hook: BalancerHook,
    program: Program,
    maps: BalancerMaps,
    fixture: Option<Fixture>,
    capture: Option<Capture>,
    pins: OwnPins,
}

impl TestRunBalancer {
    /// Loads the program of a hook with new maps.
    pub fn new(hook: BalancerHook) -> anyhow::Result<Self> {
        Self::with(hook, CONNECTIONS, &settings())
    }

    /// The same with another connection table capacity and other settings.
    pub fn with(hook: BalancerHook, connections: u32, settings: &Settings) -> anyhow::Result<Self> {
        let pins = OwnPins::new(Role::Lb)?;
        let capacities = Capacities {
            services: LARGEST_INDEX.into(),
            backends: LARGEST_INDEX.into(),
            vips: 16,
            connections,
        };
        let program = match hook {
            BalancerHook::Tc => bpf::BALANCER_TC,
            BalancerHook::Xdp => bpf::BALANCER_XDP,
        };
        let parameters = LoadParameters::balancer(settings, &capacities);
        let program = bpf::BALANCER.load_program(&pins.0, &parameters, program)?;
        Ok(Self {
            hook,
            program,
            maps: BalancerMaps::open(&pins.0)?,
            fixture: None,
            capture: None,
            pins,
        })
    }

    /// The hook of the program.
    pub fn hook(&self) -> BalancerHook {
        self.hook
    }

    /// Ends a capture and clears all maps that packets write.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.events();
        self.capture = None;
        let directory = self.pins.0.directory();
        empty::<Flow, Connection>(&directory.join("CONNECTIONS"))?;
        empty::<FragmentKey, FirstFragment>(&directory.join("FRAGMENTS"))?;
        empty::<ClientKey, Buckets>(&directory.join("CLIENT_BUCKETS"))?;
        let mut buckets: Array<_, AyaPod<Buckets>> =
            Map::Array(MapData::from_pin(directory.join("SERVICE_BUCKETS"))?).try_into()?;
        for index in 0..buckets.len() {
            buckets.set(index, AyaPod(Buckets::default()), 0)?;
        }
        zero::<ServiceCounters>(&directory.join("SERVICE_COUNTERS"))?;
        zero::<BackendCounters>(&directory.join("BACKEND_COUNTERS"))?;
        zero::<u64>(&directory.join("REASONS"))?;
        zero::<CaptureState>(&directory.join("CAPTURE_STATE"))
    }

    /// The capture started by [`CaptureBinding::start_capture`].
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut()
    }

    /// The pins of the maps.
    pub fn pins(&self) -> &Pins {
        &self.pins.0
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The maps.
    pub fn maps(&mut self) -> &mut BalancerMaps {
        &mut self.maps
    }

    fn set_backends(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        let backends = || (1..=LARGEST_INDEX).map(|index| (index, fixture.backends.get(&index)));
        let entries = backends().map(|(index, backend)| (u32::from(index), backend_entry(backend)));
        self.maps.write(balancer::BACKENDS, &entries.collect::<Vec<_>>())?;
        // Every second backend has a neighbour entry; for the others the kernel looks up the
        // neighbour.
        let next_hops = backends().flat_map(|(index, backend)| {
            let next_hop = NextHop { neighbour: index % 2, ..next_hop_entry(backend) };
            [Family::V4, Family::V6].map(|family| (NextHop::index(index, family), next_hop))
        });
        let next_hops: Vec<_> = next_hops.collect();
        let neighbours = next_hops.iter().filter(|(_, next_hop)| next_hop.neighbour != 0).map(
            |(at, next_hop)| {
                let neighbour =
                    if at % 2 == 0 { IpAddr::V4(NEIGHBOUR_V4) } else { IpAddr::V6(NEIGHBOUR_V6) };
                (next_hop.neighbour_index(*at), Neighbour::from(neighbour))
            },
        );
        self.maps.write(balancer::NEIGHBOURS, &neighbours.collect::<Vec<_>>())?;
        Ok(self.maps.write(balancer::NEXT_HOPS, &next_hops)?)
    }
}

impl BalancerBinding for TestRunBalancer {
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        if let Some(old) = self.fixture.take() {
            for vip in old.vips.keys().filter(|vip| !fixture.vips.contains_key(vip)) {
                self.maps.remove(balancer::VIPS, &[vip_key(*vip)])?;
            }
            let wanted: BTreeMap<_, _> = fixture.address_entries().collect();
            for (prefix, _) in
                old.address_entries().filter(|(prefix, _)| !wanted.contains_key(prefix))
            {
                remove_vip_addresses(&mut self.maps, &[prefix])?;
            }
            let wanted: BTreeMap<_, _> = fixture.route_entries().collect();
            let unwanted =
                old.route_entries().map(|(key, _)| key).filter(|key| !wanted.contains_key(key));
            self.maps.remove(balancer::ROUTES, &unwanted.collect::<Vec<_>>())?;
            let wanted: BTreeMap<_, _> = fixture.server_entries().collect();
            let unwanted =
                old.server_entries().map(|(key, _)| key).filter(|key| !wanted.contains_key(key));
            self.maps.remove(balancer::QUIC_SERVERS, &unwanted.collect::<Vec<_>>())?;
            for acl in old.acls.keys().filter(|acl| !fixture.acls.contains_key(acl)) {
                self.maps.remove_acl(*acl)?;
            }
            for service in old.tables.keys().filter(|service| !fixture.tables.contains_key(service))
            {
                self.maps.remove_table(*service)?;
            }
        }
        self.set_backends(fixture)?;
        let table = |table: &TableSpec| ServiceTable {
            head: TableHead { slots: table.slots.len() as u32, tracked: table.tracked },
            generation: 1,
            digest: 0,
            slots: table.slots.iter().map(|&(backend, hint)| Slot { backend, hint }).collect(),
        };
        let tables: Vec<_> =
            fixture.tables.iter().map(|(service, t)| (*service, table(t))).collect();
        self.maps.replace_tables(
            &tables.iter().map(|(service, table)| (*service, table)).collect::<Vec<_>>(),
        )?;
        for (acl, prefixes) in &fixture.acls {
            let entries: Vec<_> =
                prefixes.iter().map(|(prefix, verdict)| (key(*prefix), *verdict)).collect();
            self.maps.replace_acls(&[(*acl, &AclTrie::new(&entries)?)])?;
        }
        let rates = (1..=u32::from(LARGEST_INDEX)).flat_map(|service| {
            RateKind::ALL.map(|limit| (Rate::index(service, limit), fixture.rate(service, limit)))
        });
        self.maps.write(balancer::RATES, &rates.collect::<Vec<_>>())?;
        self.maps.put(balancer::QUIC_SERVERS, &fixture.server_entries().collect::<Vec<_>>())?;
        let services = 1..=u32::from(LARGEST_INDEX);
        self.maps.write(
            balancer::QUIC_ID_LENGTHS,
            &services.map(|service| (service, fixture.id_lengths(service))).collect::<Vec<_>>(),
        )?;
        self.maps.put(balancer::ROUTES, &fixture.route_entries().collect::<Vec<_>>())?;
        for (vip, service) in &fixture.vips {
            self.maps.put(balancer::VIPS, &[(vip_key(*vip), fixture.vip_entry(*service))])?;
        }
        for (prefix, entry) in fixture.address_entries() {
            put_vip_addresses(&mut self.maps, &[(prefix, entry)])?;
        }
        self.fixture = Some(fixture.clone());
        Ok(())
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        run(&self.program, self.hook, frame)
    }

    fn counters(&self) -> anyhow::Result<BalancerCounters> {
        let mut counters = BalancerCounters {
            reasons: self.maps.reasons()?.into_iter().collect(),
            ..BalancerCounters::default()
        };
        for index in 0..=LARGEST_INDEX {
            let c = self.maps.total(balancer::SERVICE_COUNTERS, index.into())?;
            if (c.packets, c.bytes, c.new_connections) != (0, 0, 0) {
                counters.services.insert(index.into(), (c.packets, c.bytes, c.new_connections));
            }
            let c = self.maps.total(balancer::BACKEND_COUNTERS, index.into())?;
            if (c.packets, c.bytes, c.new_connections) != (0, 0, 0) {
                counters.backends.insert(index, (c.packets, c.bytes, c.new_connections));
            }
        }
        Ok(counters)
    }

    fn accepts(&self, frame: &Frame) -> bool {
        match self.hook {
            BalancerHook::Tc => accepts_at_tc(frame),
            BalancerHook::Xdp => accepts_at_xdp(frame),
        }
    }

    /// At XDP these packets pass to the network stack: their interface does not exist, so there is
    /// no neighbour.
    fn forward_action(&self) -> Action {
        match self.hook {
            BalancerHook::Tc => Action::Redirect,
            BalancerHook::Xdp => Action::Pass,
        }
    }

    /// A test run does not return the interface of a redirect.
    fn reply_action(&self) -> Action {
        match self.hook {
            BalancerHook::Tc => Action::Redirect,
            BalancerHook::Xdp => Action::TransmitBack,
        }
    }

    fn rejects_merged(&self) -> bool {
        true
    }
}

/// A value that implements `aya::Pod`.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct AyaPod<T>(T);

// SAFETY: `Pod` values of the datapath have no padding, and every bit pattern is valid.
unsafe impl<T: sluice_datapath::Pod + 'static> Pod for AyaPod<T> {}

/// Removes all entries of a pinned LRU hash map.
fn empty<K: sluice_datapath::Pod + 'static, V: sluice_datapath::Pod + 'static>(
    pin: &Path,
) -> anyhow::Result<()> {
    let mut map: HashMap<_, AyaPod<K>, AyaPod<V>> =
        Map::LruHashMap(MapData::from_pin(pin)?).try_into()?;
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

/// Zeroes all elements of a pinned per-CPU array.
fn zero<V: sluice_datapath::Pod + Default + 'static>(pin: &Path) -> anyhow::Result<()> {
    let mut map: PerCpuArray<_, AyaPod<V>> =
        Map::PerCpuArray(MapData::from_pin(pin)?).try_into()?;
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    for index in 0..map.len() {
        map.set(index, PerCpuValues::try_from(vec![AyaPod(V::default()); cpus])?, 0)?;
    }
    Ok(())
}

impl CaptureBinding for TestRunBalancer {
    fn start_capture(&mut self, selection: &CaptureFilter) -> anyhow::Result<()> {
        /// Longer than any test.
        const HOUR: Duration = Duration::from_secs(3600);

        // Only one capture can be open.
        self.capture = None;
        let mut capture = Capture::open(&self.pins.0)?;
        capture.select(selection)?;
        capture.renew(HOUR)?;
        self.capture = Some(capture);
        Ok(())
    }

    fn events(&mut self) -> Vec<CaptureEvent> {
        let Some(capture) = &mut self.capture else { return Vec::new() };
        std::iter::from_fn(|| capture.next_event()).collect()
    }

    fn missed_events(&self) -> anyhow::Result<(u64, u64)> {
        Ok(self.capture.as_ref().context("there is no capture")?.missed()?)
    }

    fn drop_count(&self, service: u32, reason: Reason) -> anyhow::Result<u64> {
        let index = reason.drop_index().context("the reason has no drop counter")?;
        Ok(self.maps.total(balancer::SERVICE_COUNTERS, service)?.drops[index as usize])
    }
}

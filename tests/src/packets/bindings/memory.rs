//! The packet path in memory.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ipnet::IpNet;
use sluice::kernel::bpf::CaptureFilter;
use sluice_datapath::abi::capture::control;
use sluice_datapath::abi::{
    AcceptedSource, AddressOptions, CaptureEvent, CaptureState, NextHop, PrefixKey, Rate, RateKind,
    Settings, TableHead, VipAddress,
};
use sluice_datapath::backend::{clamp_mss, decapsulate};
use sluice_datapath::memory::{PacketBuffer, TableWords};
use sluice_datapath::{Family, Reason, Verdict, abi, memory};

use super::binding::{BalancerBinding, CaptureBinding, ClampBinding, DecapBinding};
use super::entries::{backend_entry, key, next_hop_entry, settings, vip_key};
use crate::packets::addresses::GUE_PORT;
use crate::packets::expectation::{Action, BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture, LARGEST_INDEX, TableSpec};
use crate::packets::frames::Frame;

/// The balancer's packet path on maps in memory.
#[derive(Debug)]
pub struct InMemoryBalancer {
    maps: memory::MemoryBalancer,
}

impl InMemoryBalancer {
    /// The packet path with these settings.
    pub fn with(settings: Settings) -> Self {
        Self { maps: memory::MemoryBalancer::new(settings) }
    }
}

impl Default for InMemoryBalancer {
    fn default() -> Self {
        Self::with(settings())
    }
}

impl BalancerBinding for InMemoryBalancer {
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        let maps = &mut self.maps.maps;
        let (single, prefixes): (Vec<_>, Vec<_>) = fixture
            .address_entries()
            .partition(|(prefix, _)| prefix.prefix_len() == prefix.max_prefix_len());
        let single = single.into_iter().map(|(prefix, entry)| (prefix.addr().into(), entry));
        *maps.vip_addresses.get_mut() = single.collect();
        *maps.vip_prefixes.get_mut() =
            prefixes.into_iter().map(|(prefix, entry)| (key(prefix), entry)).collect();
        *maps.vips.get_mut() = fixture
            .vips
            .iter()
            .map(|(vip, service)| (vip_key(*vip), fixture.vip_entry(*service)))
            .collect();
        *maps.quic_servers.get_mut() = fixture.server_entries().collect();
        *maps.quic_id_lengths.get_mut() = (1..=u32::from(LARGEST_INDEX))
            .map(|service| (service, fixture.id_lengths(service)))
            .collect();
        *maps.routes.get_mut() = fixture.route_entries().collect();
        maps.acls = fixture
            .acls
            .iter()
            .map(|(acl, prefixes)| {
                (*acl, prefixes.iter().map(|(prefix, verdict)| (key(*prefix), *verdict)).collect())
            })
            .collect();
        for service in 1..=u32::from(LARGEST_INDEX) {
            for limit in RateKind::ALL {
                maps.rates
                    .get_mut()
                    .insert(Rate::index(service, limit), fixture.rate(service, limit));
            }
        }
        let words = |table: &TableSpec| {
            let head = TableHead { slots: table.slots.len() as u32, tracked: table.tracked };
            TableWords::new(
                head,
                1,
                0,
                table.slots.iter().map(|&(backend, hint)| abi::Slot { backend, hint }),
            )
        };
        maps.tables =
            fixture.tables.iter().map(|(service, table)| (*service, words(table))).collect();
        // In the kernel, arrays hold zeros at free indexes.
        for index in 0..=LARGEST_INDEX {
            let backend = fixture.backends.get(&index);
            maps.backends.get_mut().insert(index.into(), backend_entry(backend));
            for family in [Family::V4, Family::V6] {
                let next_hops = maps.next_hops.get_mut();
                next_hops.insert(NextHop::index(index, family), next_hop_entry(backend));
            }
        }
        Ok(())
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        let mut bytes = frame.bytes.clone();
        let packet = buffer(&mut bytes, frame);
        let outcome = memory::balance(packet, &self.maps);
        Ok((outcome.map_or_else(action, |_| Action::Redirect), bytes))
    }

    fn counters(&self) -> anyhow::Result<BalancerCounters> {
        let services = self.maps.maps.service_counters.borrow();
        let backends = self.maps.maps.backend_counters.borrow();
        Ok(BalancerCounters {
            services: services
                .iter()
                .map(|(i, c)| (*i, (c.packets, c.bytes, c.new_connections)))
                .filter(|(_, counts)| *counts != (0, 0, 0))
                .collect(),
            backends: backends
                .iter()
                .map(|(i, c)| (*i as u16, (c.packets, c.bytes, c.new_connections)))
                .collect(),
            reasons: by_reason(&self.maps.maps.reasons.borrow()),
        })
    }

    fn accepts(&self, _: &Frame) -> bool {
        true
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

impl CaptureBinding for InMemoryBalancer {
    fn start_capture(&mut self, selection: &CaptureFilter) -> anyhow::Result<()> {
        let maps = &mut self.maps;
        // The time of an event is never 0.
        maps.now.set(maps.now.get().max(1));
        maps.maps.capture_state.get_mut().insert(0, CaptureState::default());
        let words = maps.maps.capture_control.get_mut();
        words.extend(selection.words());
        words.insert(control::UNTIL, u64::MAX);
        Ok(())
    }

    fn events(&mut self) -> Vec<CaptureEvent> {
        self.maps.maps.capture_events.take()
    }

    fn missed_events(&self) -> anyhow::Result<(u64, u64)> {
        let state = self.maps.maps.capture_state.borrow();
        Ok(state.get(&0).map_or((0, 0), |state| (state.suppressed, state.lost)))
    }

    fn drop_count(&self, service: u32, reason: Reason) -> anyhow::Result<u64> {
        let index = reason.drop_index().context("the reason has no drop counter")?;
        Ok(self
            .maps
            .maps
            .service_counters
            .borrow()
            .get(&service)
            .map_or(0, |counters| counters.drops[index as usize]))
    }
}

/// The backend's packet path on maps in memory.
#[derive(Debug)]
pub struct InMemoryBackend {
    maps: memory::MemoryBackend,
}

impl InMemoryBackend {
    /// The packet path on a kernel that can, or cannot, decapsulate across address families.
    pub fn new(cross_family: bool) -> Self {
        Self {
            maps: memory::MemoryBackend { cross_family, gue_port: GUE_PORT, ..Default::default() },
        }
    }
}

impl Default for InMemoryBackend {
    fn default() -> Self {
        Self::new(true)
    }
}

impl DecapBinding for InMemoryBackend {
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()> {
        let local = host.local_entries().into_iter();
        *self.maps.maps.local_addresses.get_mut() =
            local.map(|(address, local)| (address.into(), local)).collect();
        let balancers = match &host.balancers[..] {
            [] => vec![PrefixKey::new(0, [0; 4])],
            balancers => balancers.iter().map(|prefix| key(*prefix)).collect(),
        };
        *self.maps.maps.balancers.get_mut() =
            balancers.into_iter().map(|prefix| (prefix, AcceptedSource::PRESENT)).collect();
        *self.maps.maps.vip_prefixes.get_mut() = vip_prefixes(&host.vips);
        Ok(())
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        let mut bytes = frame.bytes.clone();
        let outcome = decapsulate(buffer(&mut bytes, frame), &self.maps);
        Ok((outcome.map_or_else(action, |()| Action::Pass), bytes))
    }

    fn counters(&self) -> anyhow::Result<DecapCounters> {
        let total = self.maps.maps.decapsulated.borrow().get(&0).copied().unwrap_or_default();
        Ok(((total.packets, total.bytes), by_reason(&self.maps.maps.reasons.borrow())))
    }

    fn rejects_merged(&self) -> bool {
        false
    }
}

impl ClampBinding for InMemoryBackend {
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()> {
        *self.maps.maps.vip_prefixes.get_mut() = vip_prefixes(vips);
        *self.maps.maps.max_segment_sizes.get_mut() = (0..).zip(largest).collect();
        Ok(())
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>> {
        let mut bytes = frame.bytes.clone();
        clamp_mss(buffer(&mut bytes, frame), &self.maps);
        Ok(bytes)
    }

    fn clamped(&self) -> anyhow::Result<u64> {
        Ok(self.maps.maps.mss_clamped.borrow().get(&0).copied().unwrap_or(0))
    }
}

/// The VIP prefixes of a backend. Their entries have no meaning there.
fn vip_prefixes(vips: &[IpNet]) -> BTreeMap<PrefixKey, VipAddress> {
    let entry = VipAddress::new(1, AddressOptions::NONE);
    vips.iter().map(|vip| (key(*vip), entry)).collect()
}

/// The counters of `REASONS`, without those that are zero.
fn by_reason(counters: &BTreeMap<u32, u64>) -> BTreeMap<Reason, u64> {
    let count = |reason: &Reason| Some((*reason, *counters.get(&reason.index())?));
    Reason::ALL.iter().filter_map(count).collect()
}

fn buffer<'a>(bytes: &'a mut Vec<u8>, frame: &Frame) -> PacketBuffer<'a> {
    let segments = u64::from(frame.segments.max(1));
    PacketBuffer {
        segment_size: frame.segment_size as usize,
        segments,
        vlan: frame.vlan,
        other_host: frame.is_for_other_host(),
        ..PacketBuffer::new(bytes)
    }
}

fn action(reason: Reason) -> Action {
    match reason.verdict() {
        Verdict::Pass => Action::Pass,
        Verdict::Drop => Action::Drop,
        Verdict::Answer => Action::TransmitBack,
    }
}

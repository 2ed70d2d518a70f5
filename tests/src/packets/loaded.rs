//! The packet path in the kernel: programs that were loaded as the daemon loads them, run by
//! `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use ipnet::IpNet;
use sluice::kernel::bpf::{
    self, BackendHost, BackendMaps, BackendPrograms, BalancerMaps, Capture, Pins, Program,
    Selection, Trie,
};
use sluice::role::Role;
use sluice_control::capacities::Capacities;
use sluice_control::lookup_table::LookupTable;
use sluice_datapath::entries::{
    BackendCounters, Connection, Fragment, FragmentKey, Neighbour, NextHop, ServiceCounters,
    Settings, Slot, TableHead,
};
use sluice_datapath::observe::{Event, Observer};
use sluice_datapath::rates::{Buckets, Limit, Rate, SourceKey};
use sluice_datapath::{Family, Flow, Plain, Reason};

use super::build::ETHERNET;
use super::cases::HostCase;
use super::context::SkBuff;
use super::native::{backend_entry, key, next_hop_entry, settings, vip_key};
use super::watching::Watched;
use super::world::{
    Action, Balancer, Clamper, Counters, Decapsulator, Frame, GUE_PORT, Host, LARGEST_INDEX,
    NEIGHBOUR_V4, NEIGHBOUR_V6, Unwraps, World,
};

/// Entries of the connection table: more than the flows of any test, so that none is evicted.
pub const CONNECTIONS: u32 = 1 << 17;

/// A hook of the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `sluice_tc`.
    Tc,
    /// `sluice_xdp`.
    Xdp,
}

impl Hook {
    /// What a program's return value does to the packet.
    ///
    /// # Errors
    ///
    /// A value that no program of ours returns.
    pub fn action(self, value: u32) -> anyhow::Result<Action> {
        const UNSPECIFIED: u32 = u32::MAX;

        match (self, value) {
            (Self::Tc, UNSPECIFIED) | (Self::Xdp, 2) => Ok(Action::Pass),
            (Self::Tc, 2) | (Self::Xdp, 1) => Ok(Action::Drop),
            (Self::Tc, 7) | (Self::Xdp, 4) => Ok(Action::Redirect),
            (Self::Xdp, 3) => Ok(Action::Return),
            _ => bail!("the program returned {value}, which is no action of ours at {self:?}"),
        }
    }
}

/// Pins of one test, gone when it ends, however it ends.
struct OwnPins(Pins);

impl OwnPins {
    fn new(role: Role) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("test-{}-{number}", std::process::id());
        Ok(Self(Pins::new(&bpf::bpffs()?, &instance, role)))
    }
}

impl Drop for OwnPins {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("the pins at {} stay: {error}", self.0.directory().display());
        }
    }
}

/// The balancer's program.
pub struct Loaded {
    hook: Hook,
    program: Program,
    maps: BalancerMaps,
    world: Option<World>,
    capture: Option<Capture>,
    pins: OwnPins,
}

impl Loaded {
    /// Loads the program of a hook over maps of its own.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(hook: Hook) -> anyhow::Result<Self> {
        Self::with(hook, CONNECTIONS, &settings())
    }

    /// The same with a connection table of another capacity and other settings.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn with(hook: Hook, connections: u32, settings: &Settings) -> anyhow::Result<Self> {
        let pins = OwnPins::new(Role::Lb)?;
        let capacities = Capacities {
            services: LARGEST_INDEX.into(),
            backends: LARGEST_INDEX.into(),
            vips: 16,
            connections,
        };
        let program = match hook {
            Hook::Tc => bpf::load_balancer(&pins.0, settings, &capacities)?,
            Hook::Xdp => bpf::load_balancer_xdp(&pins.0, settings, &capacities)?,
        };
        Ok(Self {
            hook,
            program,
            maps: BalancerMaps::open(&pins.0)?,
            world: None,
            capture: None,
            pins,
        })
    }

    /// Its hook.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Ends a capture, and empties all maps that packets write.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.events();
        self.capture = None;
        let directory = self.pins.0.directory();
        empty::<Flow, Connection>(&directory.join("CONNECTIONS"))?;
        empty::<FragmentKey, Fragment>(&directory.join("FRAGMENTS"))?;
        empty::<SourceKey, Buckets>(&directory.join("SOURCES"))?;
        let mut buckets: Array<_, Raw<Buckets>> =
            Map::Array(MapData::from_pin(directory.join("BUCKETS"))?).try_into()?;
        for index in 0..buckets.len() {
            buckets.set(index, Raw(Buckets::default()), 0)?;
        }
        zero::<ServiceCounters>(&directory.join("SERVICE_COUNTERS"))?;
        zero::<BackendCounters>(&directory.join("BACKEND_COUNTERS"))?;
        zero::<u64>(&directory.join("REASONS"))?;
        zero::<Observer>(&directory.join("OBSERVERS"))
    }

    /// The capture that [`Watched::watch`] began.
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut()
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins.0
    }

    /// The program, to attach it.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The maps, to change them as the daemon does.
    pub fn maps(&mut self) -> &mut BalancerMaps {
        &mut self.maps
    }

    fn set_backends(&mut self, world: &World) -> anyhow::Result<()> {
        let backends = || (1..=LARGEST_INDEX).map(|index| (index, world.backends.get(&index)));
        self.maps.set_backends(
            &backends().map(|(index, backend)| (index, backend_entry(backend))).collect::<Vec<_>>(),
        )?;
        // The kernel finds the neighbours towards every other backend; those towards the others are
        // known.
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
        self.maps.set_neighbours(&neighbours.collect::<Vec<_>>())?;
        Ok(self.maps.set_next_hops(&next_hops)?)
    }
}

impl Balancer for Loaded {
    fn configure(&mut self, world: &World) -> anyhow::Result<()> {
        if let Some(old) = self.world.take() {
            for vip in old.vips.keys().filter(|vip| !world.vips.contains_key(vip)) {
                self.maps.remove_vips(&[vip_key(*vip)])?;
            }
            let wanted: BTreeMap<_, _> = world.address_entries().collect();
            for (prefix, _) in
                old.address_entries().filter(|(prefix, _)| !wanted.contains_key(prefix))
            {
                self.maps.remove_vip_addresses(&[prefix])?;
            }
            let wanted: BTreeMap<_, _> = world.route_entries().collect();
            let unwanted =
                old.route_entries().map(|(key, _)| key).filter(|key| !wanted.contains_key(key));
            self.maps.remove_routes(&unwanted.collect::<Vec<_>>())?;
            let wanted: BTreeMap<_, _> = world.server_entries().collect();
            let unwanted =
                old.server_entries().map(|(key, _)| key).filter(|key| !wanted.contains_key(key));
            self.maps.remove_quic_servers(&unwanted.collect::<Vec<_>>())?;
            for list in old.lists.keys().filter(|list| !world.lists.contains_key(list)) {
                self.maps.remove_list(*list)?;
            }
            for service in old.tables.keys().filter(|service| !world.tables.contains_key(service)) {
                self.maps.remove_table(*service)?;
            }
        }
        self.set_backends(world)?;
        let table = |table: &super::world::Table| LookupTable {
            head: TableHead { slots: table.slots.len() as u32, tracked: table.tracked },
            generation: 1,
            digest: 0,
            slots: table.slots.iter().map(|&(first, hint)| Slot { first, hint }).collect(),
        };
        let tables: Vec<_> = world.tables.iter().map(|(service, t)| (*service, table(t))).collect();
        self.maps.replace_tables(
            &tables.iter().map(|(service, table)| (*service, table)).collect::<Vec<_>>(),
        )?;
        for (list, prefixes) in &world.lists {
            let entries: Vec<_> =
                prefixes.iter().map(|(prefix, says)| (key(*prefix), *says)).collect();
            self.maps.put_lists(&[(*list, &Trie::new(&entries)?)])?;
        }
        let rates = (1..=u32::from(LARGEST_INDEX)).flat_map(|service| {
            Limit::ALL.map(|limit| (Rate::index(service, limit), world.rate(service, limit)))
        });
        self.maps.set_rates(&rates.collect::<Vec<_>>())?;
        self.maps.put_quic_servers(&world.server_entries().collect::<Vec<_>>())?;
        let services = 1..=u32::from(LARGEST_INDEX);
        self.maps.set_quic_lengths(
            &services.map(|service| (service, world.id_lengths(service))).collect::<Vec<_>>(),
        )?;
        self.maps.put_routes(&world.route_entries().collect::<Vec<_>>())?;
        for (vip, service) in &world.vips {
            self.maps.put_vips(&[(vip_key(*vip), world.vip_entry(*service))])?;
        }
        for (prefix, entry) in world.address_entries() {
            self.maps.put_vip_addresses(&[(prefix, entry)])?;
        }
        self.world = Some(world.clone());
        Ok(())
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        run(&self.program, self.hook, frame)
    }

    fn counters(&self) -> anyhow::Result<Counters> {
        let mut counters =
            Counters { reasons: self.maps.reasons()?.into_iter().collect(), ..Counters::default() };
        for index in 0..=LARGEST_INDEX {
            let c = self.maps.service_counters(index.into())?;
            if (c.packets, c.bytes, c.new_flows) != (0, 0, 0) {
                counters.services.insert(index.into(), (c.packets, c.bytes, c.new_flows));
            }
            let c = self.maps.backend_counters(index)?;
            if (c.packets, c.bytes, c.new_flows) != (0, 0, 0) {
                counters.backends.insert(index, (c.packets, c.bytes, c.new_flows));
            }
        }
        Ok(counters)
    }

    fn accepts(&self, frame: &Frame) -> bool {
        match self.hook {
            Hook::Tc => takes(frame),
            Hook::Xdp => takes_at_xdp(frame),
        }
    }

    /// At XDP the packets of these tests go up the stack: their interface does not exist, so the
    /// kernel knows no neighbour.
    fn forwards_as(&self) -> Action {
        match self.hook {
            Hook::Tc => Action::Redirect,
            Hook::Xdp => Action::Pass,
        }
    }

    /// A test run does not show the interface of a redirect.
    fn answers_as(&self) -> Action {
        match self.hook {
            Hook::Tc => Action::Redirect,
            Hook::Xdp => Action::Return,
        }
    }

    fn refuses_merged(&self) -> bool {
        true
    }
}

/// A plain value, as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: a plain value has neither padding nor forbidden bit patterns.
unsafe impl<T: Plain + 'static> Pod for Raw<T> {}

/// Removes all entries of a pinned LRU hash map.
fn empty<K: Plain + 'static, V: Plain + 'static>(pin: &Path) -> anyhow::Result<()> {
    let mut map: HashMap<_, Raw<K>, Raw<V>> =
        Map::LruHashMap(MapData::from_pin(pin)?).try_into()?;
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

/// Zeroes all elements of a pinned per-CPU array.
fn zero<V: Plain + Default + 'static>(pin: &Path) -> anyhow::Result<()> {
    let mut map: PerCpuArray<_, Raw<V>> = Map::PerCpuArray(MapData::from_pin(pin)?).try_into()?;
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    for index in 0..map.len() {
        map.set(index, PerCpuValues::try_from(vec![Raw(V::default()); cpus])?, 0)?;
    }
    Ok(())
}

impl Watched for Loaded {
    fn watch(&mut self, selection: &Selection) -> anyhow::Result<()> {
        /// Longer than any test.
        const HOUR: Duration = Duration::from_secs(3600);

        // There can be one at a time.
        self.capture = None;
        let mut capture = Capture::open(&self.pins.0)?;
        capture.select(selection)?;
        capture.renew(HOUR)?;
        self.capture = Some(capture);
        Ok(())
    }

    fn events(&mut self) -> Vec<Event> {
        let Some(capture) = &mut self.capture else { return Vec::new() };
        std::iter::from_fn(|| capture.next_event()).collect()
    }

    fn missed(&self) -> anyhow::Result<(u64, u64)> {
        Ok(self.capture.as_ref().context("nothing is captured")?.missed()?)
    }

    fn drops(&self, service: u32, reason: Reason) -> anyhow::Result<u64> {
        let index = reason.drop_index().context("the reason drops nothing of a service")?;
        Ok(self.maps.service_counters(service)?.drops[index as usize])
    }
}

/// The backend's programs.
pub struct LoadedHost {
    programs: BackendPrograms,
    maps: BackendMaps,
    _pins: OwnPins,
}

impl LoadedHost {
    /// Loads the programs over maps of their own.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new() -> anyhow::Result<Self> {
        let pins = OwnPins::new(Role::Backend)?;
        let programs = bpf::load_backend(
            &pins.0,
            &BackendHost { addresses: 16, vip_addresses: 16, gue_port: GUE_PORT },
        )?;
        Ok(Self { programs, maps: BackendMaps::open(&pins.0)?, _pins: pins })
    }

    /// The program that decapsulates, to attach it.
    pub fn program(&self) -> &Program {
        &self.programs.decapsulate
    }

    /// The program that clamps, to attach it.
    pub fn clamp(&self) -> &Program {
        &self.programs.clamp
    }
}

impl Decapsulator for LoadedHost {
    fn configure(&mut self, host: &Host) -> anyhow::Result<()> {
        Ok(self.maps.set(&host.local, &host.vips)?)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        run(&self.programs.decapsulate, Hook::Tc, frame)
    }

    fn counters(&self) -> anyhow::Result<Unwraps> {
        let total = self.maps.decapsulated()?;
        Ok(((total.packets, total.bytes), self.maps.reasons()?.into_iter().collect()))
    }

    fn refuses_merged(&self) -> bool {
        true
    }
}

impl Clamper for LoadedHost {
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()> {
        self.maps.set(&[], vips)?;
        Ok(self.maps.set_largest_segments(
            &[Family::V4, Family::V6].map(|family| (family, largest[family.index() as usize])),
        )?)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>> {
        let (action, bytes) = run(&self.programs.clamp, Hook::Tc, frame)?;
        ensure!(action == Action::Pass, "{action:?} instead of {:?}", Action::Pass);
        Ok(bytes)
    }

    fn clamped(&self) -> anyhow::Result<u64> {
        Ok(self.maps.clamped()?)
    }
}

/// Why this kernel's backend program cannot do what a case wants, if it cannot.
pub fn refused_here(case: &HostCase) -> Option<&'static str> {
    let refused = case.crosses() && !bpf::decapsulates_across_families();
    refused.then_some("this kernel has no BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (Linux 6.3)")
}

/// Whether a test run at TC takes a frame: it takes no VLAN tag beside the bytes, no IP packet that
/// ends inside its header, and nothing that does not fit into a page with what the kernel keeps
/// beside it.
pub fn takes(frame: &Frame) -> bool {
    const LONGEST: usize = 3_500;

    let header = match frame.bytes.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 1,
    };
    !frame.vlan && (ETHERNET + header..=LONGEST).contains(&frame.bytes.len())
}

/// Whether a test run at XDP takes a frame: there nothing stands beside the bytes, and nobody has
/// looked at the link address yet.
pub fn takes_at_xdp(frame: &Frame) -> bool {
    !frame.is_for_other_host() && !frame.vlan && frame.segment_size == 0 && frame.segments == 0
}

fn run(program: &Program, hook: Hook, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
    let (value, bytes) = program
        .run(&frame.bytes, &SkBuff::of(frame))
        .with_context(|| format!("a frame of {} bytes", frame.bytes.len()))?;
    Ok((hook.action(value)?, bytes))
}

//! Path MTUs reported by routers between balancer and backends.
//!
//! A router on the path to a backend whose next link is too small for an encapsulated packet drops
//! the packet and sends an ICMP error to the source of the outer header: this host. Such an error
//! lowers the backend's MTU in `NEXT_HOPS`, so that the balancer reports the MTU to clients. Errors
//! can be forged, so one is accepted only if it quotes a packet that this balancer sends
//! ([`Evidence`]), and it never lowers an MTU below a minimum. A path MTU
//! expires after [`LIFETIME`], and at once when the route to the backend changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use sluice_control::have::HaveBackend;
use sluice_datapath::abi::{Features, NextHop, PATH_MTU_ERRORS, PathMtuRecord, Settings};
use sluice_datapath::{Address, Family};

use crate::kernel::routing::path::BackendPath;

mod error;
mod evidence;
mod socket;

pub use error::{Malformed, TooBigError, UdpPorts};
pub use evidence::Evidence;
pub use socket::{Listener, PathError};

/// The lifetime of a path MTU, as in Linux (`net.ipv4.route.mtu_expires`).
pub const LIFETIME: Duration = Duration::from_secs(600);

/// The minimum time between two reductions of one path MTU: each large packet finds one small link,
/// and a path has few of these.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The outcome of an ICMP error about an encapsulated packet.
///
/// The number is the counter's index in `PATH_MTU_ERRORS` and is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathErrorOutcome {
    /// Lowered the MTU towards a backend.
    Lowered = 0,
    /// Reports an MTU that is known already.
    Known = 1,
    /// Cannot be parsed.
    Malformed = 2,
    /// Quotes a packet from another source.
    OtherSource = 3,
    /// Quotes a packet to an address that is no backend's.
    OtherDestination = 4,
    /// Quotes a packet that the balancer cannot have sent.
    NeverSent = 5,
    /// Reports no MTU.
    NoMtu = 6,
    /// Reports an MTU below the smallest usable one.
    TooSmall = 7,
    /// Follows another error too soon.
    TooOften = 8,
    /// Quotes a flow that is to no VIP, or whose packets have another outer header.
    WrongFlow = 9,
    /// Is from another source than a router of `underlay.path_mtu_routers`.
    OtherRouter = 10,
}

impl PathErrorOutcome {
    /// All outcomes, by index.
    pub const ALL: [Self; 11] = [
        Self::Lowered,
        Self::Known,
        Self::Malformed,
        Self::OtherSource,
        Self::OtherDestination,
        Self::NeverSent,
        Self::NoMtu,
        Self::TooSmall,
        Self::TooOften,
        Self::WrongFlow,
        Self::OtherRouter,
    ];

    /// The counter's index.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The counter's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lowered => "lowered",
            Self::Known => "known",
            Self::Malformed => "malformed",
            Self::OtherSource => "other_source",
            Self::OtherDestination => "other_destination",
            Self::NeverSent => "never_sent",
            Self::NoMtu => "no_mtu",
            Self::TooSmall => "too_small",
            Self::TooOften => "too_often",
            Self::WrongFlow => "wrong_flow",
            Self::OtherRouter => "other_router",
        }
    }

    /// Whether the error was accepted.
    pub const fn is_accepted(self) -> bool {
        matches!(self, Self::Lowered | Self::Known)
    }

    /// A description, and whether the outcome is normal in production.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Lowered => {
                "The MTU towards a backend was lowered to the one that a router reported. Raise the MTU of its link."
            }
            Self::Known => {
                "The MTU was as low already. Normal: packets in flight when it was lowered, or a route with that MTU."
            }
            Self::Malformed => "The error is truncated, or its checksum is wrong. Not normal.",
            Self::OtherSource => {
                "The quoted packet is not from this balancer's underlay address. Normal if the host has other tunnels; otherwise forged."
            }
            Self::OtherDestination => {
                "The quoted packet is not to a backend. Normal if the host has other tunnels, or after a backend was removed; otherwise forged."
            }
            Self::NeverSent => {
                "The quoted packet fits the reported MTU, or may be fragmented. Not normal: a broken router, or forged."
            }
            Self::NoMtu => {
                "The router reports no MTU. Not normal: an old router; set the MTU on the route by hand."
            }
            Self::TooSmall => {
                "The MTU is below the smallest accepted one: 1280 bytes plus outer header, or `underlay.min_path_mtu` if the error proves that this balancer sent the packet. Not normal: the link is too small, or the error is forged."
            }
            Self::TooOften => {
                "The MTU was lowered less than a second ago. Normal when several links are too small."
            }
            Self::WrongFlow => {
                "The quoted inner packet is to no VIP, or this balancer sends it elsewhere. Normal in small numbers after a table changed; otherwise forged."
            }
            Self::OtherRouter => {
                "The error is from no router of `underlay.path_mtu_routers`. Not normal: forged, or a router is missing there."
            }
        }
    }
}

const _: () = assert!(PathErrorOutcome::ALL.len() <= PATH_MTU_ERRORS as usize);

/// A path MTU reported by a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// Largest IP packet, outer header included, in bytes.
    pub mtu: u32,
    /// When it expires: nanoseconds since boot.
    pub until: u64,
}

/// The path MTUs, by the backend's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMtus {
    entries: BTreeMap<IpAddr, PathMtu>,
}

impl PathMtus {
    /// Restores the path MTUs that an earlier daemon recorded for the backends in the maps and that
    /// have not expired.
    pub fn restored(
        backends: &BTreeMap<u16, HaveBackend>,
        records: &[PathMtuRecord],
        now: u64,
    ) -> Self {
        let mut entries = BTreeMap::new();
        for (at, address, epoch) in next_hop_indexes(backends) {
            if let Some(path_mtu) =
                records.get(at as usize).and_then(|record| valid_path_mtu(record, epoch, now))
            {
                entries.insert(address, path_mtu);
            }
        }
        Self { entries }
    }

    /// Validates an error received at `now` (nanoseconds since boot), and lowers the path MTU if it
    /// is accepted.
    ///
    /// `settings` has the sources of outer headers; `path` is the path to the quoted packet's
    /// destination, if that is a backend's address; `min_path_mtu` replaces the smallest MTU that
    /// an error can report. Without proof, an error never lowers an MTU below the default minimum.
    pub fn take_error(
        &mut self,
        error: &TooBigError,
        settings: &Settings,
        path: Option<BackendPath>,
        evidence: Evidence,
        min_path_mtu: Option<u32>,
        now: u64,
    ) -> PathErrorOutcome {
        if !is_underlay_source(error.source, settings) {
            return PathErrorOutcome::OtherSource;
        }
        if error.udp.is_some_and(|ports| {
            !settings.features.has(Features::GUE) || ports.destination != settings.gue_port.number()
        }) {
            return PathErrorOutcome::NeverSent;
        }
        let Some(path) = path.filter(|path| path.next_hop.interface != 0) else {
            return PathErrorOutcome::OtherDestination;
        };
        if error.mtu == 0 {
            return PathErrorOutcome::NoMtu;
        }
        // The quoted length may exceed that of any packet sent: routers merge packets, too (GRO),
        // and quote the merged one.
        if !error.dont_fragment || error.length <= error.mtu {
            return PathErrorOutcome::NeverSent;
        }
        if evidence == Evidence::Refuted {
            return PathErrorOutcome::WrongFlow;
        }
        let default_minimum = min_mtu(error, Family::V6);
        let minimum = match (min_path_mtu, evidence) {
            (None, _) => default_minimum,
            // Even then, the smallest packet that every host may send must fit.
            (Some(configured), Evidence::Proven) => {
                configured.max(min_mtu(error, error.inner.unwrap_or(Family::V6)))
            }
            (Some(configured), _) => configured.max(default_minimum),
        };
        if error.mtu < minimum {
            return PathErrorOutcome::TooSmall;
        }
        if error.mtu >= u32::from(self.limit(error.destination, path.next_hop).mtu) {
            return PathErrorOutcome::Known;
        }
        let until = now.saturating_add(nanoseconds(LIFETIME));
        let recent = nanoseconds(LIFETIME) - nanoseconds(MIN_INTERVAL);
        if self
            .entries
            .get(&error.destination)
            .is_some_and(|entry| entry.until > now.saturating_add(recent))
        {
            return PathErrorOutcome::TooOften;
        }
        self.entries.insert(error.destination, PathMtu { mtu: error.mtu, until });
        PathErrorOutcome::Lowered
    }

    /// The next hop towards an address, with the path MTU where that is smaller.
    #[must_use]
    pub fn limit(&self, address: IpAddr, next_hop: NextHop) -> NextHop {
        match self.entries.get(&address) {
            Some(entry) if next_hop.interface != 0 => NextHop {
                mtu: next_hop.mtu.min(u16::try_from(entry.mtu).unwrap_or(u16::MAX)),
                ..next_hop
            },
            _ => next_hop,
        }
    }

    /// Drops the path MTUs of addresses for which `still` is false because their route has changed.
    pub fn retain(&mut self, still: impl Fn(IpAddr) -> bool) {
        self.entries.retain(|address, _| still(*address));
    }

    /// Drops the path MTUs that have expired at `now`, and returns their addresses.
    pub fn expire(&mut self, now: u64) -> Vec<IpAddr> {
        self.entries
            .extract_if(.., |_, entry| entry.until <= now)
            .map(|(address, _)| address)
            .collect()
    }

    /// When the next path MTU expires, in nanoseconds since boot.
    pub fn next_expiry(&self) -> Option<u64> {
        self.entries.values().map(|entry| entry.until).min()
    }

    /// The records to write for the next daemon and for `sluice status`: those that differ from
    /// `present`, the content of the map.
    pub fn changed_records(
        &self,
        backends: &BTreeMap<u16, HaveBackend>,
        present: &[PathMtuRecord],
    ) -> Vec<(u32, PathMtuRecord)> {
        let mut changed = Vec::new();
        for (at, address, epoch) in next_hop_indexes(backends) {
            let record = match self.entries.get(&address) {
                Some(entry) => PathMtuRecord { until: entry.until, mtu: entry.mtu, epoch },
                None => PathMtuRecord::NONE,
            };
            if present.get(at as usize) != Some(&record) {
                changed.push((at, record));
            }
        }
        changed
    }
}

/// The path MTU in a record, for a backend with this epoch; `None` if it has expired at `now` or
/// belongs to an earlier backend at this index.
pub fn valid_path_mtu(record: &PathMtuRecord, epoch: u32, now: u64) -> Option<PathMtu> {
    let counts = record.mtu != 0 && record.epoch == epoch && record.until > now;
    counts.then_some(PathMtu { mtu: record.mtu, until: record.until })
}

/// For each address of the backends in use: its index in `NEXT_HOPS` and `PATH_MTUS`, and the
/// backend's epoch.
fn next_hop_indexes(
    backends: &BTreeMap<u16, HaveBackend>,
) -> impl Iterator<Item = (u32, IpAddr, u32)> {
    let used = backends.iter().filter(|(_, backend)| backend.name.is_some());
    used.flat_map(|(index, backend)| {
        let addresses = [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)];
        let has = addresses.into_iter().filter(|(_, address)| !address.is_none());
        has.map(|(family, address)| (NextHop::index(*index, family), address.into(), backend.epoch))
    })
}

/// Whether this is a source of outer headers.
fn is_underlay_source(source: IpAddr, settings: &Settings) -> bool {
    let (own, bits) = settings.outer_source(Family::of(source));
    let fixed = |address: Address| {
        let [first, second, third, last] = address.words();
        [first, second, third, last & !bits]
    };
    !own.is_none() && fixed(source.into()) == fixed(own)
}

/// The MTU at which a packet of the minimum MTU of a family fits with the quoted outer headers.
/// IPv6 has no link below 1280 bytes (RFC 8200 section 5).
fn min_mtu(error: &TooBigError, inner: Family) -> u32 {
    let carried = inner.min_mtu() + if error.udp.is_some() { 8 } else { 0 };
    match Family::of(error.destination) {
        Family::V4 => carried + 20,
        Family::V6 => (carried + 40).max(Family::V6.min_mtu()),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! MTUs that routers between balancer and backends have told.
//!
//! A router on the way to a backend whose next link is too small for an encapsulated packet drops
//! it, and tells the source of the outer header: this host. Such an error lowers what `NEXT_HOPS`
//! says of the backend, so that clients are told what fits. As anybody can forge errors, one counts
//! only when it quotes a packet that could be ours, and never lowers an MTU below what clients can
//! be told of. After [`LIFETIME`] it is forgotten, and the next large packet finds out anew; a
//! changed way to the backend forgets it at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use sluice_control::have::HaveBackend;
use sluice_datapath::abi::{Features, NextHop, PATH_MTU_ERRORS, PathMtuRecord, Settings};
use sluice_datapath::{Address, Family};

use crate::kernel::routing::path::BackendPath;

mod error;
mod socket;

pub use error::{Malformed, TooBig};
pub use socket::{Heard, Listener};

/// How long an MTU counts: as long as Linux believes one (`net.ipv4.route.mtu_expires`).
pub const LIFETIME: Duration = Duration::from_secs(600);

/// How long nothing further lowers an MTU that was lowered: one packet finds one link, and the way
/// has few that are ever smaller.
const RESTS: Duration = Duration::from_secs(1);

/// What became of an error about an encapsulated packet.
///
/// The number is the counter's index in `PATH_MTU_ERRORS`; none is ever used for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It lowered the MTU towards a backend.
    Lowered = 0,
    /// It tells what is known already.
    Known = 1,
    /// It cannot be read.
    Malformed = 2,
    /// It quotes a packet from another source.
    OtherSource = 3,
    /// It quotes a packet to somewhere else.
    OtherDestination = 4,
    /// It quotes a packet that the balancer cannot have sent.
    NeverSent = 5,
    /// It tells no MTU.
    NoMtu = 6,
    /// It tells an MTU with which clients can do nothing.
    TooSmall = 7,
    /// It comes too soon after another one.
    TooOften = 8,
}

impl Outcome {
    /// All of them, by index.
    pub const ALL: [Self; 9] = [
        Self::Lowered,
        Self::Known,
        Self::Malformed,
        Self::OtherSource,
        Self::OtherDestination,
        Self::NeverSent,
        Self::NoMtu,
        Self::TooSmall,
        Self::TooOften,
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
        }
    }

    /// Whether the error was believed.
    pub const fn is_accepted(self) -> bool {
        matches!(self, Self::Lowered | Self::Known)
    }

    /// What happened, and whether that is normal.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Lowered => {
                "The MTU towards a backend was lowered to what a router tells. Raise the MTU of its link."
            }
            Self::Known => {
                "The MTU was as low already. Normal: packets that were under way when it was lowered, or a route that says the same."
            }
            Self::Malformed => "The error is cut short, or its checksum is wrong. Not normal.",
            Self::OtherSource => {
                "The quoted packet is not from this balancer's underlay address. Normal beside other tunnels; else forged."
            }
            Self::OtherDestination => {
                "The quoted packet is to no backend. Normal beside other tunnels, or after a backend was removed; else forged."
            }
            Self::NeverSent => {
                "The quoted packet would have fitted, or could have been cut. Not normal: a broken router, or forged."
            }
            Self::NoMtu => {
                "The router tells no MTU. Not normal: an old router; set the MTU on the route by hand."
            }
            Self::TooSmall => {
                "The MTU is too small for what every host may send. Not normal: such a link cannot be used; or forged."
            }
            Self::TooOften => {
                "The MTU was lowered less than a second ago. Normal when several links are too small."
            }
        }
    }
}

const _: () = assert!(Outcome::ALL.len() <= PATH_MTU_ERRORS as usize);

/// An MTU that a router has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// Largest IP packet, outer header included, in bytes.
    pub mtu: u32,
    /// When it expires: nanoseconds since boot.
    pub until: u64,
}

/// The MTUs that routers have told, by the backend's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMtus {
    told: BTreeMap<IpAddr, PathMtu>,
}

impl PathMtus {
    /// Takes over what an earlier daemon wrote down of the backends that are in the maps, as far as
    /// it has not expired.
    pub fn restored(
        backends: &BTreeMap<u16, HaveBackend>,
        records: &[PathMtuRecord],
        now: u64,
    ) -> Self {
        let mut told = BTreeMap::new();
        for (at, address, epoch) in places(backends) {
            if let Some(path_mtu) =
                records.get(at as usize).and_then(|record| counting(record, epoch, now))
            {
                told.insert(address, path_mtu);
            }
        }
        Self { told }
    }

    /// Judges an error that was heard at `now` (nanoseconds since boot), and does what it asks for
    /// if it is believed.
    ///
    /// `settings` has the sources of outer headers, `way` leads to the quoted packet's destination,
    /// if that is a backend's.
    pub fn hear(
        &mut self,
        error: &TooBig,
        settings: &Settings,
        way: Option<BackendPath>,
        now: u64,
    ) -> Outcome {
        if !is_own(error.source, settings) {
            return Outcome::OtherSource;
        }
        if error.port.is_some_and(|port| {
            !settings.features.has(Features::GUE) || port != settings.gue_port.number()
        }) {
            return Outcome::NeverSent;
        }
        let Some(way) = way.filter(|way| way.next_hop.interface != 0) else {
            return Outcome::OtherDestination;
        };
        if error.mtu == 0 {
            return Outcome::NoMtu;
        }
        // It may be longer than any that was sent: routers merge packets, too (GRO), and quote what
        // they merged.
        if !error.uncut || error.length <= error.mtu {
            return Outcome::NeverSent;
        }
        if error.mtu < least(error) {
            return Outcome::TooSmall;
        }
        if error.mtu >= u32::from(self.limit(error.destination, way.next_hop).mtu) {
            return Outcome::Known;
        }
        let until = now.saturating_add(nanoseconds(LIFETIME));
        let rests = nanoseconds(LIFETIME) - nanoseconds(RESTS);
        if self
            .told
            .get(&error.destination)
            .is_some_and(|told| told.until > now.saturating_add(rests))
        {
            return Outcome::TooOften;
        }
        self.told.insert(error.destination, PathMtu { mtu: error.mtu, until });
        Outcome::Lowered
    }

    /// The next hop towards an address, with the MTU that a router has told where that is smaller.
    #[must_use]
    pub fn limit(&self, address: IpAddr, next_hop: NextHop) -> NextHop {
        match self.told.get(&address) {
            Some(told) if next_hop.interface != 0 => NextHop {
                mtu: next_hop.mtu.min(u16::try_from(told.mtu).unwrap_or(u16::MAX)),
                ..next_hop
            },
            _ => next_hop,
        }
    }

    /// Forgets what `still` is false for: the way there is another one.
    pub fn keep(&mut self, still: impl Fn(IpAddr) -> bool) {
        self.told.retain(|address, _| still(*address));
    }

    /// Forgets what has expired at `now`, and tells of which addresses.
    pub fn expire(&mut self, now: u64) -> Vec<IpAddr> {
        self.told.extract_if(.., |_, told| told.until <= now).map(|(address, _)| address).collect()
    }

    /// When the next one expires: nanoseconds since boot.
    pub fn next_expiry(&self) -> Option<u64> {
        self.told.values().map(|told| told.until).min()
    }

    /// What is to be written down for the next daemon, and for whoever looks: what differs from
    /// `present`, which is what the map holds.
    pub fn records(
        &self,
        backends: &BTreeMap<u16, HaveBackend>,
        present: &[PathMtuRecord],
    ) -> Vec<(u32, PathMtuRecord)> {
        let mut changed = Vec::new();
        for (at, address, epoch) in places(backends) {
            let record = match self.told.get(&address) {
                Some(told) => PathMtuRecord { until: told.until, mtu: told.mtu, epoch },
                None => PathMtuRecord::NONE,
            };
            if present.get(at as usize) != Some(&record) {
                changed.push((at, record));
            }
        }
        changed
    }
}

/// What a record says of a backend that has this epoch; nothing when it has expired at `now`,
/// or is of a backend before it.
pub fn counting(record: &PathMtuRecord, epoch: u32, now: u64) -> Option<PathMtu> {
    let counts = record.mtu != 0 && record.epoch == epoch && record.until > now;
    counts.then_some(PathMtu { mtu: record.mtu, until: record.until })
}

/// Each address of the backends that are in use: its place in `NEXT_HOPS` and `PATH_MTUS`, and the
/// backend's epoch.
fn places(backends: &BTreeMap<u16, HaveBackend>) -> impl Iterator<Item = (u32, IpAddr, u32)> {
    let used = backends.iter().filter(|(_, backend)| backend.name.is_some());
    used.flat_map(|(index, backend)| {
        let addresses = [(Family::V4, backend.entry.v4), (Family::V6, backend.entry.v6)];
        let has = addresses.into_iter().filter(|(_, address)| !address.is_none());
        has.map(|(family, address)| (NextHop::index(*index, family), address.into(), backend.epoch))
    })
}

/// Whether outer headers have this source.
fn is_own(source: IpAddr, settings: &Settings) -> bool {
    let (own, bits) = match source {
        IpAddr::V4(_) => (settings.source_v4, settings.source_bits_v4),
        IpAddr::V6(_) => (settings.source_v6, settings.source_bits_v6),
    };
    let fixed = |address: Address| {
        let [first, second, third, last] = address.words();
        [first, second, third, last & !bits]
    };
    !own.is_none() && fixed(source.into()) == fixed(own)
}

/// The least MTU that helps a packet such as the quoted one carries: every host may send packets of
/// the smallest size that it can be told, and with its outer header that has to fit. IPv6 has no
/// link below 1280 bytes. What nobody has seen may be IPv6.
fn least(error: &TooBig) -> u32 {
    let carried =
        error.inner.unwrap_or(Family::V6).min_mtu() + if error.port.is_some() { 8 } else { 0 };
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

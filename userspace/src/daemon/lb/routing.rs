//! The daemon's reactions to ICMP errors and changes of routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_control::apply;
use sluice_datapath::abi::maps::balancer;
use tracing::{info, warn};

use super::{LbDaemon, Lookups, find_next_hops};
use crate::clock;
use crate::error::CliError;
use crate::kernel::bpf::LiveSelection;
use crate::kernel::netlink::HostChanges;
use crate::kernel::routing::next_hops::NextHops;
use crate::kernel::routing::path_mtu::{
    Evidence, LIFETIME, Malformed, PathError, PathErrorOutcome,
};
use crate::notice::{Notice, Severity};

impl LbDaemon {
    /// Evaluates ICMP errors, and lowers the path MTUs that they justify.
    pub(super) fn take_path_errors(&mut self, reports: &[PathError]) {
        let mut counts = BTreeMap::new();
        for PathError { from, error } in reports {
            let outcome = match error {
                Err(Malformed) => PathErrorOutcome::Malformed,
                Ok(error) => {
                    let address = error.destination;
                    let path = self.next_hops.path(address);
                    let outcome = if self.is_path_mtu_router(*from) {
                        let maps = LiveSelection { maps: &self.maps, settings: &self.settings };
                        self.path_mtus.path_mtus.take_error(
                            error,
                            &self.settings,
                            path,
                            Evidence::of(error, &self.settings, &maps),
                            self.config.config.underlay().min_path_mtu,
                            clock::now(),
                        )
                    } else {
                        PathErrorOutcome::OtherRouter
                    };
                    match outcome {
                        PathErrorOutcome::Lowered if self.path_mtus.is_new(address, outcome) => {
                            warn!(
                                %address,
                                router = %from,
                                mtu = error.mtu,
                                lifetime_minutes = LIFETIME.as_secs() / 60,
                                "path MTU to a backend lowered by an ICMP error; clients get \
                                 \"packet \
                                 too big\"; raise the MTU of that link"
                            )
                        }
                        PathErrorOutcome::TooSmall if self.path_mtus.is_new(address, outcome) => {
                            warn!(
                                %address,
                                router = %from,
                                mtu = error.mtu,
                                "path MTU to a backend is less than clients can use; larger packets \
                                 are lost there; raise the MTU of that link"
                            )
                        }
                        _ => {}
                    }
                    outcome
                }
            };
            *counts.entry(outcome).or_insert(0) += 1;
        }
        self.pending.next_hops |= counts.contains_key(&PathErrorOutcome::Lowered);
        if let Err(error) = self.count_path_errors(&counts) {
            warn!(%error, "cannot count ICMP errors about the paths to backends");
        }
    }

    /// Whether errors from this address are accepted.
    fn is_path_mtu_router(&self, from: IpAddr) -> bool {
        let routers = self.config.config.path_mtu_routers();
        routers.is_empty() || routers.iter().any(|router| router.contains(&from))
    }

    fn count_path_errors(
        &mut self,
        counts: &BTreeMap<PathErrorOutcome, u64>,
    ) -> Result<(), CliError> {
        let present = self.maps.elements(balancer::PATH_MTU_ERRORS).map_err(CliError::operation)?;
        let counted = |outcome: &PathErrorOutcome| {
            present.get(outcome.index() as usize).copied().unwrap_or(0)
        };
        let counts: Vec<_> = counts
            .iter()
            .map(|(outcome, count)| (outcome.index(), counted(outcome) + count))
            .collect();
        self.maps.write(balancer::PATH_MTU_ERRORS, &counts).map_err(CliError::operation)
    }

    /// Notes which next hops changes of the host may change: all after a change of links, rules or
    /// an underlay address, else those to backends in the destinations of changed routes.
    pub(super) fn note_route_changes(&mut self, changes: &HostChanges) {
        let underlay = self.config.config.underlay();
        let is_own = |address: &IpAddr| underlay.address_for(*address) == Some(*address);
        if changes.links || changes.addresses.iter().any(is_own) {
            self.lookups = Lookups::All;
        }
        if let Lookups::Some(addresses) = &mut self.lookups {
            addresses.extend(changes.routes.iter().flat_map(|route| self.next_hops.within(*route)));
        }
    }

    /// Looks up the routes that are out of date.
    pub(super) async fn look_up_routes(&mut self) {
        let netlink = self.host.netlink();
        let found = match &self.lookups {
            Lookups::Some(addresses) if addresses.is_empty() => return,
            Lookups::All => find_next_hops(netlink, &self.config).await,
            Lookups::Some(addresses) => {
                let (underlay, overhead) = (self.config.config.underlay(), self.config.overhead());
                // A warning depends on the other address of the backend.
                let is_due = |backend: &Vec<IpAddr>| backend.iter().any(|a| addresses.contains(a));
                let backends = self.config.backend_addresses().filter(is_due);
                NextHops::find(netlink, underlay, overhead, backends)
                    .await
                    .map(|some| self.next_hops.updated(some))
                    .map_err(CliError::operation)
            }
        };
        self.lookups = Lookups::default();
        match found {
            Ok(found) if found == self.next_hops => {}
            Ok(found) => {
                self.take_next_hops(found);
                self.pending.next_hops = true;
            }
            Err(error) => {
                warn!(%error, "cannot look up routes to backends; the last known ones stay in use");
            }
        }
    }

    /// Takes new next hops. A path MTU stays only if the path is the same.
    pub(super) fn take_next_hops(&mut self, found: NextHops) {
        let is_same = |address| found.path(address) == self.next_hops.path(address);
        self.path_mtus.path_mtus.retain(is_same);
        self.path_mtus.warned_paths.retain(|(address, _)| is_same(*address));
        self.next_hops = found;
    }

    /// Writes the next hops that differ, and the records of path MTUs.
    pub(super) fn put_next_hops(&mut self) -> Result<(), CliError> {
        let backends = apply::backends(&self.maps).map_err(CliError::operation)?;
        let written = self.path_mtus.write_next_hops(&mut self.maps, &self.next_hops, &backends)?;
        self.path_mtus.write_records(&mut self.maps, &backends)?;
        if written > 0 {
            info!(next_hops = written, "next hops written");
        }
        Ok(())
    }

    /// Logs the notices about next hops that are new, those with equal texts as one.
    pub(super) fn log_next_hop_notices(&mut self) {
        let new: BTreeSet<_> = self.next_hops.grouped_notices().collect();
        for Notice { severity, text } in new.difference(&self.noticed) {
            match severity {
                Severity::Note => info!("{text}"),
                Severity::Warning | Severity::Problem => warn!("{text}"),
            }
        }
        self.noticed = new;
    }
}

//! Next hops and path MTUs of backends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;

use sluice_control::apply;
use sluice_control::config::Underlay;
use sluice_control::have::HaveBackend;
use sluice_datapath::abi::NextHop;
use sluice_datapath::abi::maps::balancer;
use tracing::{debug, info, warn};

use super::{LbDaemon, find_next_hops};
use crate::clock;
use crate::daemon::input::InputSender;
use crate::daemon::sources::{self, Source};
use crate::error::CliError;
use crate::kernel::bpf::BalancerMaps;
use crate::kernel::routing::next_hops::{self, NextHops};
use crate::kernel::routing::path_mtu::{
    LIFETIME, Listener, Malformed, PathError, PathErrorOutcome, PathMtus,
};

/// Warnings about backend addresses that are logged one by one. Further ones are only counted.
const MAX_WARNINGS: usize = 20;

/// Path MTUs, and the sources of inputs about them.
pub(super) struct PathMtuTracker {
    path_mtus: PathMtus,
    /// Addresses and outcomes that were logged.
    warned_paths: BTreeSet<(IpAddr, PathErrorOutcome)>,
    inputs: InputSender,
    listener: Option<PathErrorSource>,
    expiry: Option<(u64, Source)>,
}

/// The sockets for ICMP errors, and what they receive.
struct PathErrorSource {
    v4: bool,
    v6: bool,
    gue_port: u16,
    /// Whether all sockets could be opened.
    is_complete: bool,
    _source: Source,
}

impl PathMtuTracker {
    pub(super) fn new(inputs: InputSender) -> Self {
        Self {
            path_mtus: PathMtus::default(),
            warned_paths: BTreeSet::new(),
            inputs,
            listener: None,
            expiry: None,
        }
    }

    /// Restores the path MTUs that an earlier daemon recorded.
    pub(super) fn restore(
        &mut self,
        maps: &BalancerMaps,
        backends: &BTreeMap<u16, HaveBackend>,
    ) -> Result<(), CliError> {
        let records = maps.elements(balancer::PATH_MTUS).map_err(CliError::operation)?;
        self.path_mtus = PathMtus::restored(backends, &records, clock::now());
        Ok(())
    }

    /// Receives ICMP errors about the families of outer headers. Without the sockets, everything
    /// else works.
    pub(super) fn listen(&mut self, underlay: Underlay) {
        let (v4, v6, gue_port) = (underlay.v4.is_some(), underlay.v6.is_some(), underlay.gue_port);
        let is_same = |present: &PathErrorSource| {
            present.is_complete && (present.v4, present.v6, present.gue_port) == (v4, v6, gue_port)
        };
        if self.listener.as_ref().is_some_and(is_same) {
            return;
        }
        self.listener = None;
        let mut listener = Listener::default();
        let refused = listener.listen(v4, v6, gue_port);
        for (family, error) in &refused {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "this process lacks CAP_NET_RAW; run it as root, or give its service CAP_NET_RAW (AmbientCapabilities)".to_owned()
                }
                _ => error.to_string(),
            };
            warn!(
                "cannot receive ICMP errors about the paths to backends ({family}): {remedy}; \
                 until the next reload, all links must support the MTU of this host's routes"
            );
        }
        self.listener = Some(PathErrorSource {
            v4,
            v6,
            gue_port,
            is_complete: refused.is_empty(),
            _source: sources::path_errors(listener, self.inputs.clone()),
        });
    }

    /// The next hop to a backend's address, with the path MTU.
    pub(super) fn next_hop(&self, next_hops: &NextHops, address: IpAddr) -> NextHop {
        next_hops.towards(address, &self.path_mtus)
    }

    /// Writes the next hops that differ; returns their number.
    pub(super) fn write_next_hops(
        &self,
        maps: &mut BalancerMaps,
        next_hops: &NextHops,
        backends: &BTreeMap<u16, HaveBackend>,
    ) -> Result<usize, CliError> {
        next_hops.refresh(maps, backends, &self.path_mtus).map_err(CliError::operation)
    }

    /// Records the path MTUs for the next daemon and for `status`.
    fn write_records(
        &self,
        maps: &mut BalancerMaps,
        backends: &BTreeMap<u16, HaveBackend>,
    ) -> Result<(), CliError> {
        let present = maps.elements(balancer::PATH_MTUS).map_err(CliError::operation)?;
        maps.write(balancer::PATH_MTUS, &self.path_mtus.changed_records(backends, &present))
            .map_err(CliError::operation)
    }

    /// Drops the path MTUs that have expired.
    pub(super) fn expire(&mut self) {
        for address in self.path_mtus.expire(clock::now()) {
            debug!(%address, "path MTU expired");
        }
    }

    /// Sets the timer of the earliest expiry.
    pub(super) fn schedule_expiry(&mut self) {
        let next = self.path_mtus.next_expiry();
        if next != self.expiry.as_ref().map(|(at, _)| *at) {
            self.expiry = next.map(|at| (at, sources::path_mtu_expiry(at, self.inputs.clone())));
        }
    }

    /// Whether an outcome for an address is to be logged: once, and not after [`MAX_WARNINGS`].
    fn is_new(&mut self, address: IpAddr, outcome: PathErrorOutcome) -> bool {
        let warned = self.warned_paths.len();
        if warned > MAX_WARNINGS || !self.warned_paths.insert((address, outcome)) {
            return false;
        }
        if warned == MAX_WARNINGS {
            warn!("more backend addresses have a smaller path MTU; see `sluice status`");
        }
        warned < MAX_WARNINGS
    }
}

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
                    let now = clock::now();
                    let outcome =
                        self.path_mtus.path_mtus.take_error(error, &self.settings, path, now);
                    match outcome {
                        PathErrorOutcome::Lowered if self.path_mtus.is_new(address, outcome) => {
                            warn!(
                                %address,
                                router = %from,
                                mtu = error.mtu,
                                lifetime_minutes = LIFETIME.as_secs() / 60,
                                "path MTU to a backend lowered by an ICMP error; clients get \"packet \
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

    /// Looks up the routes to all backends.
    pub(super) async fn look_up_routes(&mut self) {
        let mode = next_hops::Source::MayBeMissing;
        match find_next_hops(self.host.netlink(), &self.config, mode).await {
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

    /// Logs each warning about a next hop once for as long as it lasts.
    pub(super) fn warn_of_next_hops(&mut self) {
        let is_new =
            |(address, warning): &(&IpAddr, &String)| self.warned.get(*address) != Some(*warning);
        let mut new = self.next_hops.warnings.iter().filter(is_new);
        for (address, warning) in new.by_ref().take(MAX_WARNINGS) {
            warn!("backend address {address}: {warning}");
        }
        let more = new.count();
        if more > 0 {
            warn!("{more} more backend addresses have warnings; see `sluice status`");
        }
        self.warned.clone_from(&self.next_hops.warnings);
    }
}

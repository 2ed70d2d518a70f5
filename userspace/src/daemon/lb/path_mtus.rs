//! Path MTUs of backends, and the sources of inputs about them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;

use sluice_control::config::Underlay;
use sluice_control::have::HaveBackend;
use sluice_datapath::abi::NextHop;
use sluice_datapath::abi::maps::balancer;
use tracing::{debug, warn};

use crate::clock;
use crate::daemon::input::InputSender;
use crate::daemon::sources::{self, SourceTask};
use crate::error::CliError;
use crate::kernel::bpf::BalancerMaps;
use crate::kernel::routing::next_hops::NextHops;
use crate::kernel::routing::path_mtu::{Listener, PathErrorOutcome, PathMtus};

/// Warnings about backend addresses that are logged one by one. Further ones are only counted.
const MAX_WARNINGS: usize = 20;

/// Path MTUs, and the sources of inputs about them.
pub(super) struct PathMtuTracker {
    pub(super) path_mtus: PathMtus,
    /// Addresses and outcomes that were logged.
    pub(super) warned_paths: BTreeSet<(IpAddr, PathErrorOutcome)>,
    inputs: InputSender,
    listener: Option<PathErrorSource>,
    expiry: Option<(u64, SourceTask)>,
}

/// The sockets for ICMP errors, and what they receive.
struct PathErrorSource {
    v4: bool,
    v6: bool,
    gue_port: u16,
    /// Whether all sockets could be opened.
    is_complete: bool,
    _source: SourceTask,
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
                    "this process lacks CAP_NET_RAW; run it as root, or give its service \
                     CAP_NET_RAW (AmbientCapabilities)"
                        .to_owned()
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
    pub(super) fn write_records(
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
    pub(super) fn is_new(&mut self, address: IpAddr, outcome: PathErrorOutcome) -> bool {
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

//! MTUs that routers on the way to backends tell, in the running balancer.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use sluice_control::have::HaveBackend;
use tracing::{debug, warn};

use super::{Balancer, CliError, apply, clock};
use crate::kernel::routing::next_hops::NextHops;
use crate::kernel::routing::path_mtu::{Heard, LIFETIME, Malformed, Outcome, PathMtus};

/// So many backend addresses are said to have a smaller MTU, one by one.
const MAX_WARNINGS: usize = 20;

/// Waits until an MTU expires; for ever if there is none.
pub(super) async fn expiry(next: Option<u64>) {
    match next {
        Some(next) => {
            tokio::time::sleep(Duration::from_nanos(next.saturating_sub(clock::now()))).await
        }
        None => std::future::pending().await,
    }
}

impl Balancer {
    /// Takes over what an earlier daemon has heard.
    pub(super) fn restore_path_mtus(
        &mut self,
        backends: &BTreeMap<u16, HaveBackend>,
    ) -> Result<(), CliError> {
        let records = self.maps.path_mtus().map_err(CliError::operation)?;
        self.path_mtus = PathMtus::restored(backends, &records, clock::now());
        Ok(())
    }

    /// Listens for errors about what is sent in the families that outer headers have. Without that,
    /// everything else works.
    pub(super) fn listen(&mut self) {
        let underlay = self.input.config.underlay();
        for (family, error) in
            self.listener.listen(underlay.v4.is_some(), underlay.v6.is_some(), underlay.gue_port)
        {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "this process lacks CAP_NET_RAW; run it as root, or give its service CAP_NET_RAW (AmbientCapabilities)".to_owned()
                }
                _ => error.to_string(),
            };
            warn!(
                "cannot hear of smaller MTUs on the way to backends ({family}): {remedy}; until the next reload every link there must \
                 carry what the routes of this host say"
            );
        }
    }

    /// Judges errors, and does what the believed ones ask for.
    pub(super) fn hear(&mut self, heard: &[Heard]) {
        let mut counts = BTreeMap::new();
        for Heard { from, error } in heard {
            let outcome = match error {
                Err(Malformed) => Outcome::Malformed,
                Ok(error) => {
                    let way = self.next_hops.way(error.destination);
                    let outcome = self.path_mtus.hear(error, &self.settings, way, clock::now());
                    let address = error.destination;
                    let mtu = error.mtu;
                    match outcome {
                        Outcome::Lowered if self.is_new(address, outcome) => warn!(
                            "backend address {address}: {from} says that packets of more than {mtu} bytes do not fit on the way to it, so \
                             this counts for {} minutes at a time, and clients are told; raise the MTU of that link",
                            LIFETIME.as_secs() / 60
                        ),
                        Outcome::TooSmall if self.is_new(address, outcome) => warn!(
                            "backend address {address}: {from} says that packets of more than {mtu} bytes do not fit on the way to it, which \
                             is less than clients can be told of: their larger packets are lost there; raise the MTU of that link"
                        ),
                        _ => {}
                    }
                    outcome
                }
            };
            *counts.entry(outcome).or_insert(0) += 1;
        }
        if counts.contains_key(&Outcome::Lowered) {
            self.put_path_mtus();
        }
        if let Err(failure) = self.count(&counts) {
            warn!("cannot count errors about encapsulated packets: {failure}");
        }
    }

    /// Whether this was not said of a backend's address yet; beyond a number of them, nothing is
    /// said any more.
    fn is_new(&mut self, address: IpAddr, outcome: Outcome) -> bool {
        let warned = self.warned_paths.len();
        if warned > MAX_WARNINGS || !self.warned_paths.insert((address, outcome)) {
            return false;
        }
        if warned == MAX_WARNINGS {
            warn!(
                "more backend addresses have a smaller MTU on the way to them; `sluice status` shows all"
            );
        }
        warned < MAX_WARNINGS
    }

    fn count(&mut self, counts: &BTreeMap<Outcome, u64>) -> Result<(), CliError> {
        let present = self.maps.path_errors().map_err(CliError::operation)?;
        let counted =
            |outcome: &Outcome| present.get(outcome.index() as usize).copied().unwrap_or(0);
        let counts: Vec<_> = counts
            .iter()
            .map(|(outcome, count)| (outcome.index(), counted(outcome) + count))
            .collect();
        self.maps.set_path_errors(&counts).map_err(CliError::operation)
    }

    /// Goes back to the MTUs of routes where what routers told has expired.
    pub(super) fn expire_path_mtus(&mut self) {
        for address in self.path_mtus.expire(clock::now()) {
            debug!("backend address {address}: the smaller MTU has expired");
        }
        self.put_path_mtus();
    }

    /// Takes the ways to backends that were found now. What routers told of another way counts no
    /// more.
    pub(super) fn take_next_hops(&mut self, found: NextHops) {
        let same = |address| found.way(address) == self.next_hops.way(address);
        self.path_mtus.keep(same);
        self.warned_paths.retain(|(address, _)| same(*address));
        self.next_hops = found;
    }

    fn put_path_mtus(&mut self) {
        if let Err(failure) = self.put_next_hops() {
            warn!("cannot write MTUs towards backends; trying again: {failure}");
        }
    }

    /// Writes the next hops that differ, with what is to be remembered of them; how many. What
    /// fails is tried again with everything else that is not as it should be.
    pub(super) fn put_next_hops(&mut self) -> Result<usize, CliError> {
        self.write_next_hops().inspect_err(|_| self.complete = false)
    }

    fn write_next_hops(&mut self) -> Result<usize, CliError> {
        let backends = apply::backends(&self.maps).map_err(CliError::operation)?;
        let written = self
            .next_hops
            .refresh(&mut self.maps, &backends, &self.path_mtus)
            .map_err(CliError::operation)?;
        self.write_down_path_mtus(&backends)?;
        Ok(written)
    }

    /// Writes down what routers told, for the next daemon and for `status`.
    pub(super) fn write_down_path_mtus(
        &mut self,
        backends: &BTreeMap<u16, HaveBackend>,
    ) -> Result<(), CliError> {
        let present = self.maps.path_mtus().map_err(CliError::operation)?;
        self.maps
            .set_path_mtus(&self.path_mtus.records(backends, &present))
            .map_err(CliError::operation)
    }
}

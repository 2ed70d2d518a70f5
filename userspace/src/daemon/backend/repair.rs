//! Restores the backend's host where other programs have changed it.

use tracing::{info, warn};

use super::converge::setup;
use super::{BackendDaemon, presence};
use crate::clock::REFRESH;
use crate::error::CliError;
use crate::kernel::bpf;

impl BackendDaemon {
    /// Restores addresses, routes, tunnel devices, sysctls and filters, and follows the MTU of
    /// interfaces. An error is logged once, and the next call tries again.
    ///
    /// `default_routes`: whether default routes may have changed, which only a listing of all
    /// routes shows.
    pub(super) async fn repair(&mut self, default_routes: bool) {
        let problem = match self.repair_host().await {
            Ok(problem) => problem,
            Err(error) => Some(error.to_string()),
        };
        self.note_problem(problem);
        self.watch_interfaces(default_routes).await;
    }

    /// Restores sysctls, whose changes the kernel does not report.
    pub(super) fn repair_sysctls(&mut self) {
        let restricted = match self.assignment.vips.iter().any(|vip| vip.addr().is_ipv4()) {
            true => &self.assignment.interfaces[..],
            false => &[],
        };
        match self.host.repair_sysctls(restricted, &self.loose_rp_filter) {
            Ok(changed) => self.host.count_repairs(changed),
            Err(error) => self.note_problem(Some(error.to_string())),
        }
    }

    /// Restores everything but the filters. Returns what cannot be restored.
    async fn repair_host(&mut self) -> Result<Option<String>, CliError> {
        // Devices that the kernel does not have are not tried again.
        let setup = setup(&self.assignment, self.by_device);
        let report = self.host.repair_backend(&setup).await.map_err(CliError::operation)?;
        let present = presence::present(&self.assignment, self.host.netlink()).await?;
        self.host.count_repairs(&report.changed);
        let by_program = self.decapsulated_by_program(&report);
        self.loose_rp_filter = report.loose_rp_filter;
        if by_program != self.by_program {
            self.load(&by_program).await?;
        }
        Ok(present.problem.or(report.problem))
    }

    /// Logs what cannot be restored, once for as long as it lasts.
    pub(super) fn note_problem(&mut self, problem: Option<String>) {
        match &problem {
            Some(problem) if self.problem.as_ref() != Some(problem) => warn!(
                %problem,
                retry_seconds = REFRESH.as_secs(),
                "cannot restore host state; trying again periodically and when the host changes"
            ),
            None if self.problem.is_some() => info!("host state restored after an error"),
            _ => {}
        }
        self.problem = problem;
    }

    /// Attaches again where a filter is missing, attaches where replies leave by a new default
    /// route, and follows the MTU of interfaces. The program that clamps stays attached where a
    /// default route has gone, because it may come back; the next reload detaches it.
    async fn watch_interfaces(&mut self, default_routes: bool) {
        if default_routes && let Err(error) = self.find_reply_interfaces().await {
            warn!(
                %error,
                retry_seconds = REFRESH.as_secs(),
                "cannot look up default routes; trying again periodically"
            );
        }
        let Some((programs, _)) = &self.loaded else { return };
        if self.filters_ingress() {
            let program = programs.get(bpf::DECAPSULATE);
            self.decapsulating.watch(&mut self.host, &self.assignment.interfaces, program).await;
        }
        if self.assignment.clamping.is_some() {
            let program = programs.get(bpf::CLAMP);
            self.clamping.watch(&mut self.host, &self.reply_interfaces, program).await;
            if let Err(error) = self.set_largest_segments().await {
                warn!(
                    %error,
                    retry_seconds = REFRESH.as_secs(),
                    "cannot follow the MTU of interfaces; trying again periodically"
                );
            }
        }
    }
}

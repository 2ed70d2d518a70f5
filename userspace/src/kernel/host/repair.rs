//! Repairs: restores host state that another program removes or changes while a daemon runs.

use std::fmt::Display;

use tracing::warn;

use super::{BackendReport, BackendSetup, Host, HostError};
use crate::kernel::host::sysctl::SysctlError;
use crate::kernel::netlink;

/// The largest number of repairs that are logged one by one.
const MAX_LOGGED: usize = 32;

impl Host {
    /// The number of repairs since the daemon started.
    pub fn repairs(&self) -> u64 {
        self.repairs
    }

    /// Logs and counts what was restored. Of many repairs at once, the first are logged one by one.
    pub(crate) fn count_repairs<T: Display>(&mut self, restored: impl IntoIterator<Item = T>) {
        let mut restored = restored.into_iter();
        for state in restored.by_ref().take(MAX_LOGGED) {
            self.repairs += 1;
            warn!(%state, repairs = self.repairs, "restored host state");
        }
        let more = restored.count() as u64;
        if more > 0 {
            self.repairs += more;
            warn!(more, repairs = self.repairs, "restored more host state");
        }
    }

    /// Restores a backend's set-up where another program has changed it.
    ///
    /// Interfaces and addresses of this backend that do not exist are left out, so that the rest is
    /// restored; [`BackendReport::problem`] describes what [`Self::prepare_backend`] would refuse.
    ///
    /// # Errors
    /// [`HostError`], as of [`Self::prepare_backend`].
    pub async fn repair_backend(
        &mut self,
        setup: &BackendSetup<'_>,
    ) -> Result<BackendReport, HostError> {
        let problem = self.check(setup).await.err().map(|error| error.to_string());
        let existing = self.netlink.interfaces().await?;
        let interfaces: Vec<_> = setup
            .interfaces
            .iter()
            .filter(|name| existing.iter().any(|interface| interface.name == **name))
            .cloned()
            .collect();
        let addresses = self.netlink.local_addresses().await?;
        let local: Vec<_> = setup
            .local
            .iter()
            .filter(|local| addresses.iter().any(|(_, address)| address == *local))
            .copied()
            .collect();
        let setup = BackendSetup { interfaces: &interfaces, local: &local, ..*setup };
        let report = self.set_up_backend(&setup).await?;
        Ok(BackendReport { problem, ..report })
    }

    /// Restores the sysctls of a backend's interfaces; returns the changes. Those of an interface
    /// that does not exist are left out.
    ///
    /// # Errors
    /// [`HostError::Sysctl`], [`HostError::ArpForced`], [`HostError::Journal`].
    pub fn repair_sysctls(
        &mut self,
        restricted: &[String],
        loose_rp_filter: &[String],
    ) -> Result<Vec<String>, HostError> {
        let mut changed = Vec::new();
        for interface in restricted {
            existing(self.restrict_arp(interface, &mut changed))?;
        }
        for interface in loose_rp_filter {
            existing(self.loosen_rp_filter(interface, &mut changed))?;
        }
        Ok(changed)
    }
}

/// The result for an interface that exists.
fn existing(result: Result<(), HostError>) -> Result<(), HostError> {
    match result {
        Err(HostError::Sysctl(SysctlError::Missing(_)))
        | Err(HostError::Netlink(netlink::Error::NoInterface { .. })) => Ok(()),
        other => other,
    }
}

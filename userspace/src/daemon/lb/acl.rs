//! Source ACLs and rate limits of a running balancer: when they are put in place, and when removed.
//!
//! The program looks up an ACL if the VIP's options say so, or, for the ACL of all VIPs, if it is
//! loaded with that feature. For a service that is forwarded already, the option is set after the
//! ACL is in place, so that loading millions of prefixes interrupts nothing. A new service has the
//! option from the start, and forwards nothing until its ACL is in place. The option is removed
//! before the ACL.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use sluice_control::apply;
use sluice_control::config::{Config, ServiceConfig};
use sluice_control::desired::Desired;
use sluice_control::have::Have;
use sluice_datapath::abi::maps::balancer;
use sluice_datapath::abi::{AclVerdict, Rate, RateKind, VipOptions};
use tracing::{info, warn};

use super::LbDaemon;
use crate::daemon::acl::{Acl, AclChange, AclScope, LoadedAcl, acl_files};
use crate::error::CliError;
use crate::text;

impl LbDaemon {
    /// Sets the options and features by which ACLs are looked up.
    pub(super) fn mark_acls(
        &self,
        config: &Config,
        have: &Have,
        desired: &mut Desired,
    ) -> Result<(), CliError> {
        desired.global_acl = !config.acl_files().is_empty() && self.has_acl(AclVerdict::GLOBAL)?;
        for (service, wanted) in config.services().iter().zip(&mut desired.services) {
            if service.acl_files().is_empty() {
                continue;
            }
            let present =
                have.services.iter().find(|(_, has)| has.name.as_deref() == Some(service.name()));
            let is_marked = |index| {
                have.vips.values().any(|v| v.index == index && v.options.has(VipOptions::ACL))
            };
            let marked = match present {
                None => true,
                Some((index, _)) => is_marked(*index) || self.has_acl(*index)?,
            };
            wanted.options = wanted.options.with_if(marked, VipOptions::ACL);
        }
        Ok(())
    }

    /// Starts to load the ACLs; the result is an input.
    pub(super) fn start_loading_acls(&mut self) -> Result<(), CliError> {
        self.acls.start(acl_files(&self.config.config)).map_err(start_failed)
    }

    /// Loads the ACLs before the first packet is forwarded, puts them in place, and marks them.
    pub(super) async fn load_acls(&mut self, desired: &mut Desired) -> Result<(), CliError> {
        let files = acl_files(&self.config.config);
        if files.is_empty() {
            return Ok(());
        }
        let loaded = self.acls.load(files).await.map_err(CliError::operation)?;
        if let Some(error) = loaded.iter().find_map(|loaded| loaded.outcome.as_ref().err()) {
            return Err(CliError::operation(anyhow!("{}", text::chain(error.as_ref()))));
        }
        self.put_acls(loaded)?;
        let have = apply::have(&self.maps).map_err(CliError::operation)?;
        self.mark_acls(&self.config.config, &have, desired)
    }

    /// Takes loaded ACLs, and starts the next load if one was requested meanwhile.
    pub(super) fn take_acls(&mut self, loaded: Vec<LoadedAcl>) -> Result<(), CliError> {
        self.acls.finish();
        let put = self.put_acls(loaded);
        if let Err(error) = self.acls.start_next() {
            self.failed.acls = true;
            put?;
            return Err(start_failed(error));
        }
        let new = put?;
        // New ACLs change options and features.
        self.pending.configuration |= !new.is_empty();
        self.new_acls.extend(new);
        Ok(())
    }

    /// Logs the ACLs that apply from now on.
    pub(super) fn log_new_acls(&mut self) {
        for scope in self.new_acls.drain(..) {
            info!(%scope, "source ACL in force");
        }
    }

    /// Puts loaded ACLs in place, and returns the scopes that had none before.
    fn put_acls(&mut self, loaded: Vec<LoadedAcl>) -> Result<Vec<AclScope>, CliError> {
        let wanted = acl_files(&self.config.config);
        let indexes = self.service_indexes()?;
        let mut put = Vec::new();
        let mut unchanged = Vec::new();
        for LoadedAcl { scope, acl, outcome, took } in loaded {
            let prefixes = acl.as_ref().map_or(0, Acl::prefixes);
            let seconds = took.as_secs_f32();
            match &outcome {
                Ok(AclChange::Unchanged) => {}
                Ok(AclChange::InPlace(changed)) => {
                    info!(%scope, changed, prefixes, seconds, "source ACL changed in place");
                }
                Ok(AclChange::New) => info!(%scope, prefixes, seconds, "source ACL loaded"),
                Err(error) => warn!(
                    %scope,
                    error = text::chain(error.as_ref()),
                    "cannot load source ACL; the one in force is stale until a reload succeeds"
                ),
            }
            self.note_staleness(&scope, outcome.as_ref().err());
            // A reload may have removed the ACL or the service from the configuration.
            let index = acl_index(&scope, &indexes)
                .filter(|_| wanted.iter().any(|(wanted, _)| *wanted == scope));
            if let (Some(index), Some(acl)) = (index, acl) {
                let is_new = matches!(outcome, Ok(AclChange::New)) || !self.has_acl(index)?;
                if is_new { &mut put } else { &mut unchanged }.push((index, scope, acl));
            }
        }
        for (_, scope, acl) in unchanged {
            self.acls.put(scope, acl);
        }
        let tries: Vec<_> = put.iter().map(|(index, _, acl)| (*index, acl.trie())).collect();
        self.maps.replace_acls(&tries).map_err(CliError::operation)?;
        let mut new = Vec::with_capacity(put.len());
        for (_, scope, acl) in put {
            new.push(scope.clone());
            self.acls.put(scope, acl);
        }
        Ok(new)
    }

    /// The services whose source ACL is not in place yet. A new one forwards nothing until then.
    /// Empty if the maps cannot be read.
    pub(super) fn waiting_for_acls(&self) -> Vec<String> {
        let services = self.config.config.services().iter();
        let with_acl: Vec<_> = services.filter(|service| !service.acl_files().is_empty()).collect();
        if with_acl.is_empty() {
            return Vec::new();
        }
        let Ok(indexes) = self.service_indexes() else { return Vec::new() };
        let is_waiting = |service: &&&ServiceConfig| {
            let index = indexes.get(service.name());
            index.is_some_and(|index| self.has_acl(*index).is_ok_and(|has| !has))
        };
        with_acl.iter().filter(is_waiting).map(|service| service.name().to_owned()).collect()
    }

    /// Records whether the ACL of a scope is older than its files.
    fn note_staleness(&mut self, scope: &AclScope, error: Option<&anyhow::Error>) {
        match error {
            Some(error) => {
                self.stale_acls.insert(scope.clone(), text::chain(error.as_ref()));
            }
            None => {
                if self.stale_acls.remove(scope).is_some() {
                    info!(%scope, "source ACL is no longer stale");
                }
            }
        }
    }

    /// Removes the ACLs that no packet is looked up in any more.
    pub(super) fn remove_acls(&mut self) -> Result<(), CliError> {
        let indexes = self.service_indexes()?;
        let wanted = acl_files(&self.config.config);
        self.stale_acls.retain(|scope, _| wanted.iter().any(|(wanted, _)| wanted == scope));
        let keep: Vec<u32> =
            wanted.iter().filter_map(|(scope, _)| acl_index(scope, &indexes)).collect();
        let present = self.maps.acl_indexes().map_err(CliError::operation)?;
        let stale: Vec<u32> =
            present.iter().copied().filter(|index| !keep.contains(index)).collect();
        for index in stale {
            self.maps.remove_acl(index).map_err(CliError::operation)?;
        }
        Ok(())
    }

    /// Writes the rate limits that differ. A new limit starts with full buckets, because the tokens
    /// consumed under another limit may take hours to refill.
    pub(super) fn set_rates(&mut self) -> Result<(), CliError> {
        let indexes = self.service_indexes()?;
        let index = |service: &ServiceConfig| indexes.get(service.name()).copied();
        let services = self.config.config.services().iter();
        let limited: BTreeMap<u32, _> =
            services.filter_map(|service| Some((index(service)?, service.rate_limits()))).collect();
        let mut changed = Vec::new();
        let mut refilled = BTreeSet::new();
        let present = self.maps.elements(balancer::RATES).map_err(CliError::operation)?;
        for (service, present) in (0..).zip(present.chunks_exact(RateKind::ALL.len())) {
            for (limit, has) in RateKind::ALL.into_iter().zip(present) {
                // The index of no service has no limit, so that the next service starts without.
                let wanted = limited.get(&service).map_or(Rate::NONE, |rates| rates.rate(limit));
                if *has != wanted {
                    changed.push((Rate::index(service, limit), wanted));
                    refilled.insert(service);
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.maps.write(balancer::RATES, &changed).map_err(CliError::operation)?;
        self.maps.fill_buckets(&refilled).map_err(CliError::operation)
    }

    /// The index of each service, by name.
    fn service_indexes(&self) -> Result<BTreeMap<String, u32>, CliError> {
        let records = self.maps.elements(balancer::SERVICE_RECORDS).map_err(CliError::operation)?;
        let named = (0..).zip(records).filter(|(_, record)| !record.name.as_str().is_empty());
        Ok(named.map(|(index, record)| (record.name.as_str().to_owned(), index)).collect())
    }

    fn has_acl(&self, index: u32) -> Result<bool, CliError> {
        self.maps.has_acl(index).map_err(CliError::operation)
    }
}

/// The index of a scope's ACL; `None` if the service has no index.
fn acl_index(scope: &AclScope, services: &BTreeMap<String, u32>) -> Option<u32> {
    match scope {
        AclScope::All => Some(AclVerdict::GLOBAL),
        AclScope::Service(name) => services.get(name).copied(),
    }
}

fn start_failed(error: std::io::Error) -> CliError {
    CliError::operation(anyhow!("cannot load source ACLs: {error}"))
}

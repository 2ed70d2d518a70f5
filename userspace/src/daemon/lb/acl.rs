//! Lists of sources, and rates, in the running balancer: when packets meet one, and when no longer.
//!
//! A packet meets a list when its service is marked as listed, or the program is loaded with a list
//! for all. For what is forwarded already the mark comes after the list, so that reading millions
//! of prefixes cuts nobody off; a new service is marked from the start, and serves nobody before
//! its list is there. A mark goes before its list does.

use std::collections::{BTreeMap, BTreeSet};

use sluice_control::config::{self, Config};
use sluice_control::desired::Desired;
use sluice_control::have::Have;
use sluice_datapath::abi::{AclVerdict, Rate, RateKind, VipOptions};
use tracing::{info, warn};

use super::{Balancer, CliError, anyhow, apply};
use crate::daemon::acl::{self as acl_files, Change, List, Loaded, Scope};

impl Balancer {
    /// Marks what is to meet its list.
    pub(super) fn mark_listed(
        &self,
        config: &Config,
        have: &Have,
        want: &mut Desired,
    ) -> Result<(), CliError> {
        want.list_of_all = !config.acl_files().is_empty() && self.has_list(AclVerdict::GLOBAL)?;
        for (service, wanted) in config.services().iter().zip(&mut want.services) {
            if service.acl_files().is_empty() {
                continue;
            }
            let index =
                have.services.iter().find(|(_, has)| has.name.as_deref() == Some(service.name()));
            let marked = |index| {
                have.vips.values().any(|v| v.service == index && v.options.has(VipOptions::ACL))
            };
            let listed = match index {
                None => true,
                Some((index, _)) => marked(*index) || self.has_list(*index)?,
            };
            wanted.options = wanted.options.with_if(listed, VipOptions::ACL);
        }
        Ok(())
    }

    /// Starts to read the lists; [`Self::take_lists`] gets them.
    pub(super) fn read_lists(&mut self) {
        let started = self.lists.start(acl_files::wanted(&self.input.config));
        warn_of_start(started);
    }

    /// Waits for the lists, before anything is forwarded, and marks what is to meet them.
    pub(super) async fn wait_for_lists(&mut self, want: &mut Desired) -> Result<(), CliError> {
        if acl_files::wanted(&self.input.config).is_empty() {
            return Ok(());
        }
        let loaded = self.lists.loaded().await;
        if let Some(refused) = loaded.iter().find_map(|loaded| loaded.outcome.as_ref().err()) {
            return Err(CliError::operation(anyhow!("{refused:#}")));
        }
        self.put_lists(loaded)?;
        let have = apply::have(&self.maps).map_err(CliError::operation)?;
        self.mark_listed(&self.input.config, &have, want)
    }

    /// Puts lists in place that were read, and has packets meet them.
    pub(super) async fn take_lists(&mut self, loaded: Vec<Loaded>) {
        match self.put_and_revise(loaded).await {
            Ok(new) => new.iter().for_each(|scope| info!("{scope} is in force")),
            Err(failure) => {
                warn!("cannot put lists of sources in place; reload to try again: {failure}")
            }
        }
        let started = self.lists.start_next();
        warn_of_start(started);
    }

    async fn put_and_revise(&mut self, loaded: Vec<Loaded>) -> Result<Vec<Scope>, CliError> {
        let new = self.put_lists(loaded)?;
        if !new.is_empty() {
            self.revise().await?;
        }
        Ok(new)
    }

    /// Puts lists in place that were read; those that are new there.
    fn put_lists(&mut self, loaded: Vec<Loaded>) -> Result<Vec<Scope>, CliError> {
        let wanted = acl_files::wanted(&self.input.config);
        let indexes = self.indexes()?;
        let (mut put, mut stay) = (Vec::new(), Vec::new());
        for Loaded { scope, list, outcome, took } in loaded {
            let index = match &scope {
                Scope::All => Some(AclVerdict::GLOBAL),
                Scope::Service(name) => indexes.get(name).copied(),
            };
            let (prefixes, seconds) = (list.as_ref().map_or(0, List::prefixes), took.as_secs_f32());
            match &outcome {
                Ok(Change::Nothing) => {}
                Ok(Change::InPlace(changed)) => {
                    info!(
                        "{scope}: {changed} of {prefixes} prefixes changed in place ({seconds:.1} s)"
                    );
                }
                Ok(Change::New) => info!("{scope}: read {prefixes} prefixes ({seconds:.1} s)"),
                Err(error) => warn!("{scope} stays as it was: {error:#}"),
            }
            // A reload may have taken the list, or the service, out of the configuration.
            let index = index.filter(|_| wanted.iter().any(|(wanted, _)| *wanted == scope));
            if let (Some(index), Some(list)) = (index, list) {
                let new = matches!(outcome, Ok(Change::New)) || !self.has_list(index)?;
                if new { &mut put } else { &mut stay }.push((index, scope, list));
            }
        }
        for (_, scope, list) in stay {
            self.lists.put(scope, list);
        }
        let tries: Vec<_> = put.iter().map(|(index, _, list)| (*index, list.trie())).collect();
        self.maps.put_lists(&tries).map_err(CliError::operation)?;
        let mut new = Vec::with_capacity(put.len());
        for (_, scope, list) in put {
            new.push(scope.clone());
            self.lists.put(scope, list);
        }
        Ok(new)
    }

    /// Removes lists that no packet meets any more.
    pub(super) fn remove_lists(&mut self) -> Result<(), CliError> {
        let wanted = acl_files::wanted(&self.input.config);
        let indexes = self.indexes()?;
        let keep: Vec<u32> = wanted
            .iter()
            .filter_map(|(scope, _)| match scope {
                Scope::All => Some(AclVerdict::GLOBAL),
                Scope::Service(name) => indexes.get(name).copied(),
            })
            .collect();
        let listed = self.maps.listed().map_err(CliError::operation)?;
        let stale: Vec<u32> =
            listed.iter().copied().filter(|index| !keep.contains(index)).collect();
        for index in stale {
            self.maps.remove_list(index).map_err(CliError::operation)?;
        }
        Ok(())
    }

    /// Writes the rates that differ from what the configuration says. A new rate counts from now
    /// on, with full buckets: what a source or service took under another one may be more than it
    /// would get back in hours.
    pub(super) fn set_rates(&mut self) -> Result<(), CliError> {
        let indexes = self.indexes()?;
        let index = |service: &config::ServiceConfig| indexes.get(service.name()).copied();
        let rated = self
            .input
            .config
            .services()
            .iter()
            .filter_map(|service| Some((index(service)?, service.rate_limits())));
        let rated: BTreeMap<u32, _> = rated.collect();
        let (mut changed, mut services) = (Vec::new(), BTreeSet::new());
        let present = self.maps.rates().map_err(CliError::operation)?;
        for (service, present) in (0..).zip(present.chunks_exact(RateKind::ALL.len())) {
            for (limit, has) in RateKind::ALL.into_iter().zip(present) {
                // An index that no service has keeps nothing for the next one.
                let wanted = rated.get(&service).map_or(Rate::NONE, |rates| rates.rate(limit));
                if *has != wanted {
                    changed.push((Rate::index(service, limit), wanted));
                    services.insert(service);
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.maps.set_rates(&changed).map_err(CliError::operation)?;
        self.maps.fill_buckets(&services).map_err(CliError::operation)
    }

    /// The index of each service, by name.
    fn indexes(&self) -> Result<BTreeMap<String, u32>, CliError> {
        let records = self.maps.service_records().map_err(CliError::operation)?;
        let named = (0..).zip(records).filter(|(_, record)| !record.name.as_str().is_empty());
        Ok(named.map(|(index, record)| (record.name.as_str().to_owned(), index)).collect())
    }

    fn has_list(&self, index: u32) -> Result<bool, CliError> {
        self.maps.has_list(index).map_err(CliError::operation)
    }
}

fn warn_of_start(started: std::io::Result<()>) {
    if let Err(error) = started {
        warn!("cannot start to read lists of sources; reload to try again: {error}");
    }
}

//! Brings maps and programs to the configuration: the plan, its steps, and the order of programs
//! and maps.

use anyhow::Context as _;
use sluice_control::capacities::Capacities;
use sluice_control::desired::Desired;
use sluice_control::step::Step;
use sluice_control::step_text::StepText;
use sluice_control::{apply, plan};
use sluice_datapath::LAYOUT_VERSION;
use sluice_datapath::abi::maps::balancer;
use sluice_datapath::abi::{InstanceRecord, Settings};
use tracing::info;

use super::config::LbConfig;
use super::{LbDaemon, LbPending, Planned};
use crate::clock;
use crate::daemon::programs::Resized;
use crate::error::CliError;
use crate::kernel::bpf::{self, BalancerMaps, LoadParameters};
use crate::progress;

impl LbDaemon {
    /// Computes the desired state, and the steps from the state of the maps to it.
    pub(super) fn plan(&self, config: &LbConfig) -> Result<Planned, CliError> {
        let mut desired = config.desired()?;
        let have = apply::have(&self.maps).map_err(CliError::operation)?;
        self.mark_acls(&config.config, &have, &mut desired)?;
        let steps = plan::plan(&have, &desired, config.capacities(), clock::now())
            .map_err(CliError::operation)?;
        Ok(Planned { desired, have, steps })
    }

    /// Applies what is pending.
    pub(super) async fn converge(&mut self, pending: LbPending) -> Result<(), CliError> {
        if pending.attachments {
            let program = self.programs.get(bpf::BALANCER_TC);
            self.attachment.watch(&mut self.host, &self.config.interfaces, program).await;
        }
        if let Some(resized) = self.resized.take() {
            self.adopt(resized, self.settings)?;
        }
        self.finish_resize().await?;
        if pending.configuration {
            let mut planned = match self.planned.take() {
                Some(planned) => planned,
                None => self.plan(&self.config)?,
            };
            self.apply_plan(&planned).await?;
            if !self.is_forwarding {
                self.load_acls(&mut planned.desired).await?;
            }
            self.attach(&planned.desired).await?;
            self.is_forwarding = true;
            self.log_new_acls();
        } else if pending.next_hops {
            self.put_next_hops()?;
            self.log_next_hop_notices();
        }
        if pending.acls {
            self.start_loading_acls()?;
        }
        Ok(())
    }

    /// Brings the maps to the desired state. The attached program gets the features that the new
    /// entries need first.
    async fn apply_plan(&mut self, planned: &Planned) -> Result<(), CliError> {
        let wider = wider(&self.settings, &self.config.settings(&planned.desired));
        if wider != self.settings {
            self.load(wider)?;
            self.replace_attached().await?;
        }
        self.path_mtus.write_next_hops(&mut self.maps, &self.next_hops, &planned.have.backends)?;
        self.write_record(true)?;
        let text = StepText::new(&planned.have, &planned.steps);
        for step in &planned.steps {
            let description = text.describe(step);
            info!("{description}");
            progress::report();
            if matches!(step, Step::PutVips { .. }) {
                self.set_rates()?;
            }
            apply::apply(
                &mut self.maps,
                step,
                &|address| self.path_mtus.next_hop(&self.next_hops, address),
                clock::now(),
            )
            .with_context(|| format!("cannot {description}"))
            .map_err(CliError::Operation)?;
        }
        // The steps give new backends a next hop without a neighbour.
        self.put_next_hops()?;
        self.log_next_hop_notices();
        self.write_record(false)
    }

    /// Attaches the program where it is not attached, with the constants that the desired state
    /// needs.
    ///
    /// Features are removed after the steps of a plan: a program that ignores entries which the
    /// steps remove is correct.
    async fn attach(&mut self, desired: &Desired) -> Result<(), CliError> {
        self.set_rates()?;
        let settings = self.config.settings(desired);
        if settings != self.settings {
            self.load(settings)?;
        }
        let program = self.programs.get(bpf::BALANCER_TC);
        self.attachment.ensure(&mut self.host, &self.config.interfaces, Some(program)).await?;
        self.remove_acls()
    }

    /// Replaces the attached programs by the one that is loaded, and attaches nowhere else.
    pub(super) async fn replace_attached(&mut self) -> Result<(), CliError> {
        let program = self.programs.get(bpf::BALANCER_TC);
        self.attachment.replace(&mut self.host, program).await
    }

    fn load(&mut self, settings: Settings) -> Result<(), CliError> {
        self.programs.reload(&LoadParameters::balancer(&settings, &self.config.capacities()))?;
        self.settings = settings;
        Ok(())
    }

    /// Takes resized maps into use.
    pub(super) fn adopt(&mut self, resized: Resized, settings: Settings) -> Result<(), CliError> {
        self.programs.adopt(resized);
        self.settings = settings;
        self.maps = BalancerMaps::open(&self.pins).map_err(CliError::operation)?;
        Ok(())
    }

    /// Attaches the program over resized maps everywhere, then removes the old maps.
    pub(super) async fn finish_resize(&mut self) -> Result<(), CliError> {
        if !self.programs.is_resizing() {
            return Ok(());
        }
        let program = self.programs.get(bpf::BALANCER_TC);
        self.attachment.ensure(&mut self.host, &self.config.interfaces, Some(program)).await?;
        self.programs.finish_resize()?;
        self.maps = BalancerMaps::open(&self.pins).map_err(CliError::operation)?;
        let Capacities { services, backends, vips, connections } = self.maps.capacities();
        info!(services, backends, vips, connections, "maps resized");
        Ok(())
    }

    /// Records which configuration the maps hold, and whether it is being changed.
    fn write_record(&mut self, changing: bool) -> Result<(), CliError> {
        let record = InstanceRecord {
            layout: LAYOUT_VERSION,
            changing: u32::from(changing),
            key_fingerprint: self.config.fingerprint(),
            config_digest: self.config.digest,
            applied_at: clock::unix_seconds(),
        };
        self.maps.write(balancer::INSTANCE, &[(0, record)]).map_err(CliError::operation)
    }
}

/// Constants of a program that handles the entries of both configurations.
fn wider(present: &Settings, wanted: &Settings) -> Settings {
    let mut wider = Settings { features: present.features.with(wanted.features), ..*wanted };
    if wanted.source_v4.is_none() {
        (wider.source_v4, wider.source_bits_v4) = (present.source_v4, present.source_bits_v4);
    }
    if wanted.source_v6.is_none() {
        (wider.source_v6, wider.source_bits_v6) = (present.source_v6, present.source_bits_v6);
    }
    wider
}

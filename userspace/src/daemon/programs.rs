//! The loaded programs of a role, and a resize of their maps that is not finished.

use crate::error::CliError;
use crate::kernel::bpf::{
    EarlierCounts, Error, LoadParameters, PendingResize, Pins, Program, ProgramSpec,
};

use crate::roles::RoleSpec;

/// The programs of a role over its pinned maps.
pub(super) struct Programs {
    spec: &'static RoleSpec,
    pins: Pins,
    loaded: Vec<Program>,
    earlier_counts: EarlierCounts,
    /// The replaced maps, until no packet reads them.
    pending_resize: Option<PendingResize>,
}

/// Programs over resized maps, which are in force but not attached yet.
pub(super) struct Resized {
    loaded: Vec<Program>,
    pending: PendingResize,
}

impl Programs {
    /// Creates or adopts the maps and loads the programs. Finds a resize that an earlier daemon
    /// did not finish.
    pub(super) fn load(
        spec: &'static RoleSpec,
        pins: &Pins,
        parameters: &LoadParameters,
    ) -> Result<Self, CliError> {
        let pending_resize = spec.object.unfinished_resize(pins);
        let mut programs = Self {
            spec,
            pins: pins.clone(),
            loaded: Vec::new(),
            earlier_counts: EarlierCounts::default(),
            pending_resize,
        };
        programs.reload(parameters)?;
        programs.earlier_counts = EarlierCounts::open(pins).map_err(CliError::operation)?;
        Ok(programs)
    }

    /// Loads the programs again, with other constants.
    pub(super) fn reload(&mut self, parameters: &LoadParameters) -> Result<(), CliError> {
        self.loaded = self
            .spec
            .object
            .load(&self.pins, parameters, &self.specs())
            .map_err(CliError::operation)?;
        Ok(())
    }

    /// Pins maps again whose pins another program has removed, and describes them. During a resize
    /// nothing is pinned.
    pub(super) fn pin_again(&self) -> Result<Option<String>, CliError> {
        let [program, ..] = &self.loaded[..] else { return Ok(None) };
        if self.is_resizing() {
            return Ok(None);
        }
        let pinned =
            self.spec.object.pin_again(&self.pins, program).map_err(CliError::operation)?
                + self.earlier_counts.pin_again(&self.pins).map_err(CliError::operation)?;
        let directory = self.pins.directory();
        Ok((pinned > 0).then(|| format!("{pinned} pins in {}", directory.display())))
    }

    /// Whether the maps in force have the sizes of `parameters`.
    pub(super) fn fit(&self, parameters: &LoadParameters) -> Result<bool, CliError> {
        self.spec.object.fits(&self.pins, parameters).map_err(CliError::operation)
    }

    /// Creates maps with the sizes of `parameters` where they differ, and loads the programs over
    /// them; `None` if no size differs. [`Self::adopt`] is next.
    pub(super) fn resize(&self, parameters: &LoadParameters) -> Result<Option<Resized>, CliError> {
        match self.spec.object.resize(&self.pins, parameters, &self.specs()) {
            Ok(resized) => Ok(resized.map(|(loaded, pending)| Resized { loaded, pending })),
            Err(error @ Error::InUse { .. }) => Err(CliError::bad_input(error)),
            Err(error) => Err(CliError::operation(error)),
        }
    }

    /// Takes the programs over resized maps in place of the ones before. They must be attached
    /// everywhere before [`Self::finish_resize`].
    pub(super) fn adopt(&mut self, resized: Resized) {
        self.loaded = resized.loaded;
        self.pending_resize = Some(resized.pending);
    }

    /// Whether a resize is not finished.
    pub(super) fn is_resizing(&self) -> bool {
        self.pending_resize.is_some()
    }

    /// Copies what the old programs wrote meanwhile, and removes the old maps. No filter may run
    /// the old programs any more.
    pub(super) fn finish_resize(&mut self) -> Result<(), CliError> {
        if let Some(pending) = &self.pending_resize {
            pending.finish().map_err(CliError::operation)?;
            self.pending_resize = None;
            self.earlier_counts = EarlierCounts::open(&self.pins).map_err(CliError::operation)?;
        }
        Ok(())
    }

    /// A program of the role.
    pub(super) fn get(&self, program: ProgramSpec) -> &Program {
        match self.loaded.iter().find(|loaded| loaded.name() == program.name) {
            Some(loaded) => loaded,
            None => unreachable!("all programs of the role's row are loaded"),
        }
    }

    fn specs(&self) -> Vec<ProgramSpec> {
        self.spec.programs.iter().map(|program| program.program).collect()
    }
}

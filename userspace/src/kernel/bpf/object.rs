//! The BPF objects: creates or adopts their maps and loads their programs.
//!
//! An object is a row here: its bytes and its maps. Loading, resizing and finishing an interrupted
//! resize work on any row.

use std::io;
use std::path::Path;

use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use sluice_control::capacities::Capacities;
use sluice_datapath::Pod;
use sluice_datapath::abi::{Port, Settings};

use super::program::Program;
use super::resize::{self, PendingResize};
use super::signals::uninterrupted;
use super::spec::{self, MapSpec};
use super::{Error, Pins, features};
use crate::progress;

/// The compiler that built the programs in this binary.
pub const fn programs_built_by() -> &'static str {
    env!("SLUICE_PROBES_COMPILER")
}

/// A program of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Its name in the object, which is also what `bpftool` shows.
    pub name: &'static str,
    hook: HookType,
}

/// The hook that a program is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HookType {
    Tc,
    Xdp,
}

/// The balancer's program for TC ingress.
pub const BALANCER_TC: ProgramSpec = ProgramSpec { name: "sluice_tc", hook: HookType::Tc };

/// The balancer's program for XDP.
pub const BALANCER_XDP: ProgramSpec = ProgramSpec { name: "sluice_xdp", hook: HookType::Xdp };

/// The backend's program for TC ingress: removes outer headers.
pub const DECAPSULATE: ProgramSpec = ProgramSpec { name: "sluice_decap", hook: HookType::Tc };

/// The backend's program for TC egress: clamps the MSS option of SYNs and SYN-ACKs.
pub const CLAMP: ProgramSpec = ProgramSpec { name: "sluice_clamp", hook: HookType::Tc };

/// A BPF object in this binary: programs over one set of maps.
pub struct Object {
    name: &'static str,
    bytes: &'static [u8],
    maps: &'static [MapSpec],
}

/// The balancer's object, with [`BALANCER_TC`] and [`BALANCER_XDP`].
pub static BALANCER: Object = Object {
    name: "balancer",
    bytes: aya::include_bytes_aligned!(env!("SLUICE_BALANCER_OBJECT")),
    maps: spec::BALANCER,
};

/// The backend's object, with [`DECAPSULATE`] and [`CLAMP`].
pub static BACKEND: Object = Object {
    name: "backend",
    bytes: aya::include_bytes_aligned!(env!("SLUICE_BACKEND_OBJECT")),
    maps: spec::BACKEND,
};

/// The parameters of loading an object: its constants (`.rodata`) and the sizes of its maps.
pub struct LoadParameters {
    constants: Vec<(&'static str, Vec<u8>)>,
    capacities: Capacities,
    /// Maps with a size of their own, and the number of their entries.
    sizes: Vec<(&'static str, u32)>,
}

impl LoadParameters {
    /// The parameters of [`BALANCER`].
    pub fn balancer(settings: &Settings, capacities: &Capacities) -> Self {
        Self {
            constants: vec![
                ("FEATURES", settings.features.bytes().to_vec()),
                ("HASH_KEY", constant(&settings.hash_key)),
                ("SOURCE_V4", constant(&settings.source_v4)),
                ("SOURCE_V6", constant(&settings.source_v6)),
                ("SOURCE_BITS_V4", constant(&settings.source_bits_v4)),
                ("SOURCE_BITS_V6", constant(&settings.source_bits_v6)),
                ("GUE_PORT", constant(&settings.gue_port)),
                ("VIP_SOURCES", constant(&settings.vip_sources.bits())),
                ("ICMP_ERROR_RATE", constant(&settings.errors)),
            ],
            capacities: *capacities,
            sizes: Vec::new(),
        }
    }

    /// The parameters of [`BACKEND`]: the number of the host's addresses, the number of VIP
    /// addresses, and the port of GUE (0 if GUE is not decapsulated).
    pub fn backend(addresses: u32, vip_addresses: u32, gue_port: Port) -> Self {
        Self {
            constants: vec![
                ("CROSS_FAMILY", constant(&u32::from(features::decapsulates_across_families()))),
                ("GUE_PORT", constant(&gue_port)),
            ],
            capacities: Capacities {
                services: 0,
                backends: 0,
                vips: vip_addresses.max(1),
                connections: 0,
            },
            sizes: vec![("LOCAL_ADDRESSES", addresses.max(1))],
        }
    }
}

/// The bytes of a constant, in native byte order.
fn constant<T: Pod>(value: &T) -> Vec<u8> {
    super::raw::bytes(std::slice::from_ref(value)).to_vec()
}

impl Object {
    /// Creates the maps, or adopts those that are pinned, and loads programs over them.
    ///
    /// Map sizes only apply to maps that are created; adopted maps keep theirs until
    /// [`Self::resize`]. After an error, created maps stay pinned, and the next attempt adopts
    /// them.
    pub fn load(
        &'static self,
        pins: &Pins,
        parameters: &LoadParameters,
        programs: &[ProgramSpec],
    ) -> Result<Vec<Program>, Error> {
        pins.create()?;
        self.load_over(&pins.directory(), parameters, programs)
    }

    /// As [`Self::load`], for one program.
    pub fn load_program(
        &'static self,
        pins: &Pins,
        parameters: &LoadParameters,
        program: ProgramSpec,
    ) -> Result<Program, Error> {
        pins.create()?;
        self.load_one(&pins.directory(), parameters, program)
    }

    /// Whether the maps in force have the sizes of the parameters.
    pub fn fits(&self, pins: &Pins, parameters: &LoadParameters) -> Result<bool, Error> {
        resize::fits(pins, self.maps, &parameters.capacities)
    }

    /// Replaces the maps whose size differs from the parameters, and loads programs over the new
    /// set; `None` if all sizes are as wanted. Then attach the programs everywhere and call
    /// [`PendingResize::finish`]. There must be no unfinished resize.
    ///
    /// After an error ([`Error::InUse`] if a map's used part exceeds its new size) the old maps
    /// stay in force.
    pub fn resize(
        &'static self,
        pins: &Pins,
        parameters: &LoadParameters,
        programs: &[ProgramSpec],
    ) -> Result<Option<(Vec<Program>, PendingResize)>, Error> {
        if self.fits(pins, parameters)? {
            return Ok(None);
        }
        let load = |directory: &Path| self.load_over(directory, parameters, programs);
        resize::stage(pins, self.maps, &parameters.capacities, load).map(Some)
    }

    /// Pins the maps of a program again where another program has removed their pins; returns the
    /// number of those. There must be no unfinished resize.
    pub fn pin_again(&self, pins: &Pins, program: &Program) -> Result<usize, Error> {
        let missing = |spec: &&MapSpec| spec.pinned && !pins.map(spec.name).exists();
        let missing: Vec<_> = self.maps.iter().filter(missing).collect();
        if !missing.is_empty() {
            pins.create()?;
        }
        for spec in &missing {
            let path = pins.map(spec.name);
            let map = program.ebpf.map(spec.name).ok_or(Error::NoPrograms)?;
            map.pin(&path).map_err(|source| Error::System {
                what: format!("pin the map {} again as {}", spec.name, path.display()),
                source: io::Error::other(source),
            })?;
        }
        Ok(missing.len())
    }

    /// A resize that an earlier daemon did not finish. The new maps are in force: attach programs
    /// over them everywhere, then call [`PendingResize::finish`].
    pub fn unfinished_resize(&'static self, pins: &Pins) -> Option<PendingResize> {
        PendingResize::unfinished(pins, self.maps)
    }

    fn load_over(
        &self,
        directory: &Path,
        parameters: &LoadParameters,
        programs: &[ProgramSpec],
    ) -> Result<Vec<Program>, Error> {
        programs.iter().map(|program| self.load_one(directory, parameters, *program)).collect()
    }

    /// Loads the object for one program. The first load creates and pins the maps; further loads
    /// reuse them by their pins.
    fn load_one(
        &self,
        directory: &Path,
        parameters: &LoadParameters,
        program: ProgramSpec,
    ) -> Result<Program, Error> {
        if self.bytes.is_empty() {
            return Err(Error::NoPrograms);
        }
        let mut loader = EbpfLoader::new();
        for (name, bytes) in &parameters.constants {
            loader.override_global(name, bytes.as_slice(), true);
        }
        for spec in self.maps.iter().filter(|spec| spec.pinned) {
            loader.map_pin_path(spec.name, directory.join(spec.name));
            if let Some(entries) = spec::entries(spec, &parameters.capacities) {
                loader.map_max_entries(spec.name, entries);
            }
        }
        for (map, entries) in &parameters.sizes {
            loader.map_max_entries(map, *entries);
        }
        progress::report();
        uninterrupted(|| {
            let mut ebpf = loader
                .load(self.bytes)
                .map_err(|source| Error::Maps { object: self.name, source })?;
            load_into_kernel(&mut ebpf, program)?;
            Ok(Program { ebpf, name: program.name })
        })
    }
}

fn load_into_kernel(ebpf: &mut Ebpf, program: ProgramSpec) -> Result<(), Error> {
    /// As many as libbpf makes.
    const ATTEMPTS: usize = 5;

    let refused = |source| Error::Load { program: program.name, source };
    let found = ebpf.program_mut(program.name).ok_or(Error::NoPrograms)?;
    let mut attempts = 1..ATTEMPTS;
    loop {
        let loaded = match program.hook {
            HookType::Tc => <&mut SchedClassifier>::try_from(&mut *found).and_then(|tc| tc.load()),
            HookType::Xdp => <&mut Xdp>::try_from(&mut *found).and_then(|xdp| xdp.load()),
        };
        match loaded {
            Err(error) if is_interrupted(&error) && attempts.next().is_some() => {}
            loaded => return loaded.map_err(refused),
        }
    }
}

/// Whether a signal interrupted the verifier.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.raw_os_error() == Some(libc::EAGAIN))
}

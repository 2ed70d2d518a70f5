//! Creates or adopts the maps, and loads the programs.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use sluice_control::capacities::Capacities;
use sluice_datapath::abi::{Port, Settings};

use super::resize::{self, PendingResize};
use super::spec::{BACKEND, BALANCER, MapSpec};
use super::{Error, Pins, Raw};

static BALANCER_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_BALANCER_OBJECT"));
static BACKEND_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_BACKEND_OBJECT"));

/// Name of the balancer's program for TC, as `bpftool` shows it.
const TC: &str = "sluice_tc";
/// Name of the balancer's program for XDP.
const XDP: &str = "sluice_xdp";
/// Name of the backend's program for TC ingress.
const DECAPSULATE: &str = "sluice_decap";
/// Name of the backend's program for TC egress.
const CLAMP: &str = "sluice_clamp";

/// The compiler that built the programs in this binary.
pub const fn programs_built_by() -> &'static str {
    env!("SLUICE_PROBES_COMPILER")
}

/// What a program amounts to in the kernel that loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Instructions after the verifier's rewriting, which differs by kernel. `None` where the
    /// kernel does not tell.
    pub instructions: Option<u32>,
    /// Instructions that the verifier went through on all paths together; it gives up at a million.
    /// `None` before Linux 5.16.
    pub verified: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Whether the kernel holds the type information (BTF) that came with the program.
    pub type_information: bool,
}

/// A program in the kernel. It stays there as long as this value lives or something that it was
/// attached to does.
pub struct Program {
    ebpf: Ebpf,
    name: &'static str,
}

impl Program {
    /// The descriptor to attach it by.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self.ebpf.program(self.name).and_then(|program| program.fd().ok()) {
            Some(descriptor) => descriptor.as_fd(),
            None => unreachable!("a program is made from an object that has it loaded"),
        }
    }

    /// What the program amounts to in this kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] when the kernel does not tell.
    pub fn footprint(&self) -> Result<Footprint, Error> {
        /// Bytes of an instruction.
        const INSTRUCTION: u32 = 8;

        let info = self.info()?;
        Ok(Footprint {
            instructions: info.size_translated().map(|bytes| bytes / INSTRUCTION),
            verified: info.verified_instruction_count(),
            machine_code: info.size_jitted(),
            type_information: info.btf_id().is_some(),
        })
    }

    /// The kernel's number of the program, as a filter that runs it tells it.
    ///
    /// # Errors
    ///
    /// [`Error::Load`] when the kernel does not tell.
    pub fn id(&self) -> Result<u32, Error> {
        self.info().map(|info| info.id())
    }

    fn info(&self) -> Result<ProgramInfo, Error> {
        let info = match self.ebpf.program(self.name) {
            Some(program) => program.info(),
            None => unreachable!("a program is made from an object that has it loaded"),
        };
        info.map_err(|source| Error::Load { program: self.name, source })
    }

    /// Runs the program once on a frame (`BPF_PROG_TEST_RUN`): its return value and the frame as it
    /// left it.
    ///
    /// `context` is the `__sk_buff` that the program finds, as far as the kernel accepts it; empty
    /// for none. Redirects happen on the wire only: here they are the return value.
    ///
    /// # Errors
    ///
    /// [`Error::TestRun`].
    pub fn run(&self, frame: &[u8], context: &[u8]) -> Result<(u32, Vec<u8>), Error> {
        /// More than any outer header.
        const GROWTH: usize = 256;

        let mut out = vec![0; frame.len() + GROWTH];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (!context.is_empty()).then_some(context),
            ..TestRunOptions::new()
        };
        let failed = |source| Error::TestRun { source };
        let program = self.ebpf.program(self.name);
        let result = match program {
            Some(aya::programs::Program::SchedClassifier(program)) => {
                program.test_run(options).map_err(failed)?
            }
            Some(aya::programs::Program::Xdp(program)) => {
                program.test_run(options).map_err(failed)?
            }
            _ => unreachable!("a program is of one of these two types"),
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}

/// The backend's programs, over one set of maps.
pub struct BackendPrograms {
    /// Takes outer headers off, at TC ingress.
    pub decapsulate: Program,
    /// Clamps the maximum segment size that VIPs tell, at TC egress.
    pub clamp: Program,
}

/// Creates the balancer's maps, or adopts those that are pinned, and loads its TC program.
///
/// Capacities count only for maps that are created: adopted ones keep theirs ([`resize_balancer`]
/// replaces them).
///
/// # Errors
///
/// [`Error`]; maps that were created stay pinned, and the next attempt adopts them.
pub fn balancer(
    pins: &Pins,
    settings: &Settings,
    capacities: &Capacities,
) -> Result<Program, Error> {
    pins.create()?;
    balancer_over(&pins.directory(), settings, capacities)
}

/// As [`balancer`], for the XDP hook.
///
/// # Errors
///
/// [`Error`].
pub fn balancer_xdp(
    pins: &Pins,
    settings: &Settings,
    capacities: &Capacities,
) -> Result<Program, Error> {
    pins.create()?;
    let mut ebpf = load_balancer_object(&pins.directory(), settings, capacities)?;
    let program: &mut Xdp =
        ebpf.program_mut(XDP).ok_or(Error::NoPrograms)?.try_into().map_err(refused(XDP))?;
    program.load().map_err(refused(XDP))?;
    Ok(Program { ebpf, name: XDP })
}

/// Replaces those of the balancer's maps that have other capacities, and loads its TC program over
/// them; `None` when all have these. Attach the program everywhere, then [`PendingResize::finish`].
///
/// No replacement may be unfinished.
///
/// # Errors
///
/// [`Error::InUse`] when a capacity is less than what is or was in use; [`Error`]. The maps in
/// force are then the same as before.
pub fn resize_balancer(
    pins: &Pins,
    settings: &Settings,
    capacities: &Capacities,
) -> Result<Option<(Program, PendingResize)>, Error> {
    resize(pins, BALANCER, capacities, |directory| balancer_over(directory, settings, capacities))
}

/// A replacement of the balancer's maps that an earlier daemon began. The new maps are in force:
/// attach the program over them everywhere, then [`PendingResize::finish`].
pub fn unfinished_balancer(pins: &Pins) -> Option<PendingResize> {
    PendingResize::unfinished(pins, BALANCER)
}

/// Creates the backend's maps, or adopts those that are pinned, and loads its programs.
///
/// # Errors
///
/// [`Error`].
pub fn backend(pins: &Pins, host: &BackendHost) -> Result<BackendPrograms, Error> {
    pins.create()?;
    backend_over(&pins.directory(), host)
}

/// As [`resize_balancer`], for the backend's maps.
///
/// # Errors
///
/// As [`resize_balancer`].
pub fn resize_backend(
    pins: &Pins,
    host: &BackendHost,
) -> Result<Option<(BackendPrograms, PendingResize)>, Error> {
    resize(pins, BACKEND, &host.capacities(), |directory| backend_over(directory, host))
}

/// As [`unfinished_balancer`], for the backend's maps.
pub fn unfinished_backend(pins: &Pins) -> Option<PendingResize> {
    PendingResize::unfinished(pins, BACKEND)
}

fn resize<P>(
    pins: &Pins,
    specs: &'static [MapSpec],
    capacities: &Capacities,
    load: impl FnOnce(&Path) -> Result<P, Error>,
) -> Result<Option<(P, PendingResize)>, Error> {
    if resize::fits(pins, specs, capacities)? {
        return Ok(None);
    }
    resize::stage(pins, specs, capacities, load).map(Some)
}

/// What the backend's programs and their maps are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendHost {
    /// How many addresses of the host there is room for.
    pub addresses: u32,
    /// How many VIP addresses there is room for.
    pub vip_addresses: u32,
    /// The port of GUE; number 0 where none is taken off.
    pub gue_port: Port,
}

impl BackendHost {
    fn capacities(&self) -> Capacities {
        Capacities { services: 0, backends: 0, vips: self.vip_addresses.max(1), connections: 0 }
    }
}

fn balancer_over(
    directory: &Path,
    settings: &Settings,
    capacities: &Capacities,
) -> Result<Program, Error> {
    classifier(load_balancer_object(directory, settings, capacities)?, TC)
}

/// The object is loaded once for each program; the maps that the first one pins are the second
/// one's, too.
fn backend_over(directory: &Path, host: &BackendHost) -> Result<BackendPrograms, Error> {
    let (crosses, gue_port) =
        (u32::from(super::decapsulates_across_families()), Raw(host.gue_port));
    let program = |name| {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CROSS_FAMILY", &crosses, true)
            .override_global("GUE_PORT", &gue_port, true)
            .map_max_entries("LOCAL_ADDRESSES", host.addresses.max(1));
        classifier(
            load(loader, "backend", BACKEND_OBJECT, BACKEND, &host.capacities(), directory)?,
            name,
        )
    };
    Ok(BackendPrograms { decapsulate: program(DECAPSULATE)?, clamp: program(CLAMP)? })
}

fn load_balancer_object(
    directory: &Path,
    settings: &Settings,
    capacities: &Capacities,
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let features = settings.features.bytes();
    let (source_v4, source_v6, errors) =
        (Raw(settings.source_v4), Raw(settings.source_v6), Raw(settings.errors));
    let gue_port = Raw(settings.gue_port);
    loader
        .override_global("FEATURES", &features, true)
        .override_global("HASH_KEY", &settings.hash_key, true)
        .override_global("SOURCE_V4", &source_v4, true)
        .override_global("SOURCE_V6", &source_v6, true)
        .override_global("SOURCE_BITS_V4", &settings.source_bits_v4, true)
        .override_global("SOURCE_BITS_V6", &settings.source_bits_v6, true)
        .override_global("GUE_PORT", &gue_port, true)
        .override_global("ICMP_ERROR_RATE", &errors, true);
    load(loader, "balancer", BALANCER_OBJECT, BALANCER, capacities, directory)
}

fn load(
    mut loader: EbpfLoader<'_>,
    object: &'static str,
    bytes: &[u8],
    specs: &'static [MapSpec],
    capacities: &Capacities,
    directory: &Path,
) -> Result<Ebpf, Error> {
    if bytes.is_empty() {
        return Err(Error::NoPrograms);
    }
    for spec in specs {
        loader.map_pin_path(spec.name, directory.join(spec.name));
        if let Some(entries) = spec.entries(capacities) {
            loader.map_max_entries(spec.name, entries);
        }
    }
    loader.load(bytes).map_err(|source| Error::Maps { object, source })
}

fn classifier(mut ebpf: Ebpf, name: &'static str) -> Result<Program, Error> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).ok_or(Error::NoPrograms)?.try_into().map_err(refused(name))?;
    program.load().map_err(refused(name))?;
    Ok(Program { ebpf, name })
}

fn refused(program: &'static str) -> impl Fn(aya::programs::ProgramError) -> Error {
    move |source| Error::Load { program, source }
}

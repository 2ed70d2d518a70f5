//! A loaded program.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, TestRun as _, TestRunOptions, loaded_programs};

use super::{Error, Pins};

/// Size of a program in the kernel that loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Instructions after the verifier's rewriting, which differs by kernel. `None` if the kernel
    /// does not report it.
    pub instructions: Option<u32>,
    /// Instructions that the verifier processed on all paths together; its limit is one million.
    /// `None` before Linux 5.16.
    pub verified: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Whether the kernel holds the program's type information (BTF).
    pub type_information: bool,
}

/// The IDs of loaded programs that use a map with one of these pins.
pub fn programs_over(pins: &Pins) -> BTreeSet<u32> {
    let maps: BTreeSet<u32> =
        pins.all().iter().filter_map(|pin| Some(MapInfo::from_pin(pin).ok()?.id())).collect();
    let uses = |program: &ProgramInfo| {
        program.map_ids().ok().flatten().is_some_and(|ids| ids.iter().any(|id| maps.contains(id)))
    };
    loaded_programs().filter_map(Result::ok).filter(uses).map(|program| program.id()).collect()
}

/// A program in the kernel. It stays loaded as long as this value or an attachment refers to it.
pub struct Program {
    pub(super) ebpf: Ebpf,
    pub(super) name: &'static str,
}

impl Program {
    /// The program's name, as `bpftool` shows it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The file descriptor to attach it by.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self.program().fd() {
            Ok(descriptor) => descriptor.as_fd(),
            Err(_) => unreachable!("a `Program` is made from a loaded program"),
        }
    }

    /// The size of the program in this kernel.
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

    /// The kernel's program ID, as filters and links report it.
    pub fn id(&self) -> Result<u32, Error> {
        self.info().map(|info| info.id())
    }

    fn info(&self) -> Result<ProgramInfo, Error> {
        self.program().info().map_err(|source| Error::Load { program: self.name, source })
    }

    fn program(&self) -> &aya::programs::Program {
        match self.ebpf.program(self.name) {
            Some(program) => program,
            None => unreachable!("a `Program` is made from an object that has the program"),
        }
    }

    /// Runs the program once on a frame (`BPF_PROG_TEST_RUN`) and returns its return value and the
    /// frame after the run.
    ///
    /// `context` holds the first bytes of the `__sk_buff`; empty for the kernel's default. A
    /// redirect only shows in the return value.
    pub fn run(&self, frame: &[u8], context: &[u8]) -> Result<(u32, Vec<u8>), Error> {
        /// Longer than any outer header.
        const GROWTH: usize = 256;

        let mut out = vec![0; frame.len() + GROWTH];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (!context.is_empty()).then_some(context),
            ..TestRunOptions::new()
        };
        let failed = |source| Error::TestRun { source };
        let result = match self.program() {
            aya::programs::Program::SchedClassifier(program) => {
                program.test_run(options).map_err(failed)?
            }
            aya::programs::Program::Xdp(program) => program.test_run(options).map_err(failed)?,
            _ => unreachable!("programs are loaded as one of these two types"),
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}

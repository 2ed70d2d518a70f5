//! The programs that measurements compare with (`probes/src/baseline.rs`).

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, ensure};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_BASELINE_OBJECT"));

/// A program of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Lets every packet pass, at TC.
    EmptyTc,
    /// Drops every packet, at TC.
    DropTc,
    /// Encapsulates every IP packet, at TC.
    EncapsulateTc,
    /// Lets every packet pass, at XDP.
    EmptyXdp,
    /// Encapsulates every IP packet, at XDP.
    EncapsulateXdp,
    /// Sends UDP datagrams, in live runs at XDP.
    SendXdp,
}

impl Baseline {
    fn name(self) -> &'static str {
        match self {
            Self::EmptyTc => "empty_tc",
            Self::DropTc => "drop_tc",
            Self::EncapsulateTc => "encapsulate_tc",
            Self::EmptyXdp => "empty_xdp",
            Self::EncapsulateXdp => "encapsulate_xdp",
            Self::SendXdp => "send_xdp",
        }
    }
}

/// What the encapsulating programs and the sending one know.
#[derive(Debug, Clone)]
pub struct Way {
    /// Interface through which packets leave.
    pub interface: u32,
    /// The outer header in front of IPv4 packets, its length and checksum those of all packets that
    /// are sent.
    pub outer_v4: [u8; 20],
    /// The outer header in front of IPv6 packets.
    pub outer_v6: [u8; 40],
    /// Ethernet, IPv4 and UDP header of what is sent.
    pub headers: [u8; 42],
    /// Source ports that take turns in what is sent.
    pub flows: u32,
}

impl Default for Way {
    fn default() -> Self {
        Self { interface: 0, outer_v4: [0; 20], outer_v6: [0; 40], headers: [0; 42], flows: 1 }
    }
}

/// A program in the kernel, as long as this value lives.
pub struct Loaded {
    ebpf: Ebpf,
    baseline: Baseline,
}

impl Loaded {
    /// Loads a program.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(baseline: Baseline, way: &Way) -> anyhow::Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without BPF programs, because SLUICE_SKIP_PROBES was set; build again without it"
        );
        let mut ebpf = EbpfLoader::new()
            .override_global("INTERFACE", &way.interface, true)
            .override_global("OUTER_V4", &way.outer_v4, true)
            .override_global("OUTER_V6", &way.outer_v6, true)
            .override_global("HEADERS", &way.headers, true)
            .override_global("FLOWS", &way.flows, true)
            .load(OBJECT)?;
        let program = ebpf.program_mut(baseline.name()).context("the object lacks the program")?;
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => unreachable!("the object holds programs of these two types"),
        };
        loaded.with_context(|| format!("the kernel refuses {}", baseline.name()))?;
        Ok(Self { ebpf, baseline })
    }

    /// The descriptor to run or attach it by.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self.ebpf.program(self.baseline.name()).and_then(|program| program.fd().ok()) {
            Some(descriptor) => descriptor.as_fd(),
            None => unreachable!("this value is made from an object that has the program loaded"),
        }
    }
}

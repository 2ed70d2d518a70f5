//! The programs that Sluice is compared with (`probes/src/baseline.rs`).

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, ensure};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SLUICE_BASELINE_OBJECT"));

/// A program of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Passes every packet, at TC.
    EmptyTc,
    /// Drops every packet, at TC.
    DropTc,
    /// Encapsulates every IP packet, at TC.
    EncapsulateTc,
    /// Passes every packet, at XDP.
    EmptyXdp,
    /// Encapsulates every IP packet, at XDP.
    EncapsulateXdp,
    /// Sends UDP datagrams, at XDP in live-frame runs.
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

/// Load-time constants of the encapsulating programs and the sending one.
#[derive(Debug, Clone)]
pub struct BaselineSettings {
    /// Interface of sent packets.
    pub interface: u32,
    /// The outer header of IPv4 packets. Length and checksum are constant, so all packets need the
    /// same length.
    pub outer_v4: [u8; 20],
    /// The outer header of IPv6 packets.
    pub outer_v6: [u8; 40],
    /// Ethernet, IPv4 and UDP header of sent datagrams.
    pub headers: [u8; 42],
    /// Source ports of sent datagrams, used in turn.
    pub flows: u32,
}

impl Default for BaselineSettings {
    fn default() -> Self {
        Self { interface: 0, outer_v4: [0; 20], outer_v6: [0; 40], headers: [0; 42], flows: 1 }
    }
}

/// A loaded program; dropping it unloads the program.
pub struct LoadedBaseline {
    ebpf: Ebpf,
    baseline: Baseline,
}

impl LoadedBaseline {
    /// Loads a program.
    pub fn new(baseline: Baseline, settings: &BaselineSettings) -> anyhow::Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without eBPF programs, because SLUICE_SKIP_PROBES was set; build again without it"
        );
        let mut ebpf = EbpfLoader::new()
            .override_global("INTERFACE", &settings.interface, true)
            .override_global("OUTER_V4", &settings.outer_v4, true)
            .override_global("OUTER_V6", &settings.outer_v6, true)
            .override_global("HEADERS", &settings.headers, true)
            .override_global("FLOWS", &settings.flows, true)
            .load(OBJECT)?;
        let program = ebpf.program_mut(baseline.name()).context("the object lacks the program")?;
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => unreachable!("the object contains only these two program types"),
        };
        loaded.with_context(|| format!("cannot load {}", baseline.name()))?;
        Ok(Self { ebpf, baseline })
    }

    /// The program's file descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self.ebpf.program(self.baseline.name()).and_then(|program| program.fd().ok()) {
            Some(descriptor) => descriptor.as_fd(),
            None => unreachable!("the constructor has loaded the program"),
        }
    }
}

//! What can go wrong between the daemon and the kernel's BPF.

use std::io;
use std::path::PathBuf;

/// A failed BPF operation. Each says what was tried, on what, and what the kernel answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This binary was built without programs.
    #[error(
        "this sluice was built without its BPF programs (SLUICE_SKIP_PROBES); build it again after `make setup`"
    )]
    NoPrograms,
    /// The object could not be parsed, or a map could not be made.
    #[error("cannot create the maps of the {object} program: {}", chain(.source))]
    Maps {
        /// Which object.
        object: &'static str,
        /// What the kernel or the loader said.
        source: aya::EbpfError,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the program {program}: {}", chain(.source))]
    Load {
        /// Which program.
        program: &'static str,
        /// The verifier's words are in here.
        source: aya::programs::ProgramError,
    },
    /// A map could not be opened.
    #[error("cannot open the map {}: {source}", path.display())]
    Open {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
    /// Another process captures.
    #[error("another `sluice capture` runs for this instance; there can be one at a time")]
    Captured,
    /// A map has another shape than this binary expects.
    #[error("the map {} is not of this version of Sluice: {what}; `sluice down` removes it", path.display())]
    Shape {
        /// Its pin.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A map could not be read.
    #[error("cannot read the map {map}: {source}")]
    Read {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
    /// A map could not be written.
    #[error("cannot write the map {map}: {source}")]
    Write {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
    /// An array has no such index.
    #[error("the map {map} has no element {index}")]
    Beyond {
        /// Its name.
        map: String,
        /// Which was asked for.
        index: u32,
    },
    /// A limit is less than what is in use, or was: records of what was there stay with their
    /// indexes.
    #[error(
        "limits.{limit} cannot shrink to {capacity}: {used}; keep a larger limit, or end the daemon, `sluice down` and start it \
         again, which ends forwarding for that moment"
    )]
    InUse {
        /// The limit's name.
        limit: &'static str,
        /// What it should be.
        capacity: u32,
        /// What stands against it.
        used: String,
    },
    /// A raw `bpf` or `mmap` call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be run on a test packet.
    #[error("cannot run the program on a test packet: {source}")]
    TestRun {
        /// What the kernel said.
        source: aya::programs::ProgramError,
    },
    /// Pins of another layout version are there.
    #[error(
        "the instance {instance:?} was made by another version of Sluice (layout {found}, this binary knows {known}); \
         `sluice down --instance {instance}` removes it, and with it ends forwarding until the daemon starts again"
    )]
    Layout {
        /// The instance.
        instance: String,
        /// The version found, as its directory is named.
        found: String,
        /// [`sluice_datapath::LAYOUT_VERSION`].
        known: u32,
    },
    /// There is nothing pinned for an instance.
    #[error("nothing is running: there is no {role} of the instance {instance:?} at {}", path.display())]
    Absent {
        /// Which role was looked for.
        role: &'static str,
        /// The instance.
        instance: String,
        /// Where its pins would be.
        path: PathBuf,
    },
}

/// An error and what caused it, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

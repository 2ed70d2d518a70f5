//! Errors of BPF operations.

use std::io;
use std::path::PathBuf;

use crate::text::chain;

/// A failed BPF operation. Each message names the operation, the object and the kernel's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This binary was built without programs.
    #[error(
        "this sluice was built without its BPF programs (SLUICE_SKIP_PROBES); build it again after `make setup`"
    )]
    NoPrograms,
    /// The object could not be parsed, or a map could not be created.
    #[error("cannot create the maps of the {object} program: {}", chain(.source))]
    Maps {
        /// The object's name.
        object: &'static str,
        /// The error of the kernel or of the loader.
        source: aya::EbpfError,
    },
    /// The kernel rejected a program.
    #[error("the kernel rejected the program {program}: {}", chain(.source))]
    Load {
        /// The program's name.
        program: &'static str,
        /// The kernel's error, with the verifier's log.
        source: aya::programs::ProgramError,
    },
    /// A map could not be opened.
    #[error("cannot open the map {}: {}", path.display(), chain(.source))]
    Open {
        /// The map's pin.
        path: PathBuf,
        /// The kernel's error.
        source: aya::maps::MapError,
    },
    /// Another process has a capture open.
    #[error(
        "another `sluice capture` is running for this instance; only one is possible at a time"
    )]
    Captured,
    /// A map has another type or other sizes than this binary expects.
    #[error("the map {} does not belong to this version of Sluice: {what}; `sluice down` removes it", path.display())]
    Shape {
        /// The map's pin.
        path: PathBuf,
        /// The difference.
        what: String,
    },
    /// A map could not be read.
    #[error("cannot read the map {map}: {}", chain(.source))]
    Read {
        /// The map's name.
        map: &'static str,
        /// The kernel's error.
        source: aya::maps::MapError,
    },
    /// A map could not be written.
    #[error("cannot write the map {map}: {}", chain(.source))]
    Write {
        /// The map's name.
        map: &'static str,
        /// The kernel's error.
        source: aya::maps::MapError,
    },
    /// An array has no such index.
    #[error("the map {map} has no element {index}")]
    Beyond {
        /// The map's name.
        map: String,
        /// The requested index.
        index: u32,
    },
    /// A limit is below the number of elements that are or were in use. Records keep their indexes
    /// after removal.
    #[error(
        "limits.{limit} cannot shrink to {capacity}: {used}; the smallest possible value is {smallest}. For a smaller one, stop the \
         daemon, run `sluice down` and start it again, which interrupts forwarding"
    )]
    InUse {
        /// The limit's name.
        limit: &'static str,
        /// The requested capacity.
        capacity: u32,
        /// The map that uses more.
        used: String,
        /// The smallest capacity for which all maps have room.
        smallest: u32,
    },
    /// A raw `bpf` or `mmap` call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// The operation, which completes the sentence "cannot ...".
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A program could not be run on a test packet.
    #[error("cannot run the program on a test packet: {}", chain(.source))]
    TestRun {
        /// The kernel's error.
        source: aya::programs::ProgramError,
    },
    /// Pins of another layout version exist.
    #[error(
        "the maps of the instance {instance:?} are from another version of Sluice (layout {found}, \
         this binary has layout {known}); only a `sluice` with layout {found} shows or changes them; \
         to replace them, end its daemon, run `sluice down --instance {instance}` and start the \
         daemon: packets to VIPs are not handled in between, and connections and counters are lost"
    )]
    Layout {
        /// The instance.
        instance: String,
        /// The name of the directory of the version found.
        found: String,
        /// [`sluice_datapath::LAYOUT_VERSION`].
        known: u32,
    },
    /// The instance has no pins.
    #[error("nothing is running: there is no {role} of the instance {instance:?} at {}", path.display())]
    Absent {
        /// The role.
        role: &'static str,
        /// The instance.
        instance: String,
        /// The directory of its pins.
        path: PathBuf,
    },
}

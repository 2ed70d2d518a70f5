//! Loads programs and reads and writes maps. Only this module uses aya and the `bpf` system call.
//!
//! Maps are pinned under `<bpffs>/sluice/<instance>/<layout version>/<role>/` ([`Pins`]), so that
//! they and the attached programs outlive the daemon. The daemon and the commands access them
//! through [`BalancerMaps`] and [`BackendMaps`]. Unless stated otherwise, functions return
//! [`Error::System`] with the failed operation.

mod acl;
mod backend;
mod balancer;
mod bpffs;
mod capture;
mod earlier_counts;
mod error;
mod features;
mod link;
mod map_set;
mod mmap;
mod object;
mod percpu;
mod pins;
mod program;
mod raw;
mod resize;
mod selection;
mod signals;
mod spec;
mod syscall;
mod table;
mod usage;

pub use acl::AclTrie;
pub use backend::BackendMaps;
pub use balancer::BalancerMaps;
pub use bpffs::bpffs;
pub use capture::{Capture, CaptureFilter, is_captured, monotonic};
pub use earlier_counts::EarlierCounts;
pub use error::Error;
pub use features::{decapsulates_across_families, missing_feature};
pub use link::{BpfLink, BpfLinkInfo, BpfLinkTarget, remove_pinned as remove_pinned_link};
pub use map_set::MapSet;
pub use object::{
    BACKEND, BALANCER, BALANCER_TC, BALANCER_XDP, CLAMP, DECAPSULATE, LoadParameters, Object,
    ProgramSpec, programs_built_by,
};
pub use pins::Pins;
pub use program::{Footprint, Program, programs_over};
pub use resize::PendingResize;
pub use selection::LiveSelection;
pub use syscall::program_name;
pub use usage::Usage;

use sluice_datapath::Pod;

/// A value for aya's typed maps.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct AyaPod<T>(T);

// SAFETY: `Pod` requires all that `aya::Pod` does: no padding, every bit pattern valid, and a
// stable layout.
#[expect(unsafe_code, reason = "`aya::Pod` is unsafe to implement")]
unsafe impl<T: Pod> aya::Pod for AyaPod<T> {}

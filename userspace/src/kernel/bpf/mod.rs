//! Loads programs and reads and writes maps: the only module that names aya or makes raw `bpf`
//! calls.
//!
//! Maps are pinned under `<bpffs>/sluice/<instance>/<layout version>/<role>/` ([`Pins`]), so that
//! they and the attached programs outlive the daemon; [`BalancerMaps`] and [`BackendMaps`] are what
//! is there, for the daemon that writes and for the commands that only read.

mod acl;
mod backend;
mod balancer;
mod error;
mod events;
mod features;
mod load;
mod maps;
mod memory;
mod percpu;
mod pins;
mod raw;
mod resize;
mod spec;
mod syscall;
mod table;
mod typed_map;
mod usage;

pub use acl::AclTrie;
pub use backend::BackendMaps;
pub use balancer::BalancerMaps;
pub use error::Error;
pub use events::{Capture, Selection, is_captured, monotonic};
pub use features::{decapsulates_across_families, missing_feature};
pub use load::{
    BackendHost, BackendPrograms, Footprint, Program, backend as load_backend,
    balancer as load_balancer, balancer_xdp as load_balancer_xdp, programs_built_by,
    resize_backend, resize_balancer, unfinished_backend, unfinished_balancer,
};
pub use pins::{Pins, bpffs, mounted_bpffs};
pub use resize::PendingResize;
pub use usage::Usage;

use sluice_datapath::Pod;

/// A plain value as aya wants it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: `Pod` asks for everything that `Pod` does: no padding, every bit pattern valid, and a
// stable layout.
#[expect(unsafe_code, reason = "`aya::Pod` is unsafe to implement")]
unsafe impl<T: Pod> aya::Pod for Raw<T> {}

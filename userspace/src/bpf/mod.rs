//! Loads programs and reads and writes maps: the only module that names aya or makes raw `bpf` calls.
//!
//! Maps are pinned under `<bpffs>/sluice/<instance>/<layout version>/<role>/` ([`Pins`]), so that they and the attached programs
//! outlive the daemon; [`BalancerMaps`] and [`BackendMaps`] are what is there, for the daemon that writes and for the commands
//! that only read.

mod backend;
mod balancer;
mod batch;
mod error;
mod features;
mod lists;
mod load;
mod pins;

pub use backend::BackendMaps;
pub use balancer::{BalancerMaps, Capacities, Table};
pub use error::Error;
pub use features::missing_feature;
pub use lists::Trie;
pub use load::{
    Footprint, Program, backend as load_backend, balancer as load_balancer, balancer_xdp as load_balancer_xdp,
    programs_built_by,
};
pub use pins::{Pins, bpffs, mounted_bpffs};

use sluice_datapath::Plain;

/// A plain value as aya wants it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: `Plain` asks for everything that `Pod` does: no padding, every bit pattern valid, and a stable layout.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

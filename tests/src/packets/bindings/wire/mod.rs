//! The packet path on virtual Ethernet: the program is attached at TC ingress, and frames are
//! injected at the peer interface. Unlike `BPF_PROG_TEST_RUN`, the link carries GSO packets,
//! non-linear buffers, VLAN tags in metadata, truncated frames, and redirects.

mod exchange;
mod link;
mod offload;
mod program;
mod redirect;
mod socket;

pub use link::VethLink;
pub use offload::link_accepts;
pub use program::{WireBackend, WireBalancer, WireClamp};

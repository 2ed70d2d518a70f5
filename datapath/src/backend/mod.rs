//! The backend's path: decapsulation at ingress on hosts without a tunnel device, and MSS clamping
//! at egress.

mod decapsulate;
mod mss_clamp;
mod tables;

pub use decapsulate::decapsulate;
pub use mss_clamp::clamp_mss;
pub use tables::BackendTables;

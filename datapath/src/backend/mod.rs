//! The backend's path: decapsulation at ingress on hosts without a tunnel device, and MSS clamping
//! at egress.

mod decapsulate;
mod maps;
mod mss_clamp;

pub use decapsulate::decapsulate;
pub use maps::BackendMaps;
pub use mss_clamp::clamp_mss;

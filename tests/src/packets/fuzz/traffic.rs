//! Kinds of traffic.

/// Source and destination of random frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// From clients to VIPs.
    FromClients,
    /// From balancers to a backend.
    Encapsulated,
    /// From a backend to clients.
    FromBackends,
}

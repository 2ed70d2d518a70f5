//! Where random frames come from and go to.

/// Who the frames are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Clients send them to VIPs.
    FromClients,
    /// Balancers send them to a backend.
    Encapsulated,
    /// A backend sends them to clients.
    FromBackends,
}

//! Capacities of the maps.

use crate::config::limits::{MAX_BACKENDS, MAX_CONNECTIONS, MAX_ROUTES, MAX_SERVICES, MAX_VIPS};

/// Entries of the map of routes: twice as many as a configuration may have, so that new routes are
/// added before old ones are removed. Unused entries take no memory.
pub const ROUTES: u32 = 2 * MAX_ROUTES;

/// The capacities of an instance's maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Services, 1 to [`MAX_SERVICES`].
    pub services: u32,
    /// Backends, 1 to [`MAX_BACKENDS`].
    pub backends: u32,
    /// VIPs of all services, and VIP addresses, 1 to [`MAX_VIPS`].
    pub vips: u32,
    /// Flows in the connection table, [`MIN_CONNECTIONS`](crate::config::limits::MIN_CONNECTIONS)
    /// to [`MAX_CONNECTIONS`].
    pub connections: u32,
}

impl Capacities {
    /// The capacity of a limit.
    pub const fn get(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Services => self.services,
            Limit::Backends => self.backends,
            Limit::Vips => self.vips,
            Limit::Connections => self.connections,
        }
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self { services: 256, backends: 4_096, vips: 1_024, connections: 65_536 }
    }
}

/// A field of `limits` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `services`.
    Services,
    /// `backends`.
    Backends,
    /// `vips`.
    Vips,
    /// `connections`.
    Connections,
}

impl Limit {
    /// The field's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Vips => "vips",
            Self::Connections => "connections",
        }
    }

    /// The largest value of the field.
    pub const fn max(self) -> u32 {
        match self {
            Self::Services => MAX_SERVICES,
            Self::Backends => MAX_BACKENDS,
            Self::Vips => MAX_VIPS,
            Self::Connections => MAX_CONNECTIONS,
        }
    }
}

//! How much the maps can hold.

use crate::config::limits::MAX_ROUTES;

/// Routes: twice as many as a configuration may have, so that new ones are there before old ones
/// go. What is not used takes no memory.
pub const ROUTES: u32 = 2 * MAX_ROUTES;

/// How much the maps can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Services.
    pub services: u32,
    /// Backends, at most 65,535.
    pub backends: u32,
    /// VIPs, and VIP addresses.
    pub vips: u32,
    /// Entries of the connection table.
    pub connections: u32,
}

impl Capacities {
    /// The capacity of a limit.
    pub const fn of(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Services => self.services,
            Limit::Backends => self.backends,
            Limit::Vips => self.vips,
            Limit::Connections => self.connections,
        }
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
}

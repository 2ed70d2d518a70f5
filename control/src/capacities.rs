//! Capacities of the maps.

pub use sluice_datapath::abi::maps::Limit;
use sluice_datapath::abi::maps::{MapSize, balancer};

use crate::config::limits::{MAX_BACKENDS, MAX_CONNECTIONS, MAX_ROUTES, MAX_SERVICES, MAX_VIPS};

/// Entries of the map of routes: twice as many as a configuration may have, so that new routes are
/// added before old ones are removed. Unused entries take no memory.
pub const ROUTES: u32 = 2 * MAX_ROUTES;

const _: () = assert!(matches!(balancer::ROUTES.spec().size, MapSize::Exactly(ROUTES)));

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
    /// The largest capacities.
    pub const MAX: Self = Self {
        services: MAX_SERVICES,
        backends: MAX_BACKENDS,
        vips: MAX_VIPS,
        connections: MAX_CONNECTIONS,
    };

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

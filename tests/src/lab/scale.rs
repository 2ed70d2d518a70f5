//! The amount of traffic and the timeouts of a lab.

use std::time::Duration;

use anyhow::{Result, bail};

/// Amounts and timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// HTTP requests.
    pub requests: usize,
    /// UDP echo requests.
    pub datagrams: usize,
    /// Connections that stay open during changes.
    pub connections: usize,
    /// Pause between two exchanges on such a connection.
    pub exchange_interval: Duration,
    /// Bytes of a large HTTP body.
    pub body_bytes: u64,
    /// Bytes of a transfer of which every packet is captured.
    pub captured_bytes: u64,
    /// Slots of each lookup table.
    pub table_size: u32,
    /// Whether balancers have an unused service with all features that scenarios enable and
    /// disable. Without it the daemon loads the program again for each other set of features, and
    /// the verifier takes some 10 seconds for that in an emulated machine.
    pub preload_features: bool,
    /// Limit of one exchange, and of a daemon's start.
    pub timeout: Duration,
}

impl Scale {
    /// The scale of `make lab`.
    pub const FULL: Self = Self {
        requests: 2400,
        datagrams: 1200,
        connections: 200,
        exchange_interval: Duration::from_millis(100),
        body_bytes: 20_000_000,
        captured_bytes: 50_000_000,
        table_size: 65_537,
        preload_features: false,
        timeout: Duration::from_secs(10),
    };
    /// For slow machines, such as emulated ones.
    pub const SMALL: Self = Self {
        requests: 400,
        datagrams: 200,
        connections: 40,
        exchange_interval: Duration::from_millis(500),
        body_bytes: 1_000_000,
        captured_bytes: 5_000_000,
        table_size: 4_093,
        preload_features: true,
        timeout: Duration::from_secs(60),
    };

    /// The scale that the environment variable `LAB_SCALE` selects: `full` (the default) or
    /// `small`.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("LAB_SCALE").as_deref() {
            Err(_) | Ok("" | "full") => Ok(Self::FULL),
            Ok("small") => Ok(Self::SMALL),
            Ok(other) => bail!("LAB_SCALE is `{other}`; use `full` or `small`"),
        }
    }
}

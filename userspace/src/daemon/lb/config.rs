//! The files that `sluice lb` reads, and what follows from them alone.

use std::net::IpAddr;

use anyhow::anyhow;
use ipnet::IpNet;
use sluice_control::capacities::Capacities;
use sluice_control::config::Config;
use sluice_control::desired::Desired;
use sluice_datapath::Address;
use sluice_datapath::abi::{Features, Port, Rate, Settings};
use sluice_maglev::Seed;

use crate::args::LbArgs;
use crate::config_file::{self, ConfigFile};
use crate::error::CliError;
use crate::key::HashKey;

/// The rate of "packet too big" errors of each CPU: the default of Linux's ICMP rate limit
/// (`net.ipv4.icmp_msgs_per_sec`, `icmp_msgs_burst`).
const ICMP_ERROR_RATE: Rate = Rate::new(1_000, 50);

/// The configuration and the hash key.
pub(super) struct LbConfig {
    pub(super) config: Config,
    pub(super) key: HashKey,
    pub(super) interfaces: Vec<String>,
    /// Digest of the configuration's text, by which `status` shows which one is applied.
    pub(super) digest: u64,
}

impl LbConfig {
    pub(super) fn read(args: &LbArgs) -> Result<Self, CliError> {
        let ConfigFile { config, digest } = config_file::load(&args.config)?;
        let key = HashKey::load(config.hash_key_file())?;
        let interfaces =
            if args.interfaces.is_empty() { config.interfaces() } else { &args.interfaces };
        Ok(Self { interfaces: interfaces.to_vec(), digest, config, key })
    }

    /// The desired state of the maps.
    pub(super) fn desired(&self) -> Result<Desired, CliError> {
        Desired::new(&self.config, &Seed::new(self.key.table_seed()))
            .map_err(|(service, error)| anyhow!("service {service}: {error}"))
            .map_err(CliError::BadInput)
    }

    /// The program's load-time constants.
    pub(super) fn settings(&self, desired: &Desired) -> Settings {
        let underlay = self.config.underlay();
        let (source_v4, source_bits_v4) =
            source(underlay.v4.map(Address::from), underlay.v4_sources.map(IpNet::V4));
        let (source_v6, source_bits_v6) =
            source(underlay.v6.map(Address::from), underlay.v6_sources.map(IpNet::V6));
        let spreads_sources = (source_bits_v4 | source_bits_v6) != 0;
        Settings {
            features: desired.features().with_if(spreads_sources, Features::SOURCE_SPREADING),
            hash_key: self.key.flow_key(),
            source_v4,
            source_v6,
            source_bits_v4,
            source_bits_v6,
            gue_port: Port::new(underlay.gue_port),
            vip_sources: desired.vip_sources(),
            errors: ICMP_ERROR_RATE,
        }
    }

    pub(super) fn capacities(&self) -> Capacities {
        self.config.capacities()
    }

    /// The addresses of each backend that have an underlay address of their family.
    pub(super) fn backend_addresses(&self) -> impl Iterator<Item = Vec<IpAddr>> {
        let underlay = self.config.underlay();
        self.config.backends().iter().map(move |backend| {
            let addresses = backend.addresses();
            addresses.filter(|address| underlay.address_for(*address).is_some()).collect()
        })
    }

    /// The underlay addresses that packets to backends are sent from, each with its setting.
    pub(super) fn sources(&self) -> impl Iterator<Item = (IpAddr, &'static str)> {
        let underlay = self.config.underlay();
        let (v4, v6) = (underlay.v4.map(IpAddr::V4), underlay.v6.map(IpAddr::V6));
        let addresses = v4.zip(Some("underlay.v4")).into_iter().chain(v6.zip(Some("underlay.v6")));
        addresses.filter(|(address, _)| {
            let mut backends = self.backend_addresses().flatten();
            backends.any(|backend| backend.is_ipv4() == address.is_ipv4())
        })
    }

    /// The largest overhead of encapsulation after the outer IP header, in bytes.
    pub(super) fn overhead(&self) -> u32 {
        let services = self.config.services().iter();
        services.map(|service| service.encapsulation().overhead()).max().unwrap_or(0)
    }

    /// The hash key's fingerprint as a number.
    pub(super) fn fingerprint(&self) -> u64 {
        u64::from_str_radix(&self.key.fingerprint(), 16).unwrap_or(0)
    }
}

/// The source address of outer headers of one family, and the bits of its last 32-bit word (network
/// byte order) that spread flows over the sources of `prefix`.
fn source(own: Option<Address>, prefix: Option<IpNet>) -> (Address, u32) {
    let Some(prefix) = prefix else { return (own.unwrap_or(Address::NONE), 0) };
    let bits = prefix.max_prefix_len() - prefix.prefix_len();
    (Address::from(prefix.network()), u32::MAX.unbounded_shr(32 - u32::from(bits).min(32)).to_be())
}

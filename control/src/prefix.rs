//! Prefixes as keys of longest-prefix maps.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_datapath::abi::PrefixKey;

/// The key of a prefix.
pub fn prefix_key(prefix: IpNet) -> PrefixKey {
    PrefixKey::prefix(prefix.addr().into(), prefix.prefix_len().into())
}

/// The inverse of [`prefix_key`].
pub fn key_prefix(key: PrefixKey) -> IpNet {
    let (address, length) = key.to_prefix();
    let address = IpAddr::from(address);
    // The daemon writes no length that exceeds the address.
    IpNet::new(address, length as u8).unwrap_or(address.into())
}

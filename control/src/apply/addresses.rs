//! VIP addresses and prefixes, which are in two maps: an address in `VIP_ADDRESSES`, where the
//! program finds it with a hash lookup, and a prefix in the trie `VIP_PREFIXES`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_datapath::Address;
use sluice_datapath::abi::VipAddress;
use sluice_datapath::abi::maps::balancer::{VIP_ADDRESSES, VIP_PREFIXES};

use super::MapStore;
use crate::prefix::{key_prefix, prefix_key};

/// Reads all VIP addresses and prefixes.
pub fn vip_addresses<M: MapStore>(maps: &M) -> Result<BTreeMap<IpNet, VipAddress>, M::Error> {
    let addresses = maps.entries(VIP_ADDRESSES)?.into_iter();
    let prefixes = maps.entries(VIP_PREFIXES)?.into_iter();
    Ok(addresses
        .map(|(address, entry)| (IpAddr::from(address).into(), entry))
        .chain(prefixes.map(|(key, entry)| (key_prefix(key), entry)))
        .collect())
}

/// Adds or changes VIP addresses and prefixes.
pub fn put_vip_addresses<M: MapStore>(
    maps: &mut M,
    entries: &[(IpNet, VipAddress)],
) -> Result<(), M::Error> {
    let (addresses, prefixes): (Vec<_>, Vec<_>) =
        entries.iter().copied().partition(|(prefix, _)| is_address(*prefix));
    let addresses = addresses.into_iter().map(|(prefix, entry)| (address_of(prefix), entry));
    maps.put(VIP_ADDRESSES, &addresses.collect::<Vec<_>>())?;
    let prefixes = prefixes.into_iter().map(|(prefix, entry)| (prefix_key(prefix), entry));
    maps.put(VIP_PREFIXES, &prefixes.collect::<Vec<_>>())
}

/// Removes VIP addresses and prefixes. Absent ones are ignored.
pub fn remove_vip_addresses<M: MapStore>(maps: &mut M, prefixes: &[IpNet]) -> Result<(), M::Error> {
    let (addresses, prefixes): (Vec<_>, Vec<_>) =
        prefixes.iter().copied().partition(|prefix| is_address(*prefix));
    maps.remove(VIP_ADDRESSES, &addresses.into_iter().map(address_of).collect::<Vec<_>>())?;
    maps.remove(VIP_PREFIXES, &prefixes.into_iter().map(prefix_key).collect::<Vec<_>>())
}

fn is_address(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn address_of(prefix: IpNet) -> Address {
    Address::from(prefix.addr())
}

//! The hash of a flow and the slot that it selects.

use std::hash::Hasher as _;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::packets::fixture::{HASH_KEY, SlotSpec};

/// The hashed 5-tuple: addresses, ports and protocol in wire order.
pub type Tuple = Vec<u8>;

/// The slot of a flow, by the siphasher crate; `None` in an empty table.
pub fn slot(slots: &[SlotSpec], tuple: &[u8]) -> Option<SlotSpec> {
    let index = u128::from(hash(tuple) >> 32) * slots.len() as u128 / (1 << 32);
    slots.get(usize::try_from(index).ok()?).copied()
}

/// The flow hash: SipHash-1-3.
pub fn hash(tuple: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEY[0], HASH_KEY[1]);
    hasher.write(tuple);
    hasher.finish()
}

/// The bytes of a 5-tuple that are hashed.
pub fn tuple(source: IpAddr, destination: IpAddr, ports: &[u8], protocol: u8) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [octets(source), octets(destination), ports.to_vec(), vec![protocol]].concat()
}

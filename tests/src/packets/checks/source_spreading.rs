//! Outer source addresses that depend on the flow, so that NICs of backends spread flows over their
//! queues.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use etherparse::SlicedPacket;
use ipnet::IpNet;
use sluice_datapath::abi::Settings;

use crate::packets::bindings::BalancerBinding;
use crate::packets::bindings::entries::settings;
use crate::packets::fixture::Fixture;
use crate::packets::frames::{Client, L4Kind};
use crate::packets::oracle::flow;

/// Prefixes of outer sources; eight host bits of IPv4 and the last 32 of IPv6 vary.
const PREFIXES: [&str; 2] = ["10.9.8.0/24", "2001:db8:9::/64"];

/// The settings that [`check`] needs.
pub fn spread() -> Settings {
    let [v4, v6] = PREFIXES.map(|prefix| prefix.parse::<IpNet>().expect("a prefix"));
    Settings {
        source_v4: v4.addr().into(),
        source_v6: v6.addr().into(),
        source_bits_v4: 0xff_u32.to_be(),
        source_bits_v6: u32::MAX,
        ..settings()
    }
}

/// Checks that all packets of a flow have the same outer source: the prefix and the low bits of the
/// flow's hash.
pub fn check(balancer: &mut dyn BalancerBinding) -> anyhow::Result<()> {
    const FLOWS: u16 = 200;

    balancer.configure(&Fixture::new())?;
    for client in Client::each() {
        let mut sources = BTreeSet::new();
        for port in 0..FLOWS {
            let client = client.clone().from_port(20_000 + port);
            let expected = expected(&client);
            for _ in 0..2 {
                let (action, bytes) = balancer.send(&client.frame().into())?;
                ensure!(action == balancer.forward_action(), "{action:?}");
                let source = outer_source(&bytes)?;
                ensure!(source == expected, "the source is {source} instead of {expected}");
            }
            sources.insert(expected);
        }
        ensure!(sources.len() > 100, "{FLOWS} flows have {} sources", sources.len());
    }
    Ok(())
}

/// The expected outer source of a client's packet.
fn expected(client: &Client) -> IpAddr {
    let ports =
        [client.source.port().to_be_bytes(), client.destination.port().to_be_bytes()].concat();
    let protocol = if client.transport == L4Kind::Udp { 17 } else { 6 };
    let hash =
        flow::hash(&flow::tuple(client.source.ip(), client.destination.ip(), &ports, protocol));
    // The source takes the hash's bytes in memory order: the lowest byte first.
    let bits = (hash as u32).to_ne_bytes();
    match PREFIXES[usize::from(client.is_v6())].parse::<IpNet>().expect("a prefix") {
        IpNet::V4(prefix) => {
            let mut address = prefix.addr().octets();
            address[3] = bits[3];
            address.into()
        }
        IpNet::V6(prefix) => {
            let mut address = prefix.addr().octets();
            address[12..].copy_from_slice(&bits);
            address.into()
        }
    }
}

/// The source of the outer header of a frame. An invalid IPv4 checksum is an error.
fn outer_source(frame: &[u8]) -> anyhow::Result<IpAddr> {
    match SlicedPacket::from_ethernet(frame)?.net.context("there is no IP header")? {
        etherparse::NetSlice::Ipv4(packet) => {
            let header = packet.header().to_header();
            ensure!(
                header.header_checksum == header.calc_header_checksum(),
                "the outer checksum is invalid"
            );
            Ok(header.source.into())
        }
        etherparse::NetSlice::Ipv6(packet) => Ok(packet.header().source_addr().into()),
        etherparse::NetSlice::Arp(_) => anyhow::bail!("there is no IP header"),
    }
}

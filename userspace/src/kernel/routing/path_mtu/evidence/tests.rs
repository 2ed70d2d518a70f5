//! The packet path encapsulates a client's packet; an error quotes the result.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use sluice_datapath::abi::{
    AddressOptions, Backend, CachedVip, Connection, NextHop, QuicIdLengths, QuicServerKey,
    ServiceRef, Slot, TCP, TableHead, VipAddress, VipKey,
};
use sluice_datapath::memory::{MemoryBalancer, PacketBuffer, TableWords, balance};

use super::super::{Malformed, UdpPorts};
use super::*;

const SERVICE: u32 = 1;
const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const MTU: u16 = 1600;

fn settings() -> Settings {
    Settings {
        features: Features::ALL,
        hash_key: [1, 2],
        source_v4: Ipv4Addr::new(10, 9, 0, 0).into(),
        source_v6: Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0).into(),
        gue_port: Port::new(6080),
        ..Settings::NONE
    }
}

/// Two backends in turn in the slots of one service.
fn balancer(settings: Settings, options: VipOptions) -> MemoryBalancer {
    let mut balancer = MemoryBalancer::new(settings);
    let maps = &mut balancer.maps;
    for (id, address, port, protocol) in [
        (1, Address::from(VIP_V4), 443, TCP),
        (2, VIP_V6.into(), 443, TCP),
        (1, VIP_V4.into(), 53, UDP),
        (2, VIP_V6.into(), 53, UDP),
    ] {
        let entry =
            VipAddress { cached: CachedVip::NONE, ..VipAddress::new(id, AddressOptions::NONE) };
        maps.vip_addresses.get_mut().insert(address, entry);
        let service = ServiceRef { index: SERVICE, options };
        maps.vips.get_mut().insert(VipKey::new(id, Port::new(port), protocol), service);
    }
    let head = TableHead { slots: 251, tracked: true };
    let slots = (0..251).map(|slot| Slot { backend: slot % 2 + 1, hint: 0 });
    maps.tables.insert(SERVICE, TableWords::new(head, 1, 0, slots));
    for index in [1, 2_u16] {
        let backend = Backend {
            v4: Ipv4Addr::new(10, 0, 1, index as u8).into(),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, index).into(),
            epoch: 1,
        };
        maps.backends.get_mut().insert(index.into(), backend);
        for family in [Family::V4, Family::V6] {
            let hop = NextHop::new(7, MTU);
            maps.next_hops.get_mut().insert(NextHop::index(index, family), hop);
        }
    }
    balancer
}

/// A client's frame.
fn client(v6: bool, udp: bool, port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
    let builder = if v6 {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7);
        builder.ipv6(source.octets(), VIP_V6.octets(), 64)
    } else {
        builder.ipv4([198, 51, 100, 7], VIP_V4.octets(), 64)
    };
    let mut frame = Vec::new();
    if udp {
        builder.udp(port, 53).write(&mut frame, &[7; 1200]).unwrap();
    } else {
        builder.tcp(port, 443, 1, 64_000).ack(1).write(&mut frame, &[7; 1200]).unwrap();
    }
    frame
}

/// The error about an encapsulated packet, of which `quoted` bytes are quoted after the outer IP
/// header.
fn error(packet: &[u8], quoted: usize) -> Result<TooBigError, Malformed> {
    let mut bytes = Vec::new();
    if packet[0] >> 4 == 6 {
        let quote = &packet[..(40 + quoted).min(packet.len())];
        etherparse::Icmpv6Header::new(etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 })
            .write(&mut bytes)
            .unwrap();
        bytes.extend(quote);
        return TooBigError::from_icmpv6(&bytes);
    }
    let quote = &packet[..(20 + quoted).min(packet.len())];
    let kind =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
    PacketBuilder::ipv4([10, 0, 0, 254], [10, 0, 0, 1], 64)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
        .write(&mut bytes, quote)
        .unwrap();
    TooBigError::from_ipv4(&bytes)
}

/// Kinds of packets: family, UDP, the options of the service.
fn kinds() -> impl Iterator<Item = (bool, bool, VipOptions)> {
    let options = [
        VipOptions::NONE,
        VipOptions::GUE,
        VipOptions::HASH_CLIENT,
        VipOptions::GUE.with(VipOptions::HASH_SOURCE),
    ];
    [(false, false), (false, true), (true, false), (true, true)]
        .into_iter()
        .flat_map(move |(v6, udp)| options.into_iter().map(move |options| (v6, udp, options)))
}

/// Encapsulated packets of several flows.
fn sent(balancer: &MemoryBalancer, v6: bool, udp: bool) -> impl Iterator<Item = Vec<u8>> {
    (40_000..40_020).map(move |port| {
        let mut frame = client(v6, udp, port);
        balance(PacketBuffer::new(&mut frame), balancer).unwrap();
        frame.split_off(14)
    })
}

#[test]
fn an_error_proves_a_packet_of_the_packet_path_and_no_changed_one() {
    for (v6, udp, options) in kinds() {
        let settings = settings();
        let balancer = balancer(settings, options);
        for packet in sent(&balancer, v6, udp) {
            let good = error(&packet, 600).unwrap();
            let evidence = |error: &TooBigError| Evidence::of(error, &settings, &balancer);
            assert_eq!(evidence(&good), Evidence::Proven, "{good:?}");
            // The last byte of the two backends' addresses is 1 or 2.
            let mut other = packet.clone();
            let last = if v6 { 39 } else { 19 };
            other[last] ^= 3;
            let flow = |port: u16| {
                let mut flow = good.flow.unwrap();
                flow.destination_port = Port::new(port);
                Some(flow)
            };
            let mut refuted = vec![
                error(&other, 600).unwrap(),
                TooBigError { flow: flow(444), ..good },
                TooBigError { source: (if v6 { VIP_V6.into() } else { VIP_V4.into() }), ..good },
            ];
            match good.udp {
                Some(UdpPorts { source, destination }) => {
                    let source = source ^ 1;
                    refuted
                        .push(TooBigError { udp: Some(UdpPorts { source, destination }), ..good });
                    refuted.push(TooBigError { udp: None, ..good });
                }
                None => {
                    let udp = Some(UdpPorts { source: 49_152, destination: 6080 });
                    refuted.push(TooBigError { udp, ..good });
                }
            }
            for error in refuted {
                assert_eq!(evidence(&error), Evidence::Refuted, "{error:?}");
            }
        }
    }
}

#[test]
fn the_source_of_a_flow_with_spread_sources_is_its_own() {
    let settings = Settings {
        source_bits_v4: u32::from_ne_bytes([0, 0, 0xff, 0xff]),
        source_bits_v6: u32::from_ne_bytes([0, 0, 0xff, 0xff]),
        ..settings()
    };
    for v6 in [false, true] {
        let balancer = balancer(settings, VipOptions::NONE);
        for packet in sent(&balancer, v6, false) {
            let good = error(&packet, 600).unwrap();
            assert_eq!(Evidence::of(&good, &settings, &balancer), Evidence::Proven);
            let mut other = packet.clone();
            other[if v6 { 23 } else { 15 }] ^= 1;
            let other = error(&other, 600).unwrap();
            assert_eq!(Evidence::of(&other, &settings, &balancer), Evidence::Refuted);
        }
    }
}

#[test]
fn a_flow_keeps_the_backend_of_its_connection() {
    let settings = settings();
    let mut balancer = balancer(settings, VipOptions::NONE);
    let packets: Vec<_> = sent(&balancer, false, false).collect();
    // The first backend drains: its slots are those of the second one, its connections stay.
    let slots = (0..251).map(|_| Slot { backend: 2, hint: 0 });
    let head = TableHead { slots: 251, tracked: true };
    balancer.maps.tables.insert(SERVICE, TableWords::new(head, 2, 0, slots));
    let evidence = |balancer: &MemoryBalancer| -> Vec<_> {
        let error = |packet: &Vec<u8>| error(packet, 600).unwrap();
        packets.iter().map(|packet| Evidence::of(&error(packet), &settings, balancer)).collect()
    };
    assert!(evidence(&balancer).iter().all(|evidence| *evidence == Evidence::Proven));
    balancer.maps.connections.get_mut().clear();
    assert!(evidence(&balancer).contains(&Evidence::Refuted));
}

#[test]
fn a_short_quote_is_no_evidence() {
    for (v6, udp, options) in kinds() {
        let settings = settings();
        let balancer = balancer(settings, options);
        let packet = sent(&balancer, v6, udp).next().unwrap();
        let gue = if options.has(VipOptions::GUE) { 8 } else { 0 };
        let ports = gue + if v6 { 44 } else { 24 };
        let evidence =
            |quoted| error(&packet, quoted).map(|error| Evidence::of(&error, &settings, &balancer));
        assert_eq!(evidence(ports), Ok(Evidence::Proven), "{v6} {udp} {options:?}");
        for quoted in gue + 8..ports {
            assert_eq!(evidence(quoted), Ok(Evidence::Missing), "{quoted} bytes");
        }
    }
}

#[test]
fn a_fragment_is_no_evidence() {
    let settings = settings();
    let balancer = balancer(settings, VipOptions::NONE);
    let mut packet = sent(&balancer, false, true).next().unwrap();
    // The flags of the inner header: more fragments.
    packet[20 + 6] = 0x20;
    let evidence = Evidence::of(&error(&packet, 600).unwrap(), &settings, &balancer);
    assert_eq!(evidence, Evidence::Missing);
}

#[test]
fn a_quic_packet_to_another_backend_than_its_flow_selects_is_no_evidence() {
    let settings = settings();
    let mut balancer = balancer(settings, VipOptions::QUIC);
    let id = [0xc4, 0x60, 0x5e];
    let key = QuicServerKey::new(SERVICE, 0, &id).unwrap();
    balancer.maps.quic_servers.get_mut().insert(key, Connection { backend: 1, epoch: 1 });
    balancer.maps.quic_id_lengths.get_mut().insert(SERVICE, QuicIdLengths::NONE.with(0, 3));
    let evidence: Vec<_> = (40_000..40_020)
        .map(|port| {
            let mut frame = client(false, true, port);
            frame[14 + 28..][..5].copy_from_slice(&[0x40, 0x07, id[0], id[1], id[2]]);
            balance(PacketBuffer::new(&mut frame), &balancer).unwrap();
            let packet = frame.split_off(14);
            assert_eq!(packet[19], 1, "the server ID selects the first backend");
            Evidence::of(&error(&packet, 600).unwrap(), &settings, &balancer)
        })
        .collect();
    assert!(!evidence.contains(&Evidence::Refuted), "{evidence:?}");
    assert!(evidence.contains(&Evidence::Missing) && evidence.contains(&Evidence::Proven));
}

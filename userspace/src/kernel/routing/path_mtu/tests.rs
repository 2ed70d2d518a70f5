use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, UdpHeader,
};
use proptest::prelude::*;
use sluice_datapath::abi::{Backend, Features, Port};

use super::*;

const SECOND: u64 = 1_000_000_000;
/// The time of the tests: an hour after boot.
const NOW: u64 = 3_600 * SECOND;

const GUE_PORT: u16 = 6080;

const ROUTE: BackendPath = BackendPath { next_hop: NextHop::new(7, 1600), gateway: None };

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        features: Features::GUE,
        gue_port: Port::new(GUE_PORT),
        source_v4: address("10.0.0.1").into(),
        source_v6: address("2001:db8::1").into(),
        ..Settings::NONE
    }
}

/// The error for an outer packet of 1600 bytes that does not fit a link of 1500.
fn too_big_error(outer: Family, inner: Family) -> TooBigError {
    let (source, destination) = match outer {
        Family::V4 => ("10.0.0.1", "10.0.1.1"),
        Family::V6 => ("2001:db8::1", "2001:db8:1::1"),
    };
    let (source, destination) = (address(source), address(destination));
    TooBigError {
        mtu: 1500,
        source,
        destination,
        length: 1600,
        inner: Some(inner),
        udp: None,
        flow: None,
        dont_fragment: true,
    }
}

fn udp(destination: u16) -> Option<UdpPorts> {
    Some(UdpPorts { source: 49_152, destination })
}

const FAMILIES: [(Family, Family); 4] = [
    (Family::V4, Family::V4),
    (Family::V6, Family::V6),
    (Family::V4, Family::V6),
    (Family::V6, Family::V4),
];

/// The error as received from a raw socket, built with etherparse.
fn wire(error: &TooBigError) -> Vec<u8> {
    let (mut protocol, version) = match error.inner {
        Some(Family::V4) | None => (IpNumber::IPV4, 0x45),
        Some(Family::V6) => (IpNumber::IPV6, 0x60),
    };
    let mut inner_bytes = vec![version, 0, 0, 0, 0, 0, 0, 0];
    if let Some(UdpPorts { source, destination }) = error.udp {
        protocol = IpNumber::UDP;
        let header = UdpHeader {
            source_port: source,
            destination_port: destination,
            length: 100,
            checksum: 0,
        };
        // The minimum quote.
        inner_bytes.truncate(usize::from(error.inner.is_some()));
        inner_bytes.splice(0..0, header.to_bytes());
    }
    let mut quote = Vec::new();
    match (error.source, error.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let payload = error.length as u16 - 20;
            let mut header =
                Ipv4Header::new(payload, 63, protocol, source.octets(), destination.octets())
                    .unwrap();
            header.dont_fragment = error.dont_fragment;
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut quote).unwrap();
            quote.extend(&inner_bytes);
            let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: error.mtu as u16,
            };
            let icmp =
                Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), &quote);
            let length = (icmp.header_len() + quote.len()) as u16;
            let header =
                Ipv4Header::new(length, 64, IpNumber::ICMP, [10, 0, 0, 254], source.octets())
                    .unwrap();
            let mut packet = Vec::new();
            header.write(&mut packet).unwrap();
            icmp.write(&mut packet).unwrap();
            [packet, quote].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                payload_length: error.length as u16 - 40,
                next_header: protocol,
                hop_limit: 63,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            header.write(&mut quote).unwrap();
            quote.extend(&inner_bytes);
            let mut message = Vec::new();
            Icmpv6Header::new(Icmpv6Type::PacketTooBig { mtu: error.mtu })
                .write(&mut message)
                .unwrap();
            [message, quote].concat()
        }
        other => panic!("{other:?} in one packet"),
    }
}

fn read(outer: Family, bytes: &[u8]) -> Result<TooBigError, Malformed> {
    match outer {
        Family::V4 => TooBigError::from_ipv4(bytes),
        Family::V6 => TooBigError::from_icmpv6(bytes),
    }
}

fn take_error(path_mtus: &mut PathMtus, error: &TooBigError, now: u64) -> PathErrorOutcome {
    path_mtus.take_error(error, &settings(), Some(ROUTE), Evidence::Missing, None, now)
}

/// The MTU towards the error's destination.
fn mtu(path_mtus: &PathMtus, error: &TooBigError) -> u32 {
    path_mtus.limit(error.destination, ROUTE.next_hop).mtu.into()
}

#[test]
fn an_error_lowers_the_mtu_of_its_backend_and_family_only() {
    for (outer, inner) in FAMILIES {
        let error = too_big_error(outer, inner);
        assert_eq!(read(outer, &wire(&error)), Ok(error), "{inner} in {outer}");
        let mut path_mtus = PathMtus::default();
        assert_eq!(take_error(&mut path_mtus, &error, NOW), PathErrorOutcome::Lowered);
        assert_eq!(mtu(&path_mtus, &error), 1500);
        for other in ["10.0.1.2", "2001:db8:1::2", "192.0.2.1"] {
            assert_eq!(path_mtus.limit(address(other), ROUTE.next_hop), ROUTE.next_hop);
        }
        let nowhere = NextHop::NONE;
        assert_eq!(path_mtus.limit(error.destination, nowhere), nowhere);
    }
}

#[test]
fn an_error_about_a_gue_packet_is_accepted_only_with_gue() {
    for (outer, inner) in FAMILIES {
        let error = TooBigError { udp: udp(GUE_PORT), ..too_big_error(outer, inner) };
        assert_eq!(read(outer, &wire(&error)), Ok(error), "{inner} in {outer}");
        let least = if outer == Family::V4 { 1308 } else { 1328 };
        let elsewhere = TooBigError { udp: udp(GUE_PORT + 1), ..error };
        for (error, outcome) in [
            (elsewhere, PathErrorOutcome::NeverSent),
            (TooBigError { mtu: least - 1, ..error }, PathErrorOutcome::TooSmall),
            (TooBigError { mtu: least, ..error }, PathErrorOutcome::Lowered),
        ] {
            assert_eq!(take_error(&mut PathMtus::default(), &error, NOW), outcome, "{error:?}");
        }
        let unused = Settings { features: Features::NONE, ..settings() };
        assert_eq!(
            PathMtus::default().take_error(
                &error,
                &unused,
                Some(ROUTE),
                Evidence::Missing,
                None,
                NOW
            ),
            PathErrorOutcome::NeverSent
        );
        // Too little is quoted, or the inner version is neither 4 nor 6.
        let mut cut = wire(&error);
        cut.pop();
        assert_eq!(read(outer, &cut), Err(Malformed));
        if outer == Family::V6 {
            let mut other = wire(&error);
            let first = other.len() - 1;
            other[first] = 0x10;
            assert_eq!(read(outer, &other), Err(Malformed));
        }
    }
}

#[test]
fn a_quote_of_eight_bytes_holds_a_udp_header() {
    let error =
        TooBigError { inner: None, udp: udp(GUE_PORT), ..too_big_error(Family::V4, Family::V4) };
    let bytes = wire(&error);
    assert_eq!(bytes.len(), 20 + 8 + 20 + 8);
    assert_eq!(read(Family::V4, &bytes), Ok(error));
    // The inner packet may be IPv6.
    for (mtu, outcome) in [(1307, PathErrorOutcome::TooSmall), (1308, PathErrorOutcome::Lowered)] {
        assert_eq!(
            take_error(&mut PathMtus::default(), &TooBigError { mtu, ..error }, NOW),
            outcome,
            "{mtu}"
        );
    }
    // ICMPv6 errors quote as much as fits.
    let error =
        TooBigError { inner: None, udp: udp(GUE_PORT), ..too_big_error(Family::V6, Family::V4) };
    assert_eq!(read(Family::V6, &wire(&error)), Err(Malformed));
}

#[test]
fn every_invalid_error_has_its_outcome_and_lowers_nothing() {
    for (outer, inner) in FAMILIES {
        let good = too_big_error(outer, inner);
        let least = if outer == Family::V4 { 1300 } else { 1320 };
        let other_source = if outer == Family::V4 { "10.0.0.2" } else { "2001:db8::2" };
        let mut cases = vec![
            (TooBigError { source: address(other_source), ..good }, PathErrorOutcome::OtherSource),
            (TooBigError { mtu: 0, ..good }, PathErrorOutcome::NoMtu),
            (TooBigError { length: 1500, ..good }, PathErrorOutcome::NeverSent),
            (TooBigError { mtu: 1600, length: 1600, ..good }, PathErrorOutcome::NeverSent),
            (TooBigError { mtu: u32::MAX, ..good }, PathErrorOutcome::NeverSent),
            (TooBigError { mtu: least - 1, ..good }, PathErrorOutcome::TooSmall),
            (TooBigError { mtu: 68, ..good }, PathErrorOutcome::TooSmall),
        ];
        if outer == Family::V4 {
            cases.push((TooBigError { dont_fragment: false, ..good }, PathErrorOutcome::NeverSent));
        }
        for (error, outcome) in cases {
            let mut path_mtus = PathMtus::default();
            assert_eq!(take_error(&mut path_mtus, &error, NOW), outcome, "{error:?}");
            assert_eq!(path_mtus, PathMtus::default());
        }
        let mut path_mtus = PathMtus::default();
        let unreachable = BackendPath { next_hop: NextHop::NONE, gateway: None };
        for path in [None, Some(unreachable)] {
            assert_eq!(
                path_mtus.take_error(&good, &settings(), path, Evidence::Missing, None, NOW),
                PathErrorOutcome::OtherDestination
            );
        }
        assert_eq!(
            path_mtus.take_error(&good, &Settings::NONE, Some(ROUTE), Evidence::Missing, None, NOW),
            PathErrorOutcome::OtherSource
        );
        assert_eq!(path_mtus, PathMtus::default());
        assert_eq!(
            take_error(&mut path_mtus, &TooBigError { mtu: least, ..good }, NOW),
            PathErrorOutcome::Lowered
        );
    }
}

#[test]
fn only_proof_lowers_an_mtu_below_the_default_minimum_and_only_to_the_configured_one() {
    use Evidence::{Missing, Proven, Refuted};
    use PathErrorOutcome::{Lowered, TooSmall, WrongFlow};

    for (outer, inner) in FAMILIES {
        let default = if outer == Family::V4 { 1300 } else { 1320 };
        let least = match (outer, inner) {
            (Family::V4, Family::V4) => 596,
            (Family::V4, Family::V6) => 1300,
            (Family::V6, Family::V4) => 1280,
            (Family::V6, Family::V6) => 1320,
        };
        for (mtu, evidence, configured, outcome) in [
            (default, Proven, None, Lowered),
            (default - 1, Proven, None, TooSmall),
            (least, Proven, Some(596), Lowered),
            (least - 1, Proven, Some(596), TooSmall),
            (default, Missing, Some(596), Lowered),
            (default - 1, Missing, Some(596), TooSmall),
            // A larger minimum holds for all errors.
            (1450, Missing, Some(1450), Lowered),
            (1449, Proven, Some(1450), TooSmall),
            (1500, Refuted, None, WrongFlow),
            (68, Refuted, Some(596), WrongFlow),
        ] {
            let error = TooBigError { mtu, ..too_big_error(outer, inner) };
            let mut path_mtus = PathMtus::default();
            let taken =
                path_mtus.take_error(&error, &settings(), Some(ROUTE), evidence, configured, NOW);
            assert_eq!(taken, outcome, "{mtu} {evidence:?} {configured:?}");
            assert_eq!(path_mtus == PathMtus::default(), outcome != Lowered);
        }
    }
}

#[test]
fn an_error_about_any_source_in_the_prefix_is_accepted() {
    let bits = u32::from_ne_bytes([0, 0, 0x0f, 0xff]);
    let settings = Settings {
        source_v4: address("10.0.0.0").into(),
        source_v6: address("2001:db8::").into(),
        source_bits_v4: bits,
        source_bits_v6: bits,
        ..Settings::NONE
    };
    for (family, source, outcome) in [
        (Family::V4, "10.0.15.7", PathErrorOutcome::Lowered),
        (Family::V4, "10.0.16.7", PathErrorOutcome::OtherSource),
        (Family::V6, "2001:db8::fff", PathErrorOutcome::Lowered),
        (Family::V6, "2001:db8:0:1::fff", PathErrorOutcome::OtherSource),
    ] {
        let error = TooBigError { source: address(source), ..too_big_error(family, family) };
        let mut path_mtus = PathMtus::default();
        let taken =
            path_mtus.take_error(&error, &settings, Some(ROUTE), Evidence::Missing, None, NOW);
        assert_eq!(taken, outcome, "{source}");
    }
}

#[test]
fn an_mtu_expires_after_ten_minutes_and_the_next_error_lowers_it_again() {
    let (error, mut path_mtus) = (too_big_error(Family::V4, Family::V4), PathMtus::default());
    assert_eq!(path_mtus.next_expiry(), None);
    assert_eq!(take_error(&mut path_mtus, &error, NOW), PathErrorOutcome::Lowered);
    // Errors about packets in flight do not extend the lifetime.
    assert_eq!(take_error(&mut path_mtus, &error, NOW + 5 * SECOND), PathErrorOutcome::Known);
    assert_eq!(path_mtus.next_expiry(), Some(NOW + 600 * SECOND));
    assert_eq!((path_mtus.expire(NOW + 600 * SECOND - 1), mtu(&path_mtus, &error)), (vec![], 1500));
    assert_eq!(
        (path_mtus.expire(NOW + 600 * SECOND), mtu(&path_mtus, &error)),
        (vec![error.destination], 1600)
    );
    assert_eq!(
        (path_mtus.next_expiry(), take_error(&mut path_mtus, &error, NOW)),
        (None, PathErrorOutcome::Lowered)
    );
}

#[test]
fn errors_lower_the_mtu_step_by_step_never_raise_it_and_not_too_often() {
    let (error, mut path_mtus) = (too_big_error(Family::V6, Family::V6), PathMtus::default());
    let of = |mtu| TooBigError { mtu, ..error };
    let later = NOW + SECOND;
    for (reported, when, outcome, expected) in [
        (1500, NOW, PathErrorOutcome::Lowered, 1500),
        (1400, NOW, PathErrorOutcome::TooOften, 1500),
        (1400, later - 1, PathErrorOutcome::TooOften, 1500),
        (1400, later, PathErrorOutcome::Lowered, 1400),
        (1500, later + 5 * SECOND, PathErrorOutcome::Known, 1400),
        (1400, later + 5 * SECOND, PathErrorOutcome::Known, 1400),
        (1320, later + 5 * SECOND, PathErrorOutcome::Lowered, 1320),
    ] {
        assert_eq!(
            take_error(&mut path_mtus, &of(reported), when),
            outcome,
            "{reported} at {when}"
        );
        assert_eq!(mtu(&path_mtus, &error), expected);
    }
}

#[test]
fn a_changed_route_drops_the_path_mtu() {
    let (v4, v6) = (too_big_error(Family::V4, Family::V4), too_big_error(Family::V6, Family::V6));
    let mut path_mtus = PathMtus::default();
    for error in [v4, v6] {
        assert_eq!(take_error(&mut path_mtus, &error, NOW), PathErrorOutcome::Lowered);
    }
    path_mtus.retain(|address| address.is_ipv6());
    assert_eq!((mtu(&path_mtus, &v4), mtu(&path_mtus, &v6)), (1600, 1500));
    // The path MTU does not raise a route's own MTU.
    let small = NextHop::new(7, 1400);
    assert_eq!(path_mtus.limit(v6.destination, small), small);
}

#[test]
fn the_next_daemon_restores_valid_path_mtus_only() {
    let backend = |name: Option<&str>, address: &str, epoch| HaveBackend {
        name: name.map(str::to_owned),
        entry: Backend { v4: self::address(address).into(), v6: Address::NONE, epoch },
        epoch,
        draining: false,
        reusable_after: 0,
    };
    let (error, mut path_mtus) = (too_big_error(Family::V4, Family::V4), PathMtus::default());
    take_error(&mut path_mtus, &error, NOW);
    let backends = BTreeMap::from([
        (1, backend(Some("a"), "10.0.1.1", 3)),
        (2, backend(Some("b"), "10.0.1.2", 1)),
    ]);
    let mut map = vec![PathMtuRecord::NONE; 6];
    let changed = path_mtus.changed_records(&backends, &map);
    assert_eq!(changed.len(), 1, "{changed:?}");
    map[changed[0].0 as usize] = changed[0].1;
    assert_eq!(path_mtus.changed_records(&backends, &map), []);

    assert_eq!(PathMtus::restored(&backends, &map, NOW + 599 * SECOND), path_mtus);
    assert_eq!(PathMtus::restored(&backends, &map, NOW + 600 * SECOND), PathMtus::default());
    // The index belongs to another backend now, or to none.
    for other in [backend(Some("c"), "10.0.1.3", 4), backend(None, "10.0.1.1", 3)] {
        let backends = BTreeMap::from([(1, other)]);
        assert_eq!(PathMtus::restored(&backends, &map, NOW), PathMtus::default());
    }
    // Expired path MTUs are removed from the map.
    path_mtus.expire(NOW + 600 * SECOND);
    assert_eq!(path_mtus.changed_records(&backends, &map), [(2, PathMtuRecord::NONE)]);
}

#[test]
fn outcomes_have_unique_indexes_and_names() {
    let indexes: Vec<u32> = PathErrorOutcome::ALL.iter().map(|outcome| outcome.index()).collect();
    assert_eq!(indexes, (0..PathErrorOutcome::ALL.len() as u32).collect::<Vec<_>>());
    let names: std::collections::BTreeSet<_> =
        PathErrorOutcome::ALL.iter().map(|outcome| outcome.name()).collect();
    assert_eq!(names.len(), PathErrorOutcome::ALL.len());
}

#[test]
fn errors_about_packets_with_options_or_non_initial_fragments_are_malformed() {
    let mut error = wire(&too_big_error(Family::V4, Family::V4));
    let sum = |packet: &mut [u8]| {
        packet[22..24].fill(0);
        let sum =
            etherparse::checksum::Sum16BitWords::new().add_slice(&packet[20..]).ones_complement();
        packet[22..24].copy_from_slice(&sum.to_be().to_be_bytes());
    };
    let good = error.clone();
    sum(&mut error);
    assert_eq!(error, good, "the test's own checksum is right");
    let spoil: [fn(&mut [u8]); 4] = [
        |packet| packet[28] = 0x46,
        |packet| {
            packet[34..36].copy_from_slice(&IpFragOffset::try_new(1).unwrap().value().to_be_bytes())
        },
        |packet| packet[37] = 6,
        |packet| packet[48] = 0x65,
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        let mut error = good.clone();
        spoil(&mut error);
        assert_eq!(
            TooBigError::from_ipv4(&error),
            Err(Malformed),
            "{number}: the checksum is wrong"
        );
        sum(&mut error);
        assert_eq!(TooBigError::from_ipv4(&error), Err(Malformed), "{number}");
    }
}

fn any_error() -> impl Strategy<Value = TooBigError> {
    let lengths = prop_oneof![596_u32..2000, 596_u32..=u32::from(u16::MAX)];
    let mtus = prop_oneof![0_u32..2000, 0_u32..=u32::from(u16::MAX)];
    let fields = (0..FAMILIES.len(), lengths, mtus, any::<bool>(), any::<bool>(), any::<bool>());
    fields.prop_map(|(families, length, mtu, dont_fragment, own, gue)| {
        let (outer, inner) = FAMILIES[families];
        let error = too_big_error(outer, inner);
        let source = if own { error.source } else { error.destination };
        let udp = if gue { udp(GUE_PORT) } else { None };
        TooBigError {
            length,
            mtu,
            dont_fragment: dont_fragment || outer == Family::V6,
            source,
            udp,
            ..error
        }
    })
}

proptest! {
    #[test]
    fn a_serialised_error_is_parsed_back(error in any_error()) {
        prop_assert_eq!(read(Family::of(error.source), &wire(&error)), Ok(error));
    }

    #[test]
    fn an_error_truncated_anywhere_is_malformed(error in any_error(), cut in 1_usize..100) {
        let mut bytes = wire(&error);
        bytes.truncate(bytes.len().saturating_sub(cut));
        prop_assert_eq!(read(Family::of(error.source), &bytes), Err(Malformed));
    }

    #[test]
    fn an_ipv4_error_with_a_changed_byte_is_malformed(error in any_error(), at in 20_usize..56, by in 1_u8..=255) {
        let mut bytes = wire(&error);
        if error.source.is_ipv4() {
            bytes[at] ^= by;
            prop_assert_eq!(TooBigError::from_ipv4(&bytes), Err(Malformed));
        }
    }

    #[test]
    fn random_and_mutated_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        error in any_error(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        for outer in [Family::V4, Family::V6] {
            let _ = read(outer, &noise);
        }
        let mut bytes = wire(&error);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read(Family::of(error.source), &bytes);
    }

    #[test]
    fn after_any_errors_an_mtu_only_falls_and_stays_usable(errors in prop::collection::vec((any_error(), 0_u64..3), 1..20)) {
        let (mut path_mtus, mut now) = (PathMtus::default(), NOW);
        for (error, seconds) in errors {
            now += seconds * SECOND;
            let before = mtu(&path_mtus, &error);
            let outcome = take_error(&mut path_mtus, &error, now);
            let after = mtu(&path_mtus, &error);
            prop_assert_eq!(outcome == PathErrorOutcome::Lowered, after < before);
            if after < before {
                prop_assert_eq!(after, error.mtu);
                prop_assert!(error.dont_fragment && error.source == too_big_error(Family::of(error.destination), Family::V4).source);
                prop_assert!(error.length > after);
                // Packets of 1280 bytes still fit.
                let outer = if error.destination.is_ipv4() { 20 } else { 40 };
                prop_assert!(after >= outer + 1280);
            } else {
                prop_assert_eq!(after, before);
            }
        }
    }
}

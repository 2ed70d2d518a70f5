use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, UdpHeader,
};
use proptest::prelude::*;
use sluice_datapath::abi::{Backend, Features, Port};

use super::*;

const SECOND: u64 = 1_000_000_000;
/// When things happen: an hour after boot.
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

/// What a router says when an outer packet of 1600 bytes does not fit a link of 1500.
fn told(outer: Family, inner: Family) -> TooBig {
    let (source, destination) = match outer {
        Family::V4 => ("10.0.0.1", "10.0.1.1"),
        Family::V6 => ("2001:db8::1", "2001:db8:1::1"),
    };
    let (source, destination) = (address(source), address(destination));
    TooBig {
        mtu: 1500,
        source,
        destination,
        length: 1600,
        inner: Some(inner),
        port: None,
        uncut: true,
    }
}

const FAMILIES: [(Family, Family); 4] = [
    (Family::V4, Family::V4),
    (Family::V6, Family::V6),
    (Family::V4, Family::V6),
    (Family::V6, Family::V4),
];

/// The error as it comes out of a raw socket, built by etherparse.
fn wire(error: &TooBig) -> Vec<u8> {
    let (mut protocol, version) = match error.inner {
        Some(Family::V4) | None => (IpNumber::IPV4, 0x45),
        Some(Family::V6) => (IpNumber::IPV6, 0x60),
    };
    let mut behind = vec![version, 0, 0, 0, 0, 0, 0, 0];
    if let Some(port) = error.port {
        protocol = IpNumber::UDP;
        let header =
            UdpHeader { source_port: 49_152, destination_port: port, length: 100, checksum: 0 };
        // Not a byte more than it takes.
        behind.truncate(usize::from(error.inner.is_some()));
        behind.splice(0..0, header.to_bytes());
    }
    let mut quote = Vec::new();
    match (error.source, error.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let payload = error.length as u16 - 20;
            let mut header =
                Ipv4Header::new(payload, 63, protocol, source.octets(), destination.octets())
                    .unwrap();
            header.dont_fragment = error.uncut;
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut quote).unwrap();
            quote.extend(&behind);
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
            quote.extend(&behind);
            let mut message = Vec::new();
            Icmpv6Header::new(Icmpv6Type::PacketTooBig { mtu: error.mtu })
                .write(&mut message)
                .unwrap();
            [message, quote].concat()
        }
        other => panic!("{other:?} in one packet"),
    }
}

fn read(outer: Family, bytes: &[u8]) -> Result<TooBig, Malformed> {
    match outer {
        Family::V4 => TooBig::from_ipv4(bytes),
        Family::V6 => TooBig::from_icmpv6(bytes),
    }
}

fn hear(path_mtus: &mut PathMtus, error: &TooBig, now: u64) -> Outcome {
    path_mtus.hear(error, &settings(), Some(ROUTE), now)
}

/// The MTU that counts towards the error's destination.
fn mtu(path_mtus: &PathMtus, error: &TooBig) -> u32 {
    path_mtus.limit(error.destination, ROUTE.next_hop).mtu.into()
}

#[test]
fn an_error_is_read_and_lowers_the_mtu_of_that_backend_and_family_alone() {
    for (outer, inner) in FAMILIES {
        let error = told(outer, inner);
        assert_eq!(read(outer, &wire(&error)), Ok(error), "{inner} in {outer}");
        let mut path_mtus = PathMtus::default();
        assert_eq!(hear(&mut path_mtus, &error, NOW), Outcome::Lowered);
        assert_eq!(mtu(&path_mtus, &error), 1500);
        for other in ["10.0.1.2", "2001:db8:1::2", "192.0.2.1"] {
            assert_eq!(path_mtus.limit(address(other), ROUTE.next_hop), ROUTE.next_hop);
        }
        let nowhere = NextHop::NONE;
        assert_eq!(path_mtus.limit(error.destination, nowhere), nowhere);
    }
}

#[test]
fn an_error_about_a_packet_in_udp_counts_where_packets_are_sent_so() {
    for (outer, inner) in FAMILIES {
        let error = TooBig { port: Some(GUE_PORT), ..told(outer, inner) };
        assert_eq!(read(outer, &wire(&error)), Ok(error), "{inner} in {outer}");
        let least = match (outer, inner) {
            (Family::V4, Family::V4) => 604,
            (Family::V4, Family::V6) => 1308,
            (Family::V6, Family::V4) => 1280,
            (Family::V6, Family::V6) => 1328,
        };
        let elsewhere = TooBig { port: Some(GUE_PORT + 1), ..error };
        for (error, outcome) in [
            (elsewhere, Outcome::NeverSent),
            (TooBig { mtu: least - 1, ..error }, Outcome::TooSmall),
            (TooBig { mtu: least, ..error }, Outcome::Lowered),
        ] {
            assert_eq!(hear(&mut PathMtus::default(), &error, NOW), outcome, "{error:?}");
        }
        let unused = Settings { features: Features::NONE, ..settings() };
        assert_eq!(PathMtus::default().hear(&error, &unused, Some(ROUTE), NOW), Outcome::NeverSent);
        // Not enough of it is quoted, or it is neither of IPv4 nor of IPv6.
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
fn a_router_may_quote_eight_bytes_which_are_a_udp_header() {
    let error = TooBig { inner: None, port: Some(GUE_PORT), ..told(Family::V4, Family::V4) };
    let bytes = wire(&error);
    assert_eq!(bytes.len(), 20 + 8 + 20 + 8);
    assert_eq!(read(Family::V4, &bytes), Ok(error));
    // It may have been an IPv6 packet.
    for (mtu, outcome) in [(1307, Outcome::TooSmall), (1308, Outcome::Lowered)] {
        assert_eq!(hear(&mut PathMtus::default(), &TooBig { mtu, ..error }, NOW), outcome, "{mtu}");
    }
    // Of IPv6 packets routers quote as much as fits.
    let error = TooBig { inner: None, port: Some(GUE_PORT), ..told(Family::V6, Family::V4) };
    assert_eq!(read(Family::V6, &wire(&error)), Err(Malformed));
}

#[test]
fn each_thing_that_is_wrong_is_refused_with_its_name_and_lowers_nothing() {
    for (outer, inner) in FAMILIES {
        let good = told(outer, inner);
        let least = match (outer, inner) {
            (Family::V4, Family::V4) => 596,
            (Family::V4, Family::V6) => 1300,
            (Family::V6, Family::V4) => 1280,
            (Family::V6, Family::V6) => 1320,
        };
        let other_source = if outer == Family::V4 { "10.0.0.2" } else { "2001:db8::2" };
        let mut cases = vec![
            (TooBig { source: address(other_source), ..good }, Outcome::OtherSource),
            (TooBig { mtu: 0, ..good }, Outcome::NoMtu),
            (TooBig { length: 1500, ..good }, Outcome::NeverSent),
            (TooBig { mtu: 1600, length: 1600, ..good }, Outcome::NeverSent),
            (TooBig { mtu: u32::MAX, ..good }, Outcome::NeverSent),
            (TooBig { mtu: least - 1, ..good }, Outcome::TooSmall),
            (TooBig { mtu: 68, ..good }, Outcome::TooSmall),
        ];
        if outer == Family::V4 {
            cases.push((TooBig { uncut: false, ..good }, Outcome::NeverSent));
        }
        for (error, outcome) in cases {
            let mut path_mtus = PathMtus::default();
            assert_eq!(hear(&mut path_mtus, &error, NOW), outcome, "{error:?}");
            assert_eq!(path_mtus, PathMtus::default());
        }
        let mut path_mtus = PathMtus::default();
        let unreachable = BackendPath { next_hop: NextHop::NONE, gateway: None };
        for way in [None, Some(unreachable)] {
            assert_eq!(path_mtus.hear(&good, &settings(), way, NOW), Outcome::OtherDestination);
        }
        assert_eq!(path_mtus.hear(&good, &Settings::NONE, Some(ROUTE), NOW), Outcome::OtherSource);
        assert_eq!(path_mtus, PathMtus::default());
        assert_eq!(hear(&mut path_mtus, &TooBig { mtu: least, ..good }, NOW), Outcome::Lowered);
    }
}

#[test]
fn an_error_about_any_source_of_the_prefix_counts() {
    let bits = u32::from_ne_bytes([0, 0, 0x0f, 0xff]);
    let settings = Settings {
        source_v4: address("10.0.0.0").into(),
        source_v6: address("2001:db8::").into(),
        source_bits_v4: bits,
        source_bits_v6: bits,
        ..Settings::NONE
    };
    for (source, outcome) in [("10.0.15.7", Outcome::Lowered), ("10.0.16.7", Outcome::OtherSource)]
    {
        let error = TooBig { source: address(source), ..told(Family::V4, Family::V4) };
        assert_eq!(
            PathMtus::default().hear(&error, &settings, Some(ROUTE), NOW),
            outcome,
            "{source}"
        );
    }
    for (source, outcome) in
        [("2001:db8::fff", Outcome::Lowered), ("2001:db8:0:1::fff", Outcome::OtherSource)]
    {
        let error = TooBig { source: address(source), ..told(Family::V6, Family::V6) };
        assert_eq!(
            PathMtus::default().hear(&error, &settings, Some(ROUTE), NOW),
            outcome,
            "{source}"
        );
    }
}

#[test]
fn an_mtu_expires_after_ten_minutes_and_the_next_error_lowers_it_again() {
    let (error, mut path_mtus) = (told(Family::V4, Family::V4), PathMtus::default());
    assert_eq!(path_mtus.next_expiry(), None);
    assert_eq!(hear(&mut path_mtus, &error, NOW), Outcome::Lowered);
    // What was under way does not put it off.
    assert_eq!(hear(&mut path_mtus, &error, NOW + 5 * SECOND), Outcome::Known);
    assert_eq!(path_mtus.next_expiry(), Some(NOW + 600 * SECOND));
    assert_eq!((path_mtus.expire(NOW + 600 * SECOND - 1), mtu(&path_mtus, &error)), (vec![], 1500));
    assert_eq!(
        (path_mtus.expire(NOW + 600 * SECOND), mtu(&path_mtus, &error)),
        (vec![error.destination], 1600)
    );
    assert_eq!(
        (path_mtus.next_expiry(), hear(&mut path_mtus, &error, NOW)),
        (None, Outcome::Lowered)
    );
}

#[test]
fn errors_lower_step_by_step_never_raise_and_not_too_often() {
    let (error, mut path_mtus) = (told(Family::V6, Family::V6), PathMtus::default());
    let of = |mtu| TooBig { mtu, ..error };
    let later = NOW + SECOND;
    for (told, when, outcome, is) in [
        (1500, NOW, Outcome::Lowered, 1500),
        (1400, NOW, Outcome::TooOften, 1500),
        (1400, later - 1, Outcome::TooOften, 1500),
        (1400, later, Outcome::Lowered, 1400),
        (1500, later + 5 * SECOND, Outcome::Known, 1400),
        (1400, later + 5 * SECOND, Outcome::Known, 1400),
        (1320, later + 5 * SECOND, Outcome::Lowered, 1320),
    ] {
        assert_eq!(hear(&mut path_mtus, &of(told), when), outcome, "{told} at {when}");
        assert_eq!(mtu(&path_mtus, &error), is);
    }
}

#[test]
fn another_way_forgets_what_was_told_of_the_one_before() {
    let (v4, v6) = (told(Family::V4, Family::V4), told(Family::V6, Family::V6));
    let mut path_mtus = PathMtus::default();
    for error in [v4, v6] {
        assert_eq!(hear(&mut path_mtus, &error, NOW), Outcome::Lowered);
    }
    path_mtus.keep(|address| address.is_ipv6());
    assert_eq!((mtu(&path_mtus, &v4), mtu(&path_mtus, &v6)), (1600, 1500));
    // A route with an MTU of its own is not raised by it.
    let small = NextHop::new(7, 1400);
    assert_eq!(path_mtus.limit(v6.destination, small), small);
}

#[test]
fn the_next_daemon_takes_over_what_counts_and_no_more() {
    let backend = |name: Option<&str>, address: &str, epoch| HaveBackend {
        name: name.map(str::to_owned),
        entry: Backend { v4: self::address(address).into(), v6: Address::NONE, epoch },
        epoch,
        draining: false,
        reusable_after: 0,
    };
    let (error, mut path_mtus) = (told(Family::V4, Family::V4), PathMtus::default());
    hear(&mut path_mtus, &error, NOW);
    let backends = BTreeMap::from([
        (1, backend(Some("a"), "10.0.1.1", 3)),
        (2, backend(Some("b"), "10.0.1.2", 1)),
    ]);
    let mut map = vec![PathMtuRecord::NONE; 6];
    let changed = path_mtus.records(&backends, &map);
    assert_eq!(changed.len(), 1, "{changed:?}");
    map[changed[0].0 as usize] = changed[0].1;
    assert_eq!(path_mtus.records(&backends, &map), []);

    assert_eq!(PathMtus::restored(&backends, &map, NOW + 599 * SECOND), path_mtus);
    assert_eq!(PathMtus::restored(&backends, &map, NOW + 600 * SECOND), PathMtus::default());
    // The index has another backend now, or none.
    for other in [backend(Some("c"), "10.0.1.3", 4), backend(None, "10.0.1.1", 3)] {
        let backends = BTreeMap::from([(1, other)]);
        assert_eq!(PathMtus::restored(&backends, &map, NOW), PathMtus::default());
    }
    // What has expired is removed from the map.
    path_mtus.expire(NOW + 600 * SECOND);
    assert_eq!(path_mtus.records(&backends, &map), [(2, PathMtuRecord::NONE)]);
}

#[test]
fn outcomes_have_places_and_names_of_their_own() {
    let indexes: Vec<u32> = Outcome::ALL.iter().map(|outcome| outcome.index()).collect();
    assert_eq!(indexes, (0..Outcome::ALL.len() as u32).collect::<Vec<_>>());
    let names: std::collections::BTreeSet<_> =
        Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
    assert_eq!(names.len(), Outcome::ALL.len());
}

#[test]
fn errors_about_options_and_later_fragments_are_malformed() {
    let mut error = wire(&told(Family::V4, Family::V4));
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
        assert_eq!(TooBig::from_ipv4(&error), Err(Malformed), "{number}: the checksum is wrong");
        sum(&mut error);
        assert_eq!(TooBig::from_ipv4(&error), Err(Malformed), "{number}");
    }
}

fn any_error() -> impl Strategy<Value = TooBig> {
    let lengths = prop_oneof![596_u32..2000, 596_u32..=u32::from(u16::MAX)];
    let mtus = prop_oneof![0_u32..2000, 0_u32..=u32::from(u16::MAX)];
    let fields = (0..FAMILIES.len(), lengths, mtus, any::<bool>(), any::<bool>(), any::<bool>());
    fields.prop_map(|(families, length, mtu, uncut, own, gue)| {
        let (outer, inner) = FAMILIES[families];
        let error = told(outer, inner);
        let source = if own { error.source } else { error.destination };
        let port = gue.then_some(GUE_PORT);
        TooBig { length, mtu, uncut: uncut || outer == Family::V6, source, port, ..error }
    })
}

proptest! {
    #[test]
    fn what_is_read_is_what_the_router_wrote(error in any_error()) {
        prop_assert_eq!(read(Family::of(error.source), &wire(&error)), Ok(error));
    }

    #[test]
    fn an_error_cut_anywhere_is_malformed(error in any_error(), cut in 1_usize..100) {
        let mut bytes = wire(&error);
        bytes.truncate(bytes.len().saturating_sub(cut));
        prop_assert_eq!(read(Family::of(error.source), &bytes), Err(Malformed));
    }

    #[test]
    fn a_byte_that_was_changed_spoils_an_ipv4_error(error in any_error(), at in 20_usize..56, by in 1_u8..=255) {
        let mut bytes = wire(&error);
        if error.source.is_ipv4() {
            bytes[at] ^= by;
            prop_assert_eq!(TooBig::from_ipv4(&bytes), Err(Malformed));
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
    fn whatever_is_heard_an_mtu_only_falls_and_stays_usable(errors in prop::collection::vec((any_error(), 0_u64..3), 1..20)) {
        let (mut path_mtus, mut now) = (PathMtus::default(), NOW);
        for (error, seconds) in errors {
            now += seconds * SECOND;
            let before = mtu(&path_mtus, &error);
            let outcome = hear(&mut path_mtus, &error, now);
            let after = mtu(&path_mtus, &error);
            prop_assert_eq!(outcome == Outcome::Lowered, after < before);
            if after < before {
                prop_assert_eq!(after, error.mtu);
                prop_assert!(error.uncut && error.source == told(Family::of(error.destination), Family::V4).source);
                prop_assert!(error.length > after);
                // What every host may send still fits.
                let outer = if error.destination.is_ipv4() { 20 } else { 40 };
                prop_assert!(after >= outer + 576 && (outer == 20 || after >= 1280));
                prop_assert!(error.inner == Some(Family::V4) || after >= outer + 1280);
            } else {
                prop_assert_eq!(after, before);
            }
        }
    }
}

//! Valid and invalid configurations, most of them a valid one with one value replaced.

use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use sluice_datapath::abi::{Rate, RateKind};

use super::{Config, ConfigError, Encapsulation, Tracking};
use crate::capacities::Capacities;

mod addresses;
mod documents;
mod limits;
mod priority;
mod quic;
mod routes;
mod size;

const EXAMPLE: &str = include_str!("../../../docs/examples/edge.json");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("conf/edge.json"))
}

fn valid() -> Value {
    json!({
        "version": 1,
        "interfaces": ["eth0"],
        "underlay": { "v4": "192.0.2.1", "v6": "2001:db8::1" },
        "hash_key_file": "hash.key",
        "backends": [
            { "name": "web-1", "address": "10.0.1.11" },
            { "name": "web-2", "address": { "v4": "10.0.1.12", "v6": "2001:db8:1::12" } }
        ],
        "services": [
            { "name": "web", "vips": ["203.0.113.10:443/tcp"], "backends": [{ "name": "web-1" }, { "name": "web-2", "weight": 50 }] },
            { "name": "six", "vips": ["[2001:db8:f::10]:53/udp"], "backends": [{ "name": "web-2", "weight": 1 }] }
        ]
    })
}

/// The valid configuration with `value` at `pointer` (RFC 6901). The last part of `pointer` may be
/// a new field of an object, or `-` for a new element of an array.
fn with(pointer: &str, value: Value) -> String {
    let mut document = valid();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(object) => drop(object.insert(last.to_owned(), value)),
        Value::Array(array) if last == "-" => array.push(value),
        Value::Array(array) => array[last.parse::<usize>().unwrap()] = value,
        other => panic!("{other} has no {last}"),
    }
    document.to_string()
}

/// Checks that `text` is refused at `location` (`None`: the whole file, or line and column) with a
/// message that contains `words`.
#[track_caller]
fn refused(text: &str, location: Option<&str>, words: &str) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.location(), location, "{error}\n{text:.300}");
    assert!(error.message().contains(words), "{words:?} is not in: {error}\n{text:.300}");
    assert!(error.to_string().starts_with("conf/edge.json:"), "{error}");
}

#[test]
fn the_example_file_is_valid() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!((config.services().len(), config.backends().len()), (2, 4));
    assert_eq!(config.capacities(), Capacities::default());
    assert!(config.backends()[2].draining());
    assert_eq!(config.services()[0].tracking(), Tracking::Always);
}

#[test]
fn absent_fields_have_defaults() {
    let config = parse(&valid().to_string()).unwrap();
    assert_eq!(config.instance(), "edge");
    assert_eq!(config.capacities(), Capacities::default());
    assert_eq!(config.hash_key_file(), Path::new("conf/hash.key"));
    let web = &config.services()[0];
    assert_eq!(web.table_size().get(), 65_537);
    assert_eq!(web.tracking(), Tracking::Never);
    assert!(!config.backends()[0].draining());
    let weights: Vec<_> =
        web.backends().iter().map(|member| (member.backend(), member.weight())).collect();
    assert_eq!(weights, [(0, 100), (1, 50)]);
    let addresses: Vec<IpAddr> = config.backends()[1].addresses().collect();
    assert_eq!(
        addresses,
        ["10.0.1.12".parse::<IpAddr>().unwrap(), "2001:db8:1::12".parse().unwrap()]
    );
}

#[test]
fn an_absolute_key_path_is_not_changed() {
    let config = parse(&with("/hash_key_file", json!("/etc/sluice/hash.key"))).unwrap();
    assert_eq!(config.hash_key_file(), Path::new("/etc/sluice/hash.key"));
}

#[test]
fn relative_paths_of_acl_files_start_at_the_directory_of_the_configuration() {
    let config = parse(&valid().to_string()).unwrap();
    assert!(
        config.acl_files().is_empty()
            && config.services().iter().all(|service| service.acl_files().is_empty())
    );
    let mut document = valid();
    document["deny_file"] = json!("deny.txt");
    document["services"][1]["allow_file"] = json!("/etc/sluice/allow.txt");
    let config = parse(&document.to_string()).unwrap();
    assert_eq!(
        (config.acl_files().deny.as_deref(), &config.acl_files().allow),
        (Some(Path::new("conf/deny.txt")), &None)
    );
    assert!(config.services()[0].acl_files().is_empty());
    assert_eq!(
        config.services()[1].acl_files().allow.as_deref(),
        Some(Path::new("/etc/sluice/allow.txt"))
    );
}

#[test]
fn a_rate_is_a_number_per_second_or_an_object_with_a_burst() {
    let rate =
        json!({ "packets": 1000, "source_new_connections": { "per_second": 5, "burst": 20 } });
    let config = parse(&with("/services/0/rate", rate)).unwrap();
    let rates = config.services()[0].rate_limits();
    assert_eq!(
        (rates.packets, rates.source_new_connections),
        (Some(Rate::new(1000, 1000)), Some(Rate::new(5, 20)))
    );
    assert_eq!(
        (rates.rate(RateKind::NewConnections), rates.rate(RateKind::SourcePackets)),
        (Rate::NONE, Rate::NONE)
    );
    assert!(config.services()[1].rate_limits().is_empty());
}

#[test]
fn an_instance_may_have_no_services() {
    let config = parse(&with("/services", json!([]))).unwrap();
    assert!(config.services().is_empty());
}

#[test]
fn a_port_may_have_both_protocols_and_an_address_several_ports() {
    for vip in ["203.0.113.10:443/udp", "203.0.113.10:80/tcp"] {
        assert!(parse(&with("/services/0/vips/-", json!(vip))).is_ok(), "{vip}");
    }
}

#[test]
fn the_bounds_of_ranges_are_valid() {
    for (pointer, value) in [
        ("/services/0/backends/0/weight", json!(0)),
        ("/services/0/backends/0/weight", json!(65535)),
        ("/services/0/table_size", json!(251)),
        ("/services/0/table_size", json!(5_000_011)),
        ("/limits", json!({ "services": 2, "backends": 2, "vips": 2, "connections": 1024 })),
        (
            "/limits",
            json!({ "services": 4096, "backends": 65535, "vips": 65536, "connections": 16_777_216 }),
        ),
        ("/interfaces/0", json!("123456789012345")),
        ("/backends/0/draining", json!(true)),
    ] {
        let text = with(pointer, value);
        assert!(parse(&text).is_ok(), "{:?}", parse(&text));
    }
}

#[test]
fn text_that_is_not_json_is_refused_with_line_and_column() {
    let error = parse("{\n  \"version\": 1,\n}").unwrap_err();
    assert!(error.to_string().starts_with("conf/edge.json:3:1: not JSON: "), "{error}");
    for text in ["", "{", "{} x", "nonsense", &format!("{{\"version\": {}", "[".repeat(100_000))] {
        refused(text, None, "not JSON");
    }
    refused(&format!("{} {{}}", valid()), None, "trailing");
}

#[test]
fn an_array_in_place_of_an_object_is_refused() {
    refused("[1]", None, "expected an object");
    for (pointer, location) in [
        ("/underlay", "underlay"),
        ("/limits", "limits"),
        ("/backends/0", "backends[0]"),
        ("/services/1", "services[1]"),
        ("/services/0/backends/1", "services[0].backends[1]"),
    ] {
        refused(
            &with(pointer, json!(["web-1", "10.0.1.11"])),
            Some(location),
            "expected an object such as",
        );
    }
}

#[test]
fn another_version_is_refused_before_its_unknown_fields() {
    let mut document = valid();
    document["version"] = json!(2);
    document["pools"] = json!([]);
    refused(&document.to_string(), Some("version"), "write \"version\": 1");
    refused(&with("/version", json!("1")), Some("version"), "\"1\" is not a version");
    refused("{}", Some("version"), "missing; write \"version\": 1");
}

#[test]
fn a_missing_field_is_refused_with_its_name() {
    for (parent, field, location) in [
        ("", "interfaces", None),
        ("", "underlay", None),
        ("", "hash_key_file", None),
        ("", "backends", None),
        ("", "services", None),
        ("/backends/0", "name", Some("backends[0]")),
        ("/backends/0", "address", Some("backends[0]")),
        ("/services/1", "vips", Some("services[1]")),
        ("/services/1", "backends", Some("services[1]")),
        ("/services/1/backends/0", "name", Some("services[1].backends[0]")),
    ] {
        let mut document = valid();
        document.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
        refused(&document.to_string(), location, &format!("missing field `{field}`"));
    }
}

#[test]
fn an_unknown_field_is_refused_with_the_known_ones() {
    for (pointer, location, known) in [
        ("/pools", "pools", "`services`"),
        ("/underlay/v5", "underlay.v5", "`v4`, `v6`"),
        ("/backends/0/weight", "backends[0].weight", "`draining`"),
        ("/backends/1/address/v5", "backends[1].address.v5", "`v4` or `v6`"),
        ("/services/0/port", "services[0].port", "`vips`"),
        ("/services/0/backends/0/wieght", "services[0].backends[0].wieght", "`weight`"),
    ] {
        refused(&with(pointer, json!(1)), Some(location), known);
    }
    refused(&with("/limits", json!({ "flows": 1 })), Some("limits.flows"), "`connections`");
}

#[test]
fn a_duplicate_field_is_refused_in_every_object() {
    let text = valid().to_string();
    for (once, twice) in [
        ("\"version\":1", "\"version\":1,\"version\":1"),
        ("\"interfaces\":", "\"interfaces\":[],\"interfaces\":"),
        ("\"v4\":\"192.0.2.1\"", "\"v4\":\"192.0.2.1\",\"v4\":\"192.0.2.2\""),
        ("\"v4\":\"10.0.1.12\"", "\"v4\":\"10.0.1.12\",\"v4\":\"10.0.1.13\""),
        ("\"weight\":50", "\"weight\":50,\"weight\":60"),
        ("\"vips\":", "\"vips\":[],\"vips\":"),
    ] {
        assert!(text.contains(once), "{once}");
        let error = parse(&text.replacen(once, twice, 1)).unwrap_err();
        assert!(error.message().contains("duplicate field"), "{error}");
    }
}

#[test]
#[rustfmt::skip] // One case a line reads as a table.
fn a_wrong_value_is_refused_with_its_location() {
    let many: Vec<Value> = (0..1_025).map(|_| json!({ "name": "web-1" })).collect();
    for (pointer, value, location, words) in [
        ("/instance", json!("Edge"), "instance", "1 to 32 characters of a-z"),
        ("/instance", json!("../x"), "instance", "not an instance name"),
        ("/interfaces", json!([]), "interfaces", "at least one interface"),
        ("/interfaces", json!("eth0"), "interfaces", "expected a sequence"),
        ("/interfaces/-", json!("eth0"), "interfaces[1]", "already at interfaces[0]"),
        ("/interfaces/-", json!("1234567890123456"), "interfaces[1]", "1 to 15 bytes"),
        ("/underlay", json!({}), "underlay", "\"v4\" or \"v6\""),
        ("/underlay/v4", json!("192.0.2"), "underlay.v4", "IPv4 address"),
        ("/underlay/v4", json!("224.0.0.1"), "underlay.v4", "multicast"),
        ("/underlay/v6", json!("fe80::1"), "underlay.v6", "link-local"),
        ("/underlay/v4_sources", json!("10.9.8.7"), "underlay.v4_sources", "prefix"),
        ("/underlay/v4_sources", json!("10.9.8.7/32"), "underlay.v4_sources", "one address"),
        ("/underlay/v4_sources", json!("10.9.8.7/24"), "underlay.v4_sources", "write 10.9.8.0/24"),
        ("/underlay/v4_sources", json!("0.0.0.0/0"), "underlay.v4_sources", "too short for a source prefix (minimum /8)"),
        ("/underlay/v4_sources", json!("224.0.0.0/24"), "underlay.v4_sources", "multicast"),
        ("/underlay/v6_sources", json!("2001:db8:9::1/64"), "underlay.v6_sources", "write 2001:db8:9::/64"),
        ("/underlay", json!({ "v6": "2001:db8::1", "v4_sources": "10.9.8.0/24" }), "underlay.v4_sources", "no \"v4\""),
        ("/hash_key_file", json!(""), "hash_key_file", "sluice key new"),
        ("/services/0/rate", json!(5), "services[0].rate", "source_new_connections"),
        ("/services/0/rate", json!({ "packets": 0 }), "services[0].rate.packets", "from 1 to 10000000"),
        ("/services/0/rate", json!({ "new_connections": 10_000_001 }), "services[0].rate.new_connections", "from 1 to 10000000"),
        ("/services/0/rate", json!({ "packets": { "per_second": 5 } }), "services[0].rate.packets", "burst"),
        ("/services/0/rate", json!({ "bytes": 1 }), "services[0].rate.bytes", "source_packets"),
        ("/deny_file", json!(""), "deny_file", "or remove the field"),
        ("/services/1/allow_file", json!(""), "services[1].allow_file", "or remove the field"),
        ("/limits", json!({ "services": 0 }), "limits.services", "from 1 to 4096"),
        ("/limits", json!({ "services": 4097 }), "limits.services", "from 1 to 4096"),
        ("/limits", json!({ "backends": 65536 }), "limits.backends", "from 1 to 65535"),
        ("/limits", json!({ "vips": 65537 }), "limits.vips", "from 1 to 65536"),
        ("/limits", json!({ "connections": 1023 }), "limits.connections", "from 1024 to 16777216"),
        ("/limits", json!({ "connections": 16_777_217 }), "limits.connections", "from 1024 to 16777216"),
        ("/limits", json!({ "services": 1 }), "services", "raise it (to at most 4096)"),
        ("/limits", json!({ "backends": 1 }), "backends", "more than limits.backends, 1"),
        ("/limits", json!({ "vips": 1 }), "services", "more than limits.vips, 1"),
        ("/backends/0/name", json!("web 1"), "backends[0].name", "1 to 63 characters"),
        ("/backends/0/name", json!("a".repeat(64)), "backends[0].name", "1 to 63 characters"),
        ("/backends/1/name", json!("web-1"), "backends[1].name", "already at backends[0].name"),
        ("/backends/0/address", json!(1), "backends[0].address", "an IP address such as"),
        ("/backends/0/address", json!("web-1.example"), "backends[0].address", "for a backend with both"),
        ("/backends/0/address", json!({}), "backends[0].address", "\"v4\", \"v6\" or both"),
        ("/backends/0/address", json!("127.0.0.1"), "backends[0].address", "loopback"),
        ("/backends/0/address", json!("0.0.0.0"), "backends[0].address", "unspecified"),
        ("/backends/0/address", json!("::ffff:10.0.1.11"), "backends[0].address", "IPv4-mapped"),
        ("/backends/0/address", json!("192.0.2.1"), "backends[0].address", "underlay"),
        ("/backends/0/address", json!("10.0.1.12"), "backends[1].address", "already at backends[0].address"),
        ("/backends/1/address/v6", json!("10.0.1.12"), "backends[1].address.v6", "IPv6 address"),
        ("/backends/0/draining", json!("yes"), "backends[0].draining", "expected a boolean"),
        ("/services/1/name", json!("web"), "services[1].name", "already at services[0].name"),
        ("/services/1/name", json!(""), "services[1].name", "1 to 63 characters"),
        ("/services/0/vips", json!([]), "services[0].vips", "at least one VIP"),
        ("/services/0/vips/0", json!("203.0.113.10/24:0/tcp"), "services[0].vips[0]", "write 203.0.113.0/24"),
        ("/services/0/vips/0", json!("10.0.1.0/24:443/tcp"), "services[0].vips[0]", "10.0.1.0/24 contains 10.0.1.11"),
        ("/services/0/vips/0", json!("192.0.2.0/30:443/tcp"), "services[0].vips[0]", "192.0.2.0/30 contains 192.0.2.1"),
        ("/services/0/hash", json!("port"), "services[0].hash", "\"flow\", \"client\" or \"source\""),
        ("/services/0/vips/0", json!("203.0.113.10"), "services[0].vips[0]", "203.0.113.10:443/tcp"),
        ("/services/0/vips/0", json!(443), "services[0].vips[0]", "a VIP such as"),
        ("/services/0/vips/0", json!("127.0.0.1:443/tcp"), "services[0].vips[0]", "loopback"),
        ("/services/0/vips/0", json!("[ff02::1]:443/tcp"), "services[0].vips[0]", "multicast"),
        ("/services/0/vips/0", json!("10.0.1.11:443/tcp"), "services[0].vips[0]", "backend \"web-1\""),
        ("/services/0/vips/0", json!("192.0.2.1:443/tcp"), "services[0].vips[0]", "underlay"),
        ("/services/0/vips/-", json!("203.0.113.10:443/tcp"), "services[0].vips[1]", "already at services[0].vips[0]"),
        ("/underlay", json!({ "v6": "2001:db8::1" }), "services[0].backends[0].name", "add \"v4\" to underlay, or \"v6\" to backends[0].address"),
        ("/services/0/table_size", json!(65536), "services[0].table_size", "65537"),
        ("/services/0/table_size", json!(-1), "services[0].table_size", "whole number"),
        ("/services/0/table_size", json!(13), "services[0].table_size", "251"),
        ("/services/0/tracking", json!("transitions"), "services[0].tracking", "not supported"),
        ("/services/0/tracking", json!("sometimes"), "services[0].tracking", "\"always\" or \"never\""),
        ("/services/0/tracking", json!(true), "services[0].tracking", "\"always\" or \"never\""),
        ("/services/0/backends", json!([]), "services[0].backends", "at least one backend"),
        ("/services/0/backends", json!([{ "name": "web-1", "weight": 0 }]), "services[0].backends", "every weight is 0"),
        ("/services/0/backends", json!(many), "services[0].backends", "at most 1024"),
        ("/services/0/backends/1/name", json!("web-1"), "services[0].backends[1].name", "already at services[0].backends[0]"),
        ("/services/0/backends/1/name", json!("web2"), "services[0].backends[1].name", "did you mean \"web-2\"?"),
        ("/services/0/backends/1/name", json!("cache"), "services[0].backends[1].name", "define it under \"backends\""),
        ("/services/0/backends/1/weight", json!(65536), "services[0].backends[1].weight", "from 0 to 65535"),
        ("/services/0/backends/1/weight", json!(-5), "services[0].backends[1].weight", "from 0 to 65535"),
        ("/services/0/backends/1/weight", json!(0.5), "services[0].backends[1].weight", "from 0 to 65535"),
        ("/services/0/backends/1/weight", json!("50"), "services[0].backends[1].weight", "from 0 to 65535"),
    ] {
        refused(&with(pointer, value), Some(location), words);
    }
}

#[test]
fn one_vip_belongs_to_one_service() {
    let mut document = valid();
    document["services"][1]["vips"][0] = json!("203.0.113.10:443/tcp");
    refused(&document.to_string(), Some("services[1].vips[0]"), "already at services[0].vips[0]");
}

#[test]
fn a_table_needs_a_slot_for_every_backend_with_weight() {
    let mut document = valid();
    let names: Vec<String> = (0..252).map(|number| format!("b{number}")).collect();
    document["backends"] = names
        .iter()
        .enumerate()
        .map(|(number, name)| json!({ "name": name, "address": format!("10.1.0.{number}") }))
        .collect();
    document["services"] = json!([{
        "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 251,
        "backends": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
    }]);
    refused(
        &document.to_string(),
        Some("services[0].table_size"),
        "251 slots are too few for 252 backends",
    );
    document["services"][0]["backends"][7]["weight"] = json!(0);
    assert!(parse(&document.to_string()).is_ok());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["\\PC{0,8}", Just("web-1".to_owned()), Just("2001:db8:1::12".to_owned())]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let field = prop_oneof!["[a-z]{1,4}", Just("name".to_owned()), Just("v4".to_owned())];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(field, inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Pointers to every value of `value`.
fn pointers(value: &Value, prefix: String, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| pointers(value, format!("{prefix}/{name}"), into)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, value)| pointers(value, format!("{prefix}/{index}"), into)),
        _ => {}
    }
    into.push(prefix);
}

proptest! {
    #[test]
    fn the_parser_never_panics_on_other_json_values(which in any::<prop::sample::Index>(), value in any_json()) {
        let mut document = valid();
        let mut all = Vec::new();
        pointers(&document, String::new(), &mut all);
        *document.pointer_mut(&all[which.index(all.len())]).unwrap() = value;
        if let Err(error) = parse(&document.to_string()) {
            prop_assert!(!error.message().is_empty());
        }
    }

    #[test]
    fn the_parser_never_panics_after_a_change_of_one_byte(at in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        let at = at.index(text.len());
        text[at] = byte;
        let _ = parse(std::str::from_utf8(&text).unwrap());
    }
}

#[test]
fn the_encapsulation_of_a_service_is_ipip_or_gue() {
    let config = parse(&valid().to_string()).unwrap();
    assert_eq!(
        (config.services()[0].encapsulation(), config.underlay().gue_port),
        (Encapsulation::Ipip, 6080)
    );
    let gue = |zero_checksum| Encapsulation::Gue { zero_checksum };
    for (word, expected) in [(json!("ipip"), Encapsulation::Ipip), (json!("gue"), gue(false))] {
        let config = parse(&with("/services/0/encapsulation", word)).unwrap();
        assert_eq!(config.services()[0].encapsulation(), expected);
        assert_eq!(config.services()[1].encapsulation(), Encapsulation::Ipip);
    }
    let mut document = valid();
    document["services"][0]["encapsulation"] = json!("gue");
    for zero_checksum in [false, true] {
        document["services"][0]["udp_zero_checksum"] = json!(zero_checksum);
        let config = parse(&document.to_string()).unwrap();
        assert_eq!(config.services()[0].encapsulation(), gue(zero_checksum));
    }
    let config = parse(&with("/underlay/gue_port", json!(5555))).unwrap();
    assert_eq!(config.underlay().gue_port, 5555);
}

#[test]
fn wrong_gue_options_are_refused() {
    let location = Some("services[0].encapsulation");
    for wrong in [json!("GUE"), json!("vxlan"), json!(true), json!(null)] {
        refused(&with("/services/0/encapsulation", wrong), location, "\"ipip\" or \"gue\"");
    }
    for wrong in [json!(0), json!(65_536), json!("6080")] {
        refused(&with("/underlay/gue_port", wrong), Some("underlay.gue_port"), "from 1 to 65535");
    }
    let alone = with("/services/0/udp_zero_checksum", json!(true));
    refused(&alone, Some("services[0].udp_zero_checksum"), "\"encapsulation\": \"gue\"");
}

//! Limits: the maximum is accepted, and one more is refused with its location and a remedy.

use super::*;
use crate::config::limits::{
    MAX_BACKENDS, MAX_BURST, MAX_CONNECTIONS, MAX_MTU, MAX_RATE, MAX_SERVICE_BACKENDS,
    MAX_SERVICES, MAX_VIPS, MAX_WEIGHT, MIN_CONNECTIONS, MIN_MTU,
};

/// Checks that `at_most` is accepted, and `beyond` is refused at `location` with `words`.
#[track_caller]
fn limit(at_most: &str, beyond: &str, location: &str, words: &str) {
    if let Err(error) = parse(at_most) {
        panic!("the maximum is refused: {error}");
    }
    refused(beyond, Some(location), words);
}

/// The valid configuration with the largest `limits`.
fn largest() -> Value {
    let mut document = valid();
    document["limits"] =
        json!({ "services": MAX_SERVICES, "backends": MAX_BACKENDS, "vips": MAX_VIPS });
    document
}

/// `count` services with `vips` VIPs each.
fn with_services(count: u32, vips: u32) -> Value {
    let mut document = largest();
    document["services"] = (0..count)
        .map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + number);
            let vips: Vec<_> = (1..=vips).map(|port| format!("{address}:{port}/tcp")).collect();
            json!({ "name": format!("s{number}"), "vips": vips, "backends": [{ "name": "web-1" }] })
        })
        .collect();
    document
}

/// `count` backends, and one service with the first `of_service` of them.
fn with_backends(count: u32, of_service: usize) -> Value {
    let mut document = largest();
    document["backends"] = (0..count)
        .map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + number);
            json!({ "name": format!("b{number}"), "address": address.to_string() })
        })
        .collect();
    let members: Vec<_> =
        (0..of_service).map(|number| json!({ "name": format!("b{number}") })).collect();
    document["services"] =
        json!([{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "backends": members }]);
    document
}

#[test]
fn an_instance_has_at_most_4096_services() {
    let beyond = with_services(4_097, 1).to_string();
    limit(
        &with_services(4_096, 1).to_string(),
        &beyond,
        "services",
        "4097 services are more than an instance can have",
    );
    let error = parse(&beyond).unwrap_err();
    assert!(error.message().ends_with("4096; remove some"), "{error}");
    let room = |services: u32| with("/limits", json!({ "services": services }));
    limit(&room(4_096), &room(4_097), "limits.services", "from 1 to 4096");
}

#[test]
fn an_instance_has_at_most_65535_backends() {
    let beyond = with_backends(65_536, 1).to_string();
    limit(
        &with_backends(65_535, 1).to_string(),
        &beyond,
        "backends",
        "65536 backends are more than an instance can have, 65535; remove some",
    );
    let room = |backends: u32| with("/limits", json!({ "backends": backends }));
    limit(&room(65_535), &room(65_536), "limits.backends", "from 1 to 65535");
}

#[test]
fn an_instance_has_at_most_65536_vips_and_addresses_that_forward_pings() {
    let most = with_services(4_096, 16);
    let mut beyond = most.clone();
    beyond["services"][7]["vips"].as_array_mut().unwrap().push(json!("203.0.113.10:80/udp"));
    let words = "65537 vips are more than an instance can have, 65536; remove some";
    limit(&most.to_string(), &beyond.to_string(), "services", words);
    let mut forwards = most.clone();
    forwards["addresses"] = json!([{ "address": "11.0.0.0", "ping": "forward" }]);
    refused(&forwards.to_string(), Some("services"), words);
    let room = |vips: u32| with("/limits", json!({ "vips": vips }));
    limit(&room(65_536), &room(65_537), "limits.vips", "from 1 to 65536");
}

#[test]
fn a_configuration_above_its_limits_is_refused_with_the_limit_to_raise() {
    let beyond = |limits: Value, document: Value| {
        let mut document = document;
        document["limits"] = limits;
        document.to_string()
    };
    let raise = |what: &str, limit: u32, most: u32| {
        format!("limits.{what}, {limit}; raise it (to at most {most})")
    };
    for (document, location, what, held, most) in [
        (with_services(257, 1), "services", "services", 256, MAX_SERVICES),
        (with_services(1, 257), "services", "vips", 256, MAX_VIPS),
        (with_backends(257, 1), "backends", "backends", 256, MAX_BACKENDS),
    ] {
        let (fits, over) = (
            beyond(json!({ what: held + 1 }), document.clone()),
            beyond(json!({ what: held }), document),
        );
        limit(&fits, &over, location, &raise(what, held, most));
    }
}

#[test]
fn a_service_has_at_most_1024_backends() {
    assert_eq!(MAX_SERVICE_BACKENDS, 1_024);
    limit(
        &with_backends(2_000, 1_024).to_string(),
        &with_backends(2_000, 1_025).to_string(),
        "services[0].backends",
        "1025 backends are too many for one service; list at most 1024",
    );
}

#[test]
fn a_connection_table_has_1024_to_16777216_flows() {
    let room = |connections: u32| with("/limits", json!({ "connections": connections }));
    assert_eq!((MIN_CONNECTIONS, MAX_CONNECTIONS), (1_024, 16_777_216));
    limit(
        &room(MAX_CONNECTIONS),
        &room(MAX_CONNECTIONS + 1),
        "limits.connections",
        "from 1024 to 16777216",
    );
    limit(
        &room(MIN_CONNECTIONS),
        &room(MIN_CONNECTIONS - 1),
        "limits.connections",
        "from 1024 to 16777216",
    );
    assert_eq!(parse(&room(1_000_000)).unwrap().capacities().connections, 1_000_000);
}

#[test]
fn a_table_has_251_to_5000011_slots() {
    let size = |slots: u32| with("/services/0/table_size", json!(slots));
    // The next primes outside of the range.
    limit(&size(5_000_011), &size(5_000_077), "services[0].table_size", "5000011");
    limit(&size(251), &size(241), "services[0].table_size", "251");
}

#[test]
fn a_weight_is_at_most_65535() {
    let weight = |weight: u32| with("/services/0/backends/0/weight", json!(weight));
    limit(
        &weight(MAX_WEIGHT),
        &weight(MAX_WEIGHT + 1),
        "services[0].backends[0].weight",
        "from 0 to 65535",
    );
}

#[test]
fn a_rate_is_at_most_ten_million_and_its_burst_16777215() {
    assert_eq!((MAX_RATE, MAX_BURST), (10_000_000, 16_777_215));
    for field in
        ["packets", "new_connections", "source_packets", "source_new_connections", "fragments"]
    {
        let location = format!("services[0].rate.{field}");
        let rate = |rate: u32| with("/services/0/rate", json!({ field: rate }));
        limit(&rate(MAX_RATE), &rate(MAX_RATE + 1), &location, "from 1 to 10000000");
        let burst = |per_second: u32, burst: u32| {
            with("/services/0/rate", json!({ field: { "per_second": per_second, "burst": burst } }))
        };
        limit(
            &burst(1, MAX_BURST),
            &burst(1, MAX_BURST + 1),
            &format!("{location}.burst"),
            "from 1 to 16777215",
        );
        limit(
            &burst(MAX_RATE, 1),
            &burst(MAX_RATE + 1, 1),
            &format!("{location}.per_second"),
            "from 1 to 10000000",
        );
    }
}

#[test]
fn the_mtu_of_an_underlay_is_1280_to_65535() {
    let mtu = |mtu: u32| with("/underlay/mtu", json!(mtu));
    limit(&mtu(MAX_MTU), &mtu(MAX_MTU + 1), "underlay.mtu", "from 1280 to 65535");
    limit(&mtu(MIN_MTU), &mtu(MIN_MTU - 1), "underlay.mtu", "from 1280 to 65535");
}

#[test]
fn names_have_at_most_63_characters_instances_32_and_interfaces_15() {
    let named = |pointer: &str, length: usize| with(pointer, json!("a".repeat(length)));
    limit(
        &named("/services/1/name", 63),
        &named("/services/1/name", 64),
        "services[1].name",
        "1 to 63 characters",
    );
    limit(&named("/instance", 32), &named("/instance", 33), "instance", "1 to 32 characters");
    limit(
        &named("/interfaces/0", 15),
        &named("/interfaces/0", 16),
        "interfaces[0]",
        "1 to 15 bytes",
    );
    // The backend's name also occurs in its services.
    let mut document = valid();
    for length in [63, 64] {
        let name = json!("a".repeat(length));
        document["backends"][1]["name"] = name.clone();
        document["services"][0]["backends"][1]["name"] = name.clone();
        document["services"][1]["backends"][0]["name"] = name;
        match length {
            63 => assert!(parse(&document.to_string()).is_ok()),
            _ => refused(&document.to_string(), Some("backends[1].name"), "1 to 63 characters"),
        }
    }
}

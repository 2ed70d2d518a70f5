mod fields;

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

/// Six backends of different weights, some of them draining.
fn desired(draining: &[&str]) -> Desired {
    let backends = (1..=6).map(|i| {
        let name = format!("web-{i}");
        serde_json::json!({ "name": name, "address": format!("10.0.1.{i}"), "draining": draining.contains(&&*name) })
    });
    let listed =
        (1..=6).map(|i| serde_json::json!({ "name": format!("web-{i}"), "weight": 10 * i }));
    let config = serde_json::json!({
        "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
        "backends": backends.collect::<Vec<_>>(),
        "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 4093,
                       "backends": listed.collect::<Vec<_>>() }]
    });
    let config = Config::parse(&config.to_string(), Path::new("edge.json")).unwrap();
    Desired::new(&config, &Seed::new([7; 16])).unwrap()
}

/// Owners of the slots that differ, before and after.
fn moved(a: &Desired, b: &Desired) -> Vec<(usize, usize)> {
    let pairs = a.services[0].owners.iter().copied().zip(b.services[0].owners.iter().copied());
    pairs.filter(|(before, after)| before != after).collect()
}

#[test]
fn vip_sources_are_the_vip_addresses_that_are_not_allowed_as_sources() {
    let config = |addresses: serde_json::Value| {
        let config = serde_json::json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" },
            "hash_key_file": "/k", "addresses": addresses,
            "backends": [{ "name": "web-1", "address": "10.0.1.1" }],
            "services": [{ "name": "web", "backends": [{ "name": "web-1" }],
                           "vips": ["203.0.113.10:443/tcp", "198.51.100.0/24:0/udp"] }]
        });
        let config = Config::parse(&config.to_string(), Path::new("edge.json")).unwrap();
        Desired::new(&config, &Seed::new([7; 16])).unwrap().vip_sources()
    };
    let [vip, prefix] =
        [(Ipv4Addr::new(203, 0, 113, 10), 32), (Ipv4Addr::new(198, 51, 100, 0), 24)]
            .map(|(address, length)| VipSources::NONE.with(address.into(), length));
    let both = VipSources::from_bits(vip.bits() | prefix.bits());
    let allowed = |address| serde_json::json!({ "address": address, "allow_as_source": true });
    assert_eq!(config(serde_json::json!([])), both);
    assert_eq!(config(serde_json::json!([allowed("198.51.100.0/24")])), vip);
    assert_eq!(config(serde_json::json!([allowed("203.0.113.10")])), prefix);
}

#[test]
fn draining_moves_the_slots_of_the_draining_backend_and_no_others() {
    let before = desired(&[]);
    let after = desired(&["web-6"]);
    let moved = moved(&before, &after);
    assert!(moved.iter().all(|(from, to)| *from == 5 && *to != 5), "{moved:?}");
    assert_eq!(moved.len(), before.services[0].owners.iter().filter(|o| **o == 5).count());
    assert_ne!(before.services[0].digest, after.services[0].digest);
}

#[test]
fn a_draining_backend_has_no_slots_while_another_one_is_active() {
    let after = desired(&["web-1", "web-2", "web-3", "web-5", "web-6"]);
    assert_eq!(after.services[0].owners.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&3]));
}

#[test]
fn gue_sets_the_options_of_the_vip_and_the_feature_of_the_program() {
    let config = |service: serde_json::Value| {
        let mut text = serde_json::json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": [{ "name": "web-1", "address": "10.0.1.1" }],
            "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 4093, "backends": [{ "name": "web-1" }] }]
        });
        text["services"][0].as_object_mut().unwrap().extend(service.as_object().unwrap().clone());
        let config = Config::parse(&text.to_string(), Path::new("edge.json")).unwrap();
        let desired = Desired::new(&config, &Seed::new([7; 16])).unwrap();
        (desired.services[0].options, desired.features().has(Features::GUE))
    };
    let both = VipOptions::GUE.with(VipOptions::ZERO_UDP_CHECKSUM);
    for (service, options) in [
        (serde_json::json!({}), VipOptions::NONE),
        (serde_json::json!({ "encapsulation": "gue" }), VipOptions::GUE),
        (serde_json::json!({ "encapsulation": "gue", "udp_zero_checksum": true }), both),
    ] {
        assert_eq!(config(service), (options, options.has(VipOptions::GUE)));
    }
}

#[test]
fn connection_ids_are_parsed_where_the_service_or_the_target_of_a_route_has_server_ids() {
    let options = |with_ids: Option<usize>| {
        let mut text = serde_json::json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": [{ "name": "web-1", "address": "10.0.1.1" }],
            "services": [
                { "name": "web", "vips": ["203.0.113.10:443/udp"], "backends": [{ "name": "web-1" }],
                  "routes": [{ "sources": ["198.51.100.0/24"], "service": "near" }] },
                { "name": "near", "vips": [], "backends": [{ "name": "web-1" }] },
                { "name": "other", "vips": ["203.0.113.10:53/udp"], "backends": [{ "name": "web-1" }] },
            ]
        });
        if let Some(service) = with_ids {
            text["services"][service]["quic"] = serde_json::json!([
                { "rotation": 0, "server_id_length": 1, "server_ids": [{ "backend": "web-1", "id": "07" }] }
            ]);
        }
        let config = Config::parse(&text.to_string(), Path::new("edge.json")).unwrap();
        let desired = Desired::new(&config, &Seed::new([7; 16])).unwrap();
        assert_eq!(desired.features().has(Features::QUIC), with_ids.is_some());
        [0, 1, 2].map(|service| desired.services[service].options.has(VipOptions::QUIC))
    };
    assert_eq!(options(None), [false, false, false]);
    assert_eq!(options(Some(0)), [true, false, false]);
    assert_eq!(options(Some(1)), [true, true, false]);
    assert_eq!(options(Some(2)), [false, false, true]);
}

#[test]
fn draining_half_of_a_thousand_backends_is_fast() {
    let backends = 1..=1000;
    let config = serde_json::json!({
        "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
        "backends": backends.clone().map(|i| serde_json::json!({
            "name": format!("web-{i}"), "address": format!("10.0.{}.{}", i / 250, i % 250 + 1), "draining": i % 2 == 0
        })).collect::<Vec<_>>(),
        "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 65_537,
                       "backends": backends.map(|i| serde_json::json!({ "name": format!("web-{i}") })).collect::<Vec<_>>() }]
    });
    let config = Config::parse(&config.to_string(), Path::new("edge.json")).unwrap();
    let began = std::time::Instant::now();
    let desired = Desired::new(&config, &Seed::new([7; 16])).unwrap();
    // Takes seconds without optimisation on a busy machine. Complete preference lists would
    // take many minutes.
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    assert!(desired.services[0].owners.iter().all(|owner| owner % 2 == 0));
}

#[test]
fn when_all_backends_drain_the_table_does_not_change() {
    let all = desired(&["web-1", "web-2", "web-3", "web-4", "web-5", "web-6"]);
    assert_eq!(all.services[0].owners, desired(&[]).services[0].owners);
}

//! The effect of single configuration fields on the options, program features and slots.

use std::path::Path;

use serde_json::{Value, json};
use sluice_datapath::abi::{AddressOptions, Features, VipOptions};
use sluice_maglev::Seed;

use crate::config::Config;
use crate::desired::Desired;

/// The state of a configuration with two backends and one service, in which the value at each JSON
/// pointer is replaced.
fn desired(changes: &[(&str, Value)]) -> Desired {
    let mut text = json!({
        "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" },
        "hash_key_file": "/k", "addresses": [{ "address": "203.0.113.10" }],
        "backends": [{ "name": "web-1", "address": "10.0.1.1" },
                     { "name": "web-2", "address": "10.0.1.2" }],
        "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"], "table_size": 65_537,
                       "backends": [{ "name": "web-1" }, { "name": "web-2" }] }]
    });
    for (pointer, value) in changes {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        text.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    let config = Config::parse(&text.to_string(), Path::new("edge.json")).unwrap();
    Desired::new(&config, &Seed::new([7; 16])).unwrap()
}

#[test]
fn service_fields_set_their_option_and_their_feature() {
    for (field, value, options, feature) in [
        ("hash", "flow", VipOptions::NONE, Features::NONE),
        ("hash", "client", VipOptions::HASH_CLIENT, Features::HASH_FIELDS),
        ("hash", "source", VipOptions::HASH_SOURCE, Features::HASH_FIELDS),
        ("encapsulation", "gue", VipOptions::GUE, Features::GUE),
        ("too_big", "drop", VipOptions::DROP_TOO_BIG, Features::DROP_TOO_BIG),
        ("too_big", "resegment", VipOptions::RESEGMENT, Features::RESEGMENT),
        ("fragments", "drop", VipOptions::DROP_FRAGMENTS, Features::FRAGMENT_LIMITS),
    ] {
        let desired = desired(&[(&format!("/services/0/{field}"), json!(value))]);
        assert_eq!(desired.services[0].options, options, "{field}: {value}");
        assert_eq!(desired.features(), Features::CAPTURE.with(feature), "{field}: {value}");
    }
}

#[test]
fn vips_set_the_features_of_prefixes_and_of_any_port() {
    for (vip, feature) in [
        ("203.0.113.10:443/tcp", Features::NONE),
        ("203.0.113.10:0/udp", Features::ANY_PORT),
        ("203.0.113.0/24:443/tcp", Features::PREFIXES),
        ("203.0.113.0/24:0/udp", Features::PREFIXES.with(Features::ANY_PORT)),
    ] {
        let changes = [("/services/0/vips", json!([vip])), ("/addresses", json!([]))];
        assert_eq!(desired(&changes).features(), Features::CAPTURE.with(feature), "{vip}");
    }
}

#[test]
fn address_fields_set_their_option() {
    for (field, value, options) in [
        ("ping", json!("answer"), AddressOptions::NONE),
        ("ping", json!("host"), AddressOptions::PING_HOST),
        ("ping", json!("forward"), AddressOptions::PING_FORWARD),
        ("unlisted", json!("drop"), AddressOptions::DROP_NO_SERVICE),
        ("allow_as_source", json!(true), AddressOptions::ALLOW_AS_SOURCE),
    ] {
        let desired = desired(&[(&format!("/addresses/0/{field}"), value.clone())]);
        let [options_of_address] = desired.addresses.values().copied().collect::<Vec<_>>()[..]
        else {
            panic!("{field}: one address, not {:?}", desired.addresses)
        };
        assert_eq!(options_of_address, options, "{field}: {value}");
    }
}

#[test]
fn tracking_follows_the_field() {
    for (value, tracked) in [("always", true), ("never", false)] {
        let desired = desired(&[("/services/0/tracking", json!(value))]);
        assert_eq!(desired.services[0].tracked, tracked, "{value}");
    }
}

#[test]
fn slots_are_shared_by_weight_also_above_100_and_not_with_weight_0() {
    for (weights, share) in [([1, 1], 0.5), ([100, 300], 0.25), ([0, 1], 0.0), ([1, 0], 1.0)] {
        let weight = |member: usize| format!("/services/0/backends/{member}/weight");
        let (first, second) = (weight(0), weight(1));
        let owners = &desired(&[(&first, json!(weights[0])), (&second, json!(weights[1]))]);
        let owners = &owners.services[0].owners;
        let slots = owners.iter().filter(|owner| **owner == 0).count();
        let measured = slots as f64 / owners.len() as f64;
        assert!((measured - share).abs() < 0.01, "weights {weights:?}: {measured}");
        assert!(slots == 0 || share > 0.0, "weights {weights:?}: {slots} slots");
        assert!(slots == owners.len() || share < 1.0, "weights {weights:?}: {slots} slots");
    }
}

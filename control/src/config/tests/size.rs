//! Packet sizes.

use serde_json::json;

use super::{Config, parse, refused, with};
use crate::config::TooBigPolicy;

#[test]
fn the_mss_is_clamped_by_default_and_the_mtu_is_that_of_interfaces() {
    let fields = |config: &Config| (config.clamp_mss(), config.underlay().mtu);
    assert_eq!(fields(&parse(&with("/version", json!(1))).unwrap()), (true, None));
    assert_eq!(fields(&parse(&with("/clamp_mss", json!(false))).unwrap()), (false, None));
    assert_eq!(fields(&parse(&with("/underlay/mtu", json!(1280))).unwrap()), (true, Some(1280)));
    refused(&with("/clamp_mss", json!(1440)), Some("clamp_mss"), "expected a boolean");
    for mtu in [1279, 65_536] {
        refused(
            &with("/underlay/mtu", json!(mtu)),
            Some("underlay.mtu"),
            "a whole number from 1280 to 65535",
        );
    }
}

#[test]
fn a_service_has_a_policy_for_oversized_packets() {
    let policy = |text: &str| parse(text).unwrap().services()[0].too_big();
    assert_eq!(policy(&with("/version", json!(1))), TooBigPolicy::Reject);
    for (word, expected) in [
        ("reject", TooBigPolicy::Reject),
        ("drop", TooBigPolicy::Drop),
        ("resegment", TooBigPolicy::Resegment),
    ] {
        assert_eq!(policy(&with("/services/0/too_big", json!(word))), expected);
    }
    refused(
        &with("/services/0/too_big", json!("cut")),
        Some("services[0].too_big"),
        "\"jumbo\" or \"resegment\"",
    );
}

#[test]
fn jumbo_needs_a_stated_mtu_of_the_underlay() {
    let mut document: serde_json::Value =
        serde_json::from_str(&with("/services/0/too_big", json!("jumbo"))).unwrap();
    refused(&document.to_string(), Some("services[0].too_big"), "it has none");
    document["underlay"]["mtu"] = json!(1539);
    refused(
        &document.to_string(),
        Some("services[0].too_big"),
        "an \"mtu\" of 1540 or more, and it has 1539",
    );
    document["underlay"]["mtu"] = json!(1540);
    assert_eq!(parse(&document.to_string()).unwrap().services()[0].too_big(), TooBigPolicy::Jumbo);
}

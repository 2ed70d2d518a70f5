//! Policies of VIP addresses.

use super::*;
use crate::config::{PingPolicy, UnlistedPolicy};

#[test]
fn fields_of_a_policy_have_defaults() {
    let policies = json!([
        { "address": "203.0.113.10", "ping": "host", "unlisted": "drop", "allow_host_address": true },
        { "address": "2001:db8:f::10/128", "ping": "forward", "allow_as_source": true }
    ]);
    let config = parse(&with("/addresses", policies)).unwrap();
    let [four, six] = config.addresses() else { panic!("{config:?}") };
    assert_eq!(
        (four.prefix().to_string().as_str(), four.ping(), four.unlisted()),
        ("203.0.113.10/32", PingPolicy::Host, UnlistedPolicy::Drop)
    );
    assert!(four.allow_host_address() && !six.allow_host_address());
    assert!(!four.allow_as_source() && six.allow_as_source());
    assert_eq!((six.ping(), six.unlisted()), (PingPolicy::Forward, UnlistedPolicy::Pass));
    assert!(parse(&valid().to_string()).unwrap().addresses().is_empty());
}

#[test]
fn a_policy_needs_the_address_of_a_vip_and_is_unique() {
    let at = |address: &str| json!([{ "address": address }]);
    let location = Some("addresses[0].address");
    refused(
        &with("/addresses", at("203.0.113.11")),
        location,
        "no VIP has the address 203.0.113.11",
    );
    refused(
        &with("/addresses", at("203.0.113.0/24")),
        location,
        "no VIP has the address 203.0.113.0/24",
    );
    refused(&with("/addresses", at("203.0.113.10/24")), location, "write 203.0.113.0/24");
    refused(&with("/addresses", at("www")), location, "an address such as");
    refused(
        &with("/addresses", json!(["203.0.113.10"])),
        Some("addresses[0]"),
        "\"ping\": \"host\"",
    );
    let twice = json!([{ "address": "203.0.113.10" }, { "address": "203.0.113.10/32" }]);
    refused(
        &with("/addresses", twice),
        Some("addresses[1].address"),
        "already at addresses[0].address",
    );
    let with_field =
        |field: &str, value: Value| json!([{ "address": "203.0.113.10", field: value }]);
    refused(
        &with("/addresses", with_field("ping", json!("drop"))),
        Some("addresses[0].ping"),
        "\"answer\", \"forward\" or \"host\"",
    );
    refused(
        &with("/addresses", with_field("unlisted", json!(true))),
        Some("addresses[0].unlisted"),
        "\"pass\" or \"drop\"",
    );
    refused(
        &with("/addresses", with_field("colour", json!(1))),
        Some("addresses[0].colour"),
        "unknown field",
    );
}

#[test]
fn addresses_that_forward_pings_count_as_vips() {
    let mut config = valid();
    config["limits"] = json!({ "vips": 2 });
    assert!(parse(&config.to_string()).is_ok());
    config["addresses"] = json!([{ "address": "203.0.113.10", "ping": "answer" }]);
    assert!(parse(&config.to_string()).is_ok());
    config["addresses"][0]["ping"] = json!("forward");
    refused(&config.to_string(), Some("services"), "3 vips are more than limits.vips, 2");
}

#[test]
fn the_list_of_balancers_contains_the_sources_of_this_one() {
    let at = Some("underlay.balancers");
    for (balancers, missing) in [
        (json!([]), "0 prefixes"),
        (json!(["192.0.2.1"]), "does not contain 2001:db8::1"),
        (json!(["192.0.2.2", "2001:db8::/64"]), "does not contain 192.0.2.1"),
    ] {
        refused(&with("/underlay/balancers", balancers), at, missing);
    }
    // With a prefix of sources, all of them, and not the address that routes are looked up from.
    let mut config = valid();
    config["underlay"]["v4_sources"] = json!("10.9.1.0/24");
    config["underlay"]["balancers"] = json!(["192.0.2.1", "2001:db8::1"]);
    refused(&config.to_string(), at, "does not contain 10.9.1.0/24");
    config["underlay"]["balancers"] = json!(["10.9.0.0/16", "2001:db8::1"]);
    assert_eq!(parse(&config.to_string()).unwrap().balancers().len(), 2);
}

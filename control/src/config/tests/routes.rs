//! Routes.

use super::*;
use crate::config::limits;

/// The valid configuration with a third service, which has no VIPs, and with routes of the first
/// service.
fn routed(routes: Value) -> Value {
    let mut document = valid();
    let near = json!({ "name": "near", "vips": [], "backends": [{ "name": "web-1" }] });
    document["services"].as_array_mut().unwrap().push(near);
    document["services"][0]["routes"] = routes;
    document
}

#[test]
fn a_route_has_prefixes_of_both_families_and_a_target_that_needs_no_vips() {
    let routes = json!([
        { "sources": ["198.51.100.0/24", "2001:db8:99::/48"], "service": "near" },
        { "sources": ["198.51.100.7", "0.0.0.0/0"], "service": "six" }
    ]);
    let config = parse(&routed(routes).to_string()).unwrap();
    let routes: Vec<_> = config.services()[0]
        .routes()
        .iter()
        .map(|route| (route.clients.to_string(), route.service))
        .collect();
    let expected =
        [("198.51.100.0/24", 2), ("2001:db8:99::/48", 2), ("198.51.100.7/32", 1), ("0.0.0.0/0", 1)];
    assert_eq!(routes, expected.map(|(clients, service)| (clients.to_owned(), service)));
    assert!(config.services()[1].routes().is_empty() && config.services()[2].vips().is_empty());
}

#[test]
fn wrong_routes_are_refused() {
    let refused = |routes: Value, location: &str, words: &str| {
        super::refused(
            &routed(routes).to_string(),
            Some(&format!("services[0].routes{location}")),
            words,
        );
    };
    let near = |sources: Value| json!([{ "sources": sources, "service": "near" }]);
    refused(
        json!([{ "sources": ["10.0.0.0/8"], "service": "neat" }]),
        "[0].service",
        "did you mean \"near\"?",
    );
    refused(
        json!([{ "sources": ["10.0.0.0/8"], "service": "elsewhere" }]),
        "[0].service",
        "define it under \"services\"",
    );
    refused(
        json!([{ "sources": ["10.0.0.0/8"], "service": "web" }]),
        "[0].service",
        "cannot point to its own service",
    );
    refused(json!([{ "sources": ["10.0.0.0/8"] }]), "[0]", "missing field `service`");
    refused(json!(["near"]), "[0]", "an object such as");
    refused(near(json!([])), "[0].sources", "write at least one prefix");
    refused(near(json!(["www"])), "[0].sources[0]", "an address such as");
    refused(near(json!(["10.0.0.1/8"])), "[0].sources[0]", "write 10.0.0.0/8");
    refused(
        near(json!(["10.0.0.0/8", "10.0.0.0/8"])),
        "[0].sources[1]",
        "already at services[0].routes[0].sources[0]",
    );
    for mapped in ["::/0", "::ffff:10.0.0.0/104"] {
        refused(near(json!([mapped])), "[0].sources[0]", "\"2000::/3\" for all IPv6 clients");
    }
    let twice = json!([{ "sources": ["10.0.0.0/8"], "service": "near" }, { "sources": ["10.0.0.0/8"], "service": "six" }]);
    refused(twice, "[1].sources[0]", "already at services[0].routes[0].sources[0]");
}

#[test]
fn a_client_is_routed_once() {
    let mut document = routed(json!([{ "sources": ["10.0.0.0/8"], "service": "six" }]));
    document["services"][1]["routes"] = json!([{ "sources": ["10.0.0.0/8"], "service": "near" }]);
    refused(
        &document.to_string(),
        Some("services[0].routes[0].service"),
        "a client is routed once",
    );
}

#[test]
fn a_service_without_vips_is_the_target_of_a_route_and_has_no_acls() {
    refused(
        &routed(json!([])).to_string(),
        Some("services[2].vips"),
        "name this service in the \"routes\" of another one",
    );
    let mut document = routed(json!([{ "sources": ["10.0.0.0/8"], "service": "near" }]));
    document["services"][2]["deny_file"] = json!("deny.txt");
    refused(
        &document.to_string(),
        Some("services[2].deny_file"),
        "only the source ACLs of the VIP's service are applied",
    );
}

#[test]
fn the_number_of_routes_is_limited() {
    let prefixes = |count: u32| {
        (0..count).map(|i| json!(std::net::Ipv4Addr::from(i << 8).to_string())).collect::<Vec<_>>()
    };
    let most = limits::MAX_ROUTES;
    let routes =
        |count| routed(json!([{ "sources": prefixes(count), "service": "near" }])).to_string();
    assert!(parse(&routes(most)).is_ok());
    refused(&routes(most + 1), Some("services"), "write at most 65536");
}

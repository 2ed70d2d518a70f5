//! VIP addresses that drop packets to ports without a service.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, assert_fails, host_state, wait_until};
use crate::support::add_address;
use crate::wire::send_segment;

const LB: [&str; 3] = ["lb", "--config", "edge.json"];

/// Otherwise the host would no longer be reachable at that address, for example by SSH.
pub(crate) fn dropping_other_ports_of_a_host_address_must_be_allowed() {
    let mut fixture = DaemonFixture::new();
    fixture.config["addresses"] =
        json!([{ "address": "203.0.113.11" }, { "address": "203.0.113.10", "unlisted": "drop" }]);
    fixture.write();
    add_address("203.0.113.10/32", "lo");
    let before = host_state();
    let words = ["addresses[1].unlisted", "203.0.113.10", "SSH", "\"allow_host_address\": true"];
    assert_fails(&fixture.sluice(&LB), 2, &words);
    assert_eq!(host_state(), before);

    // The address that drops is not assigned to the host.
    fixture.config["addresses"] = json!([{ "address": "203.0.113.11", "unlisted": "drop" }]);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    fixture.config["addresses"][0] = json!({ "address": "203.0.113.10", "unlisted": "drop" });
    fixture.write();
    daemon.reload();
    assert_eq!(daemon.log_count("reload failed"), 1, "{}", daemon.log());
    assert!(
        words.iter().all(|words| daemon.log().contains(&words.replace("[1]", "[0]"))),
        "{}",
        daemon.log()
    );

    fixture.config["addresses"][0]["allow_host_address"] = json!(true);
    fixture.write();
    daemon.reload();
    assert_eq!(
        (daemon.log_count("reload failed"), daemon.log_count("ready: ")),
        (1, 2),
        "{}",
        daemon.log()
    );
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
}

/// Two UDP services would answer each other without end.
pub(crate) fn a_packet_from_a_vip_address_is_dropped_unless_it_is_allowed() {
    let mut fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let vip = "203.0.113.11".parse().unwrap();
    let send = || send_segment("far", "eth0", vip, "203.0.113.10:80".parse().unwrap());
    let web = |fixture: &DaemonFixture| fixture.json("counters")["lb"]["services"]["web"].clone();
    send();
    wait_until("the packet is dropped", || web(&fixture)["drops"]["source_is_vip"] == 1);
    assert_eq!(web(&fixture)["packets"], 0);

    fixture.config["addresses"] = json!([{ "address": vip, "allow_as_source": true }]);
    fixture.write();
    daemon.reload();
    send();
    wait_until("the packet is forwarded", || web(&fixture)["packets"] == 1);
    assert_eq!(web(&fixture)["drops"]["source_is_vip"], 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// A prefix is refused if any of its addresses is assigned to the host.
pub(crate) fn a_prefix_that_contains_a_host_address_is_refused() {
    let mut fixture = DaemonFixture::new();
    fixture.config["services"][0]["vips"] = json!(["203.0.113.0/24:80/tcp"]);
    fixture.config["addresses"] =
        json!([{ "address": "203.0.113.0/24", "unlisted": "drop", "ping": "forward" }]);
    fixture.write();
    add_address("203.0.113.77/32", "lo");
    assert_fails(&fixture.sluice(&LB), 2, &["addresses[0].unlisted", "203.0.113.77"]);
}

//! VIP addresses that drop what no service listens to.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::site::{Site, fails, world};
use crate::support::add_address;

const LB: [&str; 3] = ["lb", "--config", "edge.json"];

/// Else the host would no longer be reached there: by SSH, for one.
pub(crate) fn unlisted_ports_of_the_hosts_own_addresses_are_not_dropped_unless_forced() {
    let mut site = Site::new();
    site.config["addresses"] =
        json!([{ "address": "203.0.113.11" }, { "address": "203.0.113.10", "unlisted": "drop" }]);
    site.write();
    add_address("203.0.113.10/32", "lo");
    let before = world();
    let words = ["addresses[1].unlisted", "203.0.113.10", "SSH", "\"allow_host_address\": true"];
    fails(&site.sluice(&LB), 2, &words);
    assert_eq!(world(), before);

    // The address of the other policy is not the host's.
    site.config["addresses"] = json!([{ "address": "203.0.113.11", "unlisted": "drop" }]);
    site.write();
    let mut daemon = site.start(&["lb"]);
    site.config["addresses"][0] = json!({ "address": "203.0.113.10", "unlisted": "drop" });
    site.write();
    daemon.reload();
    assert_eq!(daemon.said("reload failed"), 1, "{}", daemon.log());
    assert!(
        words.iter().all(|words| daemon.log().contains(&words.replace("[1]", "[0]"))),
        "{}",
        daemon.log()
    );

    site.config["addresses"][0]["allow_host_address"] = json!(true);
    site.write();
    daemon.reload();
    assert_eq!((daemon.said("reload failed"), daemon.said("ready: ")), (1, 2), "{}", daemon.log());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    site.down();
}

/// A prefix is refused when the host has any address of it.
pub(crate) fn a_prefix_that_holds_an_address_of_the_host_is_refused() {
    let mut site = Site::new();
    site.config["services"][0]["vips"] = json!(["203.0.113.0/24:80/tcp"]);
    site.config["addresses"] =
        json!([{ "address": "203.0.113.0/24", "unlisted": "drop", "ping": "forward" }]);
    site.write();
    add_address("203.0.113.77/32", "lo");
    fails(&site.sluice(&LB), 2, &["addresses[0].unlisted", "203.0.113.77"]);
}

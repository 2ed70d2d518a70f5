//! Who gets a client's packets, while the balancer runs: routes by source, server ids in QUIC's connection ids.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::site::{Site, world};

const CLIENT: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";
const VIP: &str = "203.0.113.10:80";

impl Site {
    /// What `status` says of a service.
    fn service(&self, name: &str) -> Value {
        let services = self.status()["services"].clone();
        services.as_array().unwrap().iter().find(|service| service["name"] == name).unwrap().clone()
    }
}

pub(crate) fn routes_follow_reloads_and_outlive_the_daemon() {
    let mut site = Site::new();
    let before = world();
    let near = json!({ "name": "near", "vips": [], "table_size": 251, "backends": [{ "name": "b" }] });
    site.config["services"].as_array_mut().unwrap().push(near);
    site.config["services"][0]["routes"] = json!([{ "sources": [CLIENT, "2001:db8:99::/48"], "service": "near" }]);
    site.write();
    let mut daemon = site.start(&["lb"]);
    assert_eq!((site.fate(CLIENT, VIP), site.fate(OTHER, VIP)), ("near".into(), "web".into()));
    assert_eq!(site.service("web")["routes"], json!({ "198.51.100.7/32": "near", "2001:db8:99::/48": "near" }));
    assert_eq!(site.service("near")["routes"], Value::Null);

    // Other clients.
    site.config["services"][0]["routes"] = json!([{ "sources": ["198.51.100.8/31"], "service": "near" }]);
    site.write();
    daemon.reload();
    assert_eq!((site.fate(CLIENT, VIP), site.fate(OTHER, VIP)), ("web".into(), "near".into()));

    // A daemon that is killed leaves them in force, and the next one takes them over.
    daemon.end(Signal::SIGKILL);
    assert_eq!(site.fate(OTHER, VIP), "near");
    let mut daemon = site.start(&["lb"]);
    assert_eq!(daemon.said("routes"), 0, "{}", daemon.log());
    assert_eq!(site.service("web")["routes"], json!({ "198.51.100.8/31": "near" }));

    // Where nothing leads any more there is no service left.
    site.config["services"][0].as_object_mut().unwrap().remove("routes");
    site.config["services"].as_array_mut().unwrap().pop();
    site.write();
    daemon.reload();
    assert_eq!(site.fate(OTHER, VIP), "web");
    assert_eq!((site.service("web")["routes"].clone(), daemon.said("remove 1 routes")), (Value::Null, 1));
    daemon.end(Signal::SIGTERM);
    site.down();
    assert_eq!(world(), before);
}

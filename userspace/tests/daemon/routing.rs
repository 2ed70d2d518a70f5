//! CaptureFilter of service and backend: routes by source prefix, server IDs in QUIC connection
//! IDs.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::fixture::{DaemonFixture, host_state, wait_until};
use crate::wire;

const CLIENT: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";
const VIP: &str = "203.0.113.10:80";

impl DaemonFixture {
    /// The status of a service.
    fn service(&self, name: &str) -> Value {
        let services = self.status()["services"].clone();
        services.as_array().unwrap().iter().find(|service| service["name"] == name).unwrap().clone()
    }
}

pub(crate) fn routes_follow_reloads_and_outlive_the_daemon() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let near =
        json!({ "name": "near", "vips": [], "table_size": 251, "backends": [{ "name": "b" }] });
    fixture.config["services"].as_array_mut().unwrap().push(near);
    fixture.config["services"][0]["routes"] =
        json!([{ "sources": [CLIENT, "2001:db8:99::/48"], "service": "near" }]);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(
        (fixture.outcome(CLIENT, VIP), fixture.outcome(OTHER, VIP)),
        ("near".into(), "web".into())
    );
    assert_eq!(
        fixture.service("web")["routes"],
        json!({ "198.51.100.7/32": "near", "2001:db8:99::/48": "near" })
    );
    assert_eq!(fixture.service("near")["routes"], Value::Null);

    // The route changes to other clients.
    fixture.config["services"][0]["routes"] =
        json!([{ "sources": ["198.51.100.8/31"], "service": "near" }]);
    fixture.write();
    daemon.reload();
    assert_eq!(
        (fixture.outcome(CLIENT, VIP), fixture.outcome(OTHER, VIP)),
        ("web".into(), "near".into())
    );

    // They stay in effect after SIGKILL, and the next daemon adopts them.
    daemon.end(Signal::SIGKILL);
    assert_eq!(fixture.outcome(OTHER, VIP), "near");
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(daemon.log_count("routes"), 0, "{}", daemon.log());
    assert_eq!(fixture.service("web")["routes"], json!({ "198.51.100.8/31": "near" }));

    // The route and its target service are removed.
    fixture.config["services"][0].as_object_mut().unwrap().remove("routes");
    fixture.config["services"].as_array_mut().unwrap().pop();
    fixture.write();
    daemon.reload();
    assert_eq!(fixture.outcome(OTHER, VIP), "web");
    assert_eq!(
        (fixture.service("web")["routes"].clone(), daemon.log_count("remove 1 routes")),
        (Value::Null, 1)
    );
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

/// Sends a UDP packet to 203.0.113.11:53 whose payload starts with `start`.
fn datagram(port: u16, start: &[u8]) {
    let mut payload = start.to_vec();
    payload.resize(40, 0xa5);
    let mut frame = wire::mac_address("eth0").to_vec();
    frame.extend([0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00]);
    frame.extend([0x45, 0, 0, 68, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 51, 100, 7, 203, 0, 113, 11]);
    frame.extend([port.to_be_bytes(), 53_u16.to_be_bytes(), 48_u16.to_be_bytes(), [0, 0]].concat());
    frame.extend(payload);
    wire::send_frame("far", &frame);
}

impl DaemonFixture {
    /// Sends 40 packets from different ports; returns the numbers that backends `a` and `b` got.
    fn packets_by_backend(&self, start: &[u8]) -> (u64, u64) {
        const PACKETS: u16 = 40;

        let count = || {
            let backends = self.json("counters")["lb"]["backends"].clone();
            ["a", "b"].map(|name| backends[name]["packets"].as_u64().unwrap_or(0))
        };
        let before = count();
        (0..PACKETS).for_each(|port| datagram(40_000 + port, start));
        let mut got = (0, 0);
        wait_until("the packets are counted", || {
            let after = count();
            got = (after[0] - before[0], after[1] - before[1]);
            got.0 + got.1 == u64::from(PACKETS)
        });
        got
    }
}

pub(crate) fn quic_server_ids_follow_reloads_and_outlive_the_daemon() {
    /// Short header with config rotation 0 and server ID c4605e.
    const FIRST: &[u8] = &[0x41, 0x07, 0xc4, 0x60, 0x5e];
    /// Config rotation 0, unknown server ID c46060.
    const OTHER: &[u8] = &[0x41, 0x07, 0xc4, 0x60, 0x60];
    /// Config rotation 1, server ID 0102.
    const SECOND: &[u8] = &[0x41, 0x20, 0x01, 0x02];

    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let config = |rotation: u8, length: u8, backend: &str, id: &str| json!({ "rotation": rotation, "server_id_length": length, "server_ids": [{ "backend": backend, "id": id }] });
    fixture.config["services"][0]["quic"] = json!([config(0, 3, "b", "c4605e")]);
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.packets_by_backend(FIRST), (0, 40));
    let (a, b) = fixture.packets_by_backend(OTHER);
    assert!(a > 0 && b > 0, "an unknown server ID follows the lookup table: {a}, {b}");
    assert_eq!(fixture.service("web")["server_ids"], json!({ "0:c4605e": "b" }));

    // The server ID moves to another backend, and a second config rotation is added.
    fixture.config["services"][0]["quic"] =
        json!([config(0, 3, "a", "c4605e"), config(1, 2, "b", "0102")]);
    fixture.write();
    daemon.reload();
    assert_eq!(
        (fixture.packets_by_backend(FIRST), fixture.packets_by_backend(SECOND)),
        ((40, 0), (0, 40))
    );

    // A draining backend keeps its server IDs.
    fixture.config["backends"][1]["draining"] = json!(true);
    fixture.write();
    daemon.reload();
    assert_eq!(
        (fixture.packets_by_backend(OTHER), fixture.packets_by_backend(SECOND)),
        ((40, 0), (0, 40))
    );
    fixture.config["backends"][1]["draining"] = json!(false);

    // They stay in effect after SIGKILL, and the next daemon adopts them.
    daemon.end(Signal::SIGKILL);
    assert_eq!(fixture.packets_by_backend(SECOND), (0, 40));
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    assert_eq!(
        (fixture.packets_by_backend(FIRST), daemon.log_count("server IDs")),
        ((40, 0), 0),
        "{}",
        daemon.log()
    );

    // A backend with a new address gets a new index, and its server ID follows.
    fixture.config["backends"][1]["address"] = json!("10.0.1.9");
    fixture.write();
    daemon.reload();
    assert_eq!(fixture.packets_by_backend(SECOND), (0, 40));

    fixture.config["services"][0].as_object_mut().unwrap().remove("quic");
    fixture.write();
    daemon.reload();
    let (a, b) = fixture.packets_by_backend(SECOND);
    assert!(a > 0 && b > 0, "{a}, {b}");
    assert_eq!(
        (
            fixture.service("web")["server_ids"].clone(),
            daemon.log_count("remove 2 QUIC server IDs")
        ),
        (Value::Null, 1)
    );
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

//! Replacement of the maps by larger ones with a million flows and under traffic.
#![expect(unsafe_code, reason = "`aya::Pod` is unsafe to implement")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice::kernel::bpf::Pins;
use sluice::role::Role;
use sluice_datapath::Flow;
use sluice_datapath::abi::{Connection, Port, TCP};

use crate::fixture::{DaemonFixture, host_state, wait_until};
use crate::limits::map_status;
use crate::support::run;
use crate::traffic::TrafficClient;

/// Flows in the connection table before the traffic.
const FLOWS: u32 = 1_000_000;
/// Flows of the traffic, which are new while the maps are replaced.
const NEW_FLOWS: u64 = 30_000;

/// A wrapper that implements aya's `Pod`.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(transparent)]
struct AyaPod<T>(T);

// SAFETY: flows have no padding and no invalid bit patterns.
unsafe impl Pod for AyaPod<Flow> {}
// SAFETY: connections have no padding and no invalid bit patterns.
unsafe impl Pod for AyaPod<Connection> {}

/// The pinned connection table.
fn connections() -> HashMap<MapData, AyaPod<Flow>, AyaPod<Connection>> {
    let pins = Pins::new(Path::new("/sys/fs/bpf"), "edge", Role::Lb);
    let map = MapData::from_pin(pins.directory().join("CONNECTIONS")).unwrap();
    Map::LruHashMap(map).try_into().unwrap()
}

/// A flow and its entry, which is written by the test and not by a packet.
fn flow(number: u32) -> (AyaPod<Flow>, AyaPod<Connection>) {
    let source = Ipv4Addr::from_bits(0xc612_0000 | number >> 4);
    let destination = Ipv4Addr::new(203, 0, 113, 10);
    let flow = Flow::new(
        source.into(),
        destination.into(),
        Port::new((number & 15) as u16 + 1),
        Port::new(80),
        TCP,
    );
    (AyaPod(flow), AyaPod(Connection { backend: 1 + number % 2, epoch: 1 + number % 7 }))
}

pub(crate) fn a_million_flows_move_to_larger_maps_under_traffic() {
    let mut fixture = DaemonFixture::new();
    // The backends do not exist: packets would wait for address resolution and block their sender.
    run("ip link set eth0 arp off");
    let before = host_state();
    fixture.config["services"][0]["tracking"] = json!("always");
    fixture.config["limits"] =
        json!({ "services": 4, "backends": 16, "vips": 8, "connections": 1_200_000 });
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    let timed = |what: &str, action: &mut dyn FnMut()| {
        let start = Instant::now();
        action();
        println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    };
    timed("a million flows written", &mut || {
        let mut connections = connections();
        for (flow, connection) in (0..FLOWS).map(flow) {
            connections.insert(flow, connection, 0).unwrap();
        }
    });
    assert_eq!(map_status(&fixture.status(), "CONNECTIONS")["entries"], FLOWS);

    // All maps are replaced twice; the connection table, by far the largest, grows and shrinks.
    let mut client = TrafficClient::new(NEW_FLOWS);
    for (round, connections) in [2_400_000, 1_300_000].into_iter().enumerate() {
        let traffic = client.start_background();
        let begun = traffic.sent();
        wait_until("packets are sent", || traffic.sent() > begun);
        let room = 20 * (round + 1);
        fixture.config["limits"] =
            json!({ "services": room, "backends": room, "vips": room, "connections": connections });
        fixture.write();
        timed(&format!("reload to room for {connections} flows"), &mut || daemon.reload());
        assert_eq!(daemon.log_count("maps resized"), round + 1, "{}", daemon.log());
        // Every packet is counted once, the counters never decrease, and every flow is kept.
        client = traffic.stop();
        client.assert_all_counted();
        let status = fixture.status();
        for (name, capacity) in
            [("CONNECTIONS", connections), ("BACKENDS", room + 1), ("TABLES", room + 1)]
        {
            assert_eq!(map_status(&status, name)["capacity"], capacity, "{name}");
        }
        assert_eq!(
            map_status(&status, "CONNECTIONS")["entries"],
            u64::from(FLOWS) + client.sent().min(NEW_FLOWS)
        );
    }
    assert_eq!(fixture.json("counters")["lb"]["services"]["web"]["packets"], client.sent());
    timed("a million flows read", &mut || {
        let connections = connections();
        for (flow, connection) in (0..FLOWS).map(flow) {
            assert_eq!(connections.get(&flow, 0).unwrap(), connection, "{flow:?}");
        }
    });
    daemon.end(Signal::SIGTERM);
    fixture.down();
    assert_eq!(host_state(), before);
}

//! A million flows, and maps that are replaced by larger ones while packets come.
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

use crate::fixture::{HostFixture, host_state, wait_until};
use crate::limits::map;
use crate::support::run;
use crate::traffic::Client;

/// Flows that are there before packets come.
const FLOWS: u32 = 1_000_000;
/// Flows of the packets, all of them new while the maps are replaced.
const COMING: u64 = 30_000;

/// A plain value, as aya wants it.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: flows and connections are plain values, without padding or forbidden bit patterns.
unsafe impl Pod for Raw<Flow> {}
// SAFETY: as above.
unsafe impl Pod for Raw<Connection> {}

/// The connection table in force.
fn connections() -> HashMap<MapData, Raw<Flow>, Raw<Connection>> {
    let pins = Pins::new(Path::new("/sys/fs/bpf"), "edge", Role::Lb);
    let map = MapData::from_pin(pins.directory().join("CONNECTIONS")).unwrap();
    Map::LruHashMap(map).try_into().unwrap()
}

/// One of the flows, and its entry, which no packet of it has written.
fn flow(number: u32) -> (Raw<Flow>, Raw<Connection>) {
    let source = Ipv4Addr::from_bits(0xc612_0000 | number >> 4);
    let destination = Ipv4Addr::new(203, 0, 113, 10);
    let flow = Flow::new(
        source.into(),
        destination.into(),
        Port::new((number & 15) as u16 + 1),
        Port::new(80),
        TCP,
    );
    (Raw(flow), Raw(Connection { backend: 1 + number % 2, epoch: 1 + number % 7 }))
}

pub(crate) fn a_million_flows_move_to_larger_maps_under_traffic() {
    let mut fixture = HostFixture::new();
    // Nobody is there to say where backends are; packets would wait for that, and hold up their
    // sender.
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
    assert_eq!(map(&fixture.status(), "CONNECTIONS")["entries"], FLOWS);

    // All maps twice, the one with the flows too: to more, and, since nothing else is as large, to
    // fewer again.
    let mut client = Client::new(COMING);
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
        // Every packet is counted once, the counters never went back, and every flow is where it
        // was.
        client = traffic.stop();
        client.assert_all_counted();
        let status = fixture.status();
        for (name, capacity) in
            [("CONNECTIONS", connections), ("BACKENDS", room + 1), ("TABLES", room + 1)]
        {
            assert_eq!(map(&status, name)["capacity"], capacity, "{name}");
        }
        assert_eq!(
            map(&status, "CONNECTIONS")["entries"],
            u64::from(FLOWS) + client.sent().min(COMING)
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

//! Single plans. [`sequences`] tests random sequences of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use sluice_datapath::abi::{AddressOptions, PrefixKey, QuicIdLengths, QuicServerKey, VipOptions};

use super::*;
use crate::config::Protocol;
use crate::desired::DesiredBackend;
use crate::have::HaveBackend;

mod model;
mod sequences;

use model::Model;

const SECOND: u64 = 1_000_000_000;

const CAPACITIES: Capacities = Capacities { services: 3, backends: 4, vips: 4, connections: 1024 };

fn backend(name: &str, last: u8) -> DesiredBackend {
    DesiredBackend {
        name: name.to_owned(),
        v4: Some(Ipv4Addr::new(10, 0, 0, last)),
        v6: None,
        draining: false,
    }
}

fn vip(last: u8, port: u16) -> Vip {
    Vip::new(IpAddr::from(Ipv4Addr::new(203, 0, 113, last)), port, Protocol::Tcp).unwrap()
}

fn service(name: &str, vips: &[Vip], owners: &[usize]) -> DesiredService {
    let digest = owners.iter().fold(0, |digest: u64, owner| digest * 31 + *owner as u64 + 1);
    DesiredService {
        name: name.to_owned(),
        vips: vips.to_vec(),
        options: VipOptions::NONE,
        routes: vec![],
        server_ids: vec![],
        tracked: false,
        owners: owners.to_vec(),
        digest,
    }
}

/// `web` on 203.0.113.1:80 over the backends `a` and `b`.
fn web() -> Desired {
    Desired {
        backends: vec![backend("a", 1), backend("b", 2)],
        services: vec![service("web", &[vip(1, 80)], &[0, 1, 0])],
        addresses: BTreeMap::new(),
        global_acl: false,
        fragment_rates: false,
    }
}

/// The entry of `web`'s VIP.
const WEB: ServiceRef = ServiceRef { index: 1, options: VipOptions::NONE };

/// The entry of an address with a cached VIP.
fn caching(id: u32, options: AddressOptions, port: u16, entry: ServiceRef) -> VipAddress {
    let cached = CachedVip::new(Port::new(port), Protocol::Tcp.number(), entry);
    VipAddress { cached, ..VipAddress::new(id, options) }
}

/// Plans and applies a change. Returns its steps.
fn change(model: &mut Model, desired: &Desired) -> Vec<Step> {
    let steps = model.plan(desired).unwrap();
    model.start_change(desired);
    for step in &steps {
        model.apply(step).unwrap();
    }
    model.check_reached(desired);
    steps
}

/// A model in the desired state.
fn model_of(desired: &Desired) -> Model {
    let mut model = Model::new(CAPACITIES);
    change(&mut model, desired);
    model
}

#[test]
fn a_first_plan_adds_backends_then_tables_then_vips() {
    let mut model = Model::new(CAPACITIES);
    let steps = change(&mut model, &web());
    let [
        Step::AddBackends(backends),
        Step::ReplaceTables(tables),
        Step::PutVips { addresses, vips },
    ] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    let places: Vec<_> =
        backends.iter().map(|new| (new.index, &*new.name, new.entry.epoch)).collect();
    assert_eq!(places, [(1, "a", 1), (2, "b", 1)]);
    assert_eq!((tables[0].service, tables[0].created, tables[0].table.generation), (1, true, 1));
    let slots: Vec<_> = tables[0].table.slots.iter().map(|slot| slot.backend).collect();
    assert_eq!(slots, [1, 2, 1]);
    assert_eq!(
        (&addresses[..], vips.len()),
        (&[(vip(1, 80).prefix(), caching(1, AddressOptions::NONE, 80, WEB))][..], 1)
    );
}

#[test]
fn an_equal_state_needs_no_steps() {
    let model = model_of(&web());
    assert_eq!(model.plan(&web()).unwrap(), []);
    // The order of backends and services does not matter.
    let mut reversed = web();
    reversed.backends.reverse();
    reversed.services[0] = DesiredService { owners: vec![1, 0, 1], ..reversed.services[0].clone() };
    assert_eq!(model.plan(&reversed).unwrap(), []);
}

#[test]
fn a_backend_is_added_before_the_table_with_it_and_removed_after_the_table_without_it() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends.push(backend("c", 3));
    desired.services[0] = service("web", &[vip(1, 80)], &[0, 1, 2]);
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[..], [Step::AddBackends(new), Step::ReplaceTables(tables)]
        if new.len() == 1 && new[0].index == 3 && tables[0].table.generation == 2 && !tables[0].created),
        "{steps:?}"
    );
    let steps = change(&mut model, &web());
    assert!(
        matches!(&steps[..], [Step::ReplaceTables(_), Step::RetireBackends(gone)] if gone == &[3]),
        "{steps:?}"
    );
}

#[test]
fn a_backend_with_a_changed_address_gets_a_new_index() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends[1] = backend("b", 9);
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[..], [Step::AddBackends(new), Step::ReplaceTables(_), Step::RetireBackends(gone)]
        if new[0].index == 3 && new[0].name == "b" && gone == &[2]),
        "{steps:?}"
    );
}

#[test]
fn a_renamed_backend_is_another_backend() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends[1].name = "c".to_owned();
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[..], [Step::AddBackends(new), Step::ReplaceTables(_), Step::RetireBackends(gone)]
        if new[0].name == "c" && gone == &[2]),
        "{steps:?}"
    );
}

#[test]
fn a_drained_backend_keeps_its_index_and_loses_its_slots() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends[1].draining = true;
    desired.services[0] = service("web", &[vip(1, 80)], &[0, 0, 0]);
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[..], [Step::SetDraining(changed), Step::ReplaceTables(_)] if changed == &[(2, true)])
    );
}

#[test]
fn a_vip_moves_to_another_service_in_place() {
    let mut desired = web();
    desired.services.push(service("other", &[vip(2, 80)], &[1]));
    let mut model = model_of(&desired);
    desired.services[0].vips.clear();
    desired.services[1].vips.push(vip(1, 80));
    let steps = change(&mut model, &desired);
    let key = VipKey::new(1, Port::new(80), Protocol::Tcp.number());
    let entry = ServiceRef { index: 2, options: VipOptions::NONE };
    let cleared = vec![(vip(1, 80).prefix(), VipAddress::new(1, AddressOptions::NONE))];
    let addresses = vec![(vip(1, 80).prefix(), caching(1, AddressOptions::NONE, 80, entry))];
    assert_eq!(
        steps,
        [Step::ClearCachedVips(cleared), Step::PutVips { addresses, vips: vec![(key, entry)] }]
    );
}

#[test]
fn a_removed_service_loses_its_vips_before_its_table_and_its_table_before_its_backends() {
    let mut model = model_of(&web());
    let steps = change(&mut model, &Desired::default());
    assert!(
        matches!(&steps[..], [Step::RemoveVips { vips, addresses }, Step::RetireServices(services),
        Step::RetireBackends(backends)] if vips.len() == 1 && addresses.len() == 1 && services == &[1] && backends == &[1, 2]),
        "{steps:?}"
    );
}

#[test]
fn a_freed_index_stays_in_quarantine_and_gets_a_new_epoch() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends[1].name = "c".to_owned();
    change(&mut model, &desired);
    model.now += QUARANTINE_SECONDS * SECOND - 1;
    desired.backends[1].name = "d".to_owned();
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[0], Step::AddBackends(new) if (new[0].index, new[0].entry.epoch) == (4, 1))
    );
    model.now += 1;
    desired.backends[1].name = "e".to_owned();
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[0], Step::AddBackends(new) if (new[0].index, new[0].entry.epoch) == (2, 2))
    );
}

#[test]
fn an_epoch_that_overflows_skips_zero() {
    let mut have = Have::default();
    let entry = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 0 };
    let has =
        HaveBackend { name: None, entry, epoch: u32::MAX, draining: false, reusable_after: 0 };
    have.backends.insert(1, has);
    let steps = plan(&have, &web(), CAPACITIES, 0).unwrap();
    assert!(
        matches!(&steps[0], Step::AddBackends(new) if (new[0].index, new[0].entry.epoch) == (1, 1))
    );
}

#[test]
fn a_state_above_the_capacities_is_refused_with_the_limit_to_raise() {
    let model = Model::new(CAPACITIES);
    let full = |desired: &Desired| model.plan(desired).unwrap_err();
    let mut desired = web();
    desired.backends = (1..=5).map(|i| backend(&format!("b{i}"), i)).collect();
    assert_eq!(full(&desired), PlanError::Full { what: "backends", capacity: 4 });
    let mut desired = web();
    desired.services = (1..=4).map(|i| service(&format!("s{i}"), &[vip(i, 80)], &[0])).collect();
    assert_eq!(full(&desired), PlanError::Full { what: "services", capacity: 3 });
    let mut desired = web();
    desired.services[0].vips = (1..=5).map(|port| vip(1, port)).collect();
    assert_eq!(full(&desired), PlanError::Full { what: "vips", capacity: 4 });
    assert!(full(&desired).to_string().contains("limits.vips"));
}

#[test]
fn vips_are_replaced_when_old_and_new_ones_do_not_fit_together() {
    let mut desired = web();
    desired.services[0].vips = (1..=4).map(|last| vip(last, 80)).collect();
    let mut model = model_of(&desired);
    desired.services[0].vips = (3..=6).map(|last| vip(last, 80)).collect();
    let steps = change(&mut model, &desired);
    assert!(matches!(&steps[..], [Step::RemoveVips { .. }, Step::PutVips { .. }]), "{steps:?}");
}

#[test]
fn vips_left_by_a_crash_are_not_inherited_by_another_address() {
    let mut model = Model::new(CAPACITIES);
    let steps = model.plan(&web()).unwrap();
    model.start_change(&web());
    for step in &steps[..2] {
        model.apply(step).unwrap();
    }
    // The daemon dies after the write of the VIP and before that of its address. The configuration
    // changes before the daemon starts again.
    model.writes_left = Some(1);
    model.apply(&steps[2]).unwrap_err();
    model.writes_left = None;
    let mut desired = web();
    desired.services[0].vips = vec![vip(7, 443)];
    let steps = change(&mut model, &desired);
    assert!(
        steps
            .iter()
            .any(|step| matches!(step, Step::PutVips { addresses, .. } if addresses[0].1.id == 2)),
        "{steps:?}"
    );
}

#[test]
fn a_backend_partly_written_before_a_crash_does_not_replace_the_one_in_use() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.backends[1] = backend("b", 9);
    let steps = model.plan(&desired).unwrap();
    model.start_change(&desired);
    // The counters and the record of the new index are written, the entry is not.
    model.writes_left = Some(2);
    model.apply(&steps[0]).unwrap_err();
    model.writes_left = None;
    let steps = change(&mut model, &web());
    assert_eq!(steps, [Step::RetireBackends(vec![3])]);
}

#[test]
fn options_of_vips_and_addresses_change_in_place() {
    let mut model = model_of(&web());
    let mut desired = web();
    desired.services[0].options = VipOptions::HASH_CLIENT;
    desired.addresses = [(vip(1, 80).prefix(), AddressOptions::DROP_NO_SERVICE)].into();
    let steps = change(&mut model, &desired);
    let key = VipKey::new(1, Port::new(80), Protocol::Tcp.number());
    let entry = ServiceRef { index: 1, options: VipOptions::HASH_CLIENT };
    let addresses =
        vec![(vip(1, 80).prefix(), caching(1, AddressOptions::DROP_NO_SERVICE, 80, entry))];
    let cleared = vec![(vip(1, 80).prefix(), VipAddress::new(1, AddressOptions::NONE))];
    assert_eq!(
        steps,
        [Step::ClearCachedVips(cleared), Step::PutVips { addresses, vips: vec![(key, entry)] }]
    );
}

#[test]
fn an_address_caches_the_first_configured_vip_with_a_port() {
    let mut desired = web();
    desired.services[0].vips = vec![vip(1, 0), vip(1, 443), vip(1, 80)];
    let mut model = model_of(&desired);
    assert_eq!(
        model.address(vip(1, 80).prefix()),
        Some(caching(1, AddressOptions::NONE, 443, WEB))
    );

    // Another order changes the address only. Nothing is cleared, because the old cached VIP stays
    // valid until then.
    desired.services[0].vips = vec![vip(1, 80), vip(1, 443), vip(1, 0)];
    let steps = change(&mut model, &desired);
    let addresses = vec![(vip(1, 80).prefix(), caching(1, AddressOptions::NONE, 80, WEB))];
    assert_eq!(steps, [Step::PutVips { addresses, vips: vec![] }]);

    // The VIP is removed, the address stays.
    desired.services[0].vips = vec![vip(1, 0), vip(1, 443)];
    let steps = change(&mut model, &desired);
    let prefix = vip(1, 80).prefix();
    let addresses = vec![(prefix, caching(1, AddressOptions::NONE, 443, WEB))];
    let key = VipKey::new(1, Port::new(80), Protocol::Tcp.number());
    let cleared = vec![(prefix, VipAddress::new(1, AddressOptions::NONE))];
    let remove = Step::RemoveVips { vips: vec![key], addresses: vec![] };
    assert_eq!(
        steps,
        [Step::ClearCachedVips(cleared), Step::PutVips { addresses, vips: vec![] }, remove]
    );

    desired.services[0].vips = vec![vip(1, 0)];
    change(&mut model, &desired);
    assert_eq!(model.address(prefix), Some(VipAddress::new(1, AddressOptions::NONE)));
}

#[test]
fn cached_vips_are_cleared_before_removals_that_make_room() {
    let mut desired = web();
    desired.services[0].vips = vec![vip(1, 1), vip(1, 2), vip(1, 3), vip(1, 4)];
    let mut model = model_of(&desired);
    desired.services[0].vips = vec![vip(1, 5), vip(1, 2), vip(1, 3), vip(1, 4)];
    let steps = change(&mut model, &desired);
    assert!(
        matches!(
            steps[..],
            [Step::ClearCachedVips(_), Step::RemoveVips { .. }, Step::PutVips { .. }]
        ),
        "{steps:?}"
    );
}

#[test]
fn a_cached_vip_that_differs_from_its_vip_is_corrected() {
    let mut model = model_of(&web());
    let wrong = ServiceRef { index: 2, options: VipOptions::NONE };
    model.overwrite_address(vip(1, 80).prefix(), caching(1, AddressOptions::NONE, 80, wrong));
    for step in model.plan(&web()).unwrap() {
        model.apply(&step).unwrap();
    }
    model.check_reached(&web());
}

#[test]
fn pings_are_forwarded_to_the_service_with_the_lowest_port_while_the_option_is_set() {
    let mut desired = web();
    // The order of the services does not matter.
    desired.services[0].vips = vec![vip(1, 443)];
    desired.services.push(service("plain", &[vip(1, 80)], &[1]));
    desired.addresses = [(vip(1, 80).prefix(), AddressOptions::PING_FORWARD)].into();
    let mut model = model_of(&desired);
    let mut reversed = desired.clone();
    reversed.services.reverse();
    // Only the address's cached VIP differs.
    let steps = model.plan(&reversed).unwrap();
    assert!(
        matches!(&steps[..], [Step::PutVips { addresses, vips }] if addresses.len() == 1 && vips.is_empty())
    );
    assert_eq!(model.vip(&VipKey::pings(1)).map(|entry| entry.index), Some(2));
    desired.services[1].vips.clear();
    change(&mut model, &desired);
    assert_eq!(model.vip(&VipKey::pings(1)).map(|entry| entry.index), Some(1));
    desired.addresses.clear();
    let steps = change(&mut model, &desired);
    let addresses = vec![(vip(1, 80).prefix(), caching(1, AddressOptions::NONE, 443, WEB))];
    let changes = Step::PutVips { addresses, vips: vec![] };
    assert_eq!(
        steps,
        [changes, Step::RemoveVips { vips: vec![VipKey::pings(1)], addresses: vec![] }]
    );
}

/// The key of a route of the service with an index.
fn route(service: u32, clients: &str) -> RouteKey {
    RouteKey::new(service, &prefix_key(clients.parse().unwrap()))
}

/// `web` with a route to `near`, which has no VIPs.
fn routed() -> Desired {
    let mut desired = web();
    desired.services.push(service("near", &[], &[1]));
    desired.services[0].options = VipOptions::ROUTED;
    desired.services[0].routes = vec![("198.51.100.0/24".parse().unwrap(), 1)];
    desired
}

#[test]
fn routes_are_added_after_the_tables_of_their_targets_and_before_the_vips_with_routes() {
    let mut model = model_of(&web());
    let steps = change(&mut model, &routed());
    let near = ServiceRef { index: 2, options: VipOptions::NONE };
    let [
        Step::ReplaceTables(tables),
        Step::PutRoutes(routes),
        Step::ClearCachedVips(_),
        Step::PutVips { vips, .. },
    ] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert_eq!((tables.len(), tables[0].service), (1, 2));
    assert_eq!(routes, &[(route(1, "198.51.100.0/24"), near)]);
    assert_eq!(vips[0].1.options, VipOptions::ROUTED);

    let steps = change(&mut model, &web());
    assert!(
        matches!(&steps[..], [Step::ClearCachedVips(_), Step::PutVips { .. }, Step::RemoveRoutes(keys), Step::RetireServices(gone)]
            if keys == &[route(1, "198.51.100.0/24")] && gone == &[2]),
        "{steps:?}"
    );
}

#[test]
fn a_route_changes_in_place_with_the_options_of_its_target() {
    let mut desired = routed();
    let mut model = model_of(&desired);
    assert_eq!(model.plan(&desired).unwrap(), []);
    desired.services[1].options = VipOptions::HASH_SOURCE;
    let steps = change(&mut model, &desired);
    let near = ServiceRef { index: 2, options: VipOptions::HASH_SOURCE };
    assert_eq!(steps, [Step::PutRoutes(vec![(route(1, "198.51.100.0/24"), near)])]);

    // Another target, and an additional prefix for the same target.
    desired.services.push(service("far", &[], &[0]));
    desired.services[0].routes =
        vec![("198.51.100.0/24".parse().unwrap(), 2), ("2001:db8:99::/48".parse().unwrap(), 1)];
    let steps = change(&mut model, &desired);
    assert!(
        matches!(&steps[..], [Step::ReplaceTables(_), Step::PutRoutes(routes)] if routes.len() == 2),
        "{steps:?}"
    );
    desired.services[0].routes.remove(0);
    let steps = change(&mut model, &desired);
    assert_eq!(steps, [Step::RemoveRoutes(vec![route(1, "198.51.100.0/24")])]);
}

#[test]
fn routes_are_removed_first_when_old_and_new_ones_do_not_fit_together() {
    let mut have = Have::default();
    let lost = ServiceRef { index: 3, options: VipOptions::NONE };
    have.routes =
        (0..ROUTES).map(|i| (RouteKey::new(9, &PrefixKey::new(128, [i, 0, 0, 0])), lost)).collect();
    let steps = plan(&have, &routed(), CAPACITIES, 0).unwrap();
    let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    assert!(
        at(|step| matches!(step, Step::RemoveRoutes(_)))
            < at(|step| matches!(step, Step::PutRoutes(_)))
    );
}

/// `web` with QUIC server IDs: configuration ID, server ID and backend.
fn with_ids(ids: &[(u8, &[u8], usize)]) -> Desired {
    let mut desired = web();
    desired.services[0].options = VipOptions::NONE.with_if(!ids.is_empty(), VipOptions::QUIC);
    desired.services[0].server_ids =
        ids.iter().map(|(rotation, id, backend)| (*rotation, id.to_vec(), *backend)).collect();
    desired
}

fn server(rotation: u8, id: &[u8]) -> QuicServerKey {
    QuicServerKey::new(1, rotation, id).unwrap()
}

#[test]
fn server_ids_are_added_after_their_backends_and_removed_before_them() {
    let mut model = model_of(&web());
    let mut desired = with_ids(&[(0, &[1, 2, 3], 0), (1, &[9], 2)]);
    desired.backends.push(backend("c", 3));
    let steps = change(&mut model, &desired);
    let connection = |backend, epoch| Connection { backend, epoch };
    let put = Step::PutServerIds {
        // In the order of the keys.
        servers: BTreeMap::from([
            (server(0, &[1, 2, 3]), connection(1, 1)),
            (server(1, &[9]), connection(3, 1)),
        ])
        .into_iter()
        .collect(),
        lengths: vec![(1, QuicIdLengths::NONE.with(0, 3).with(1, 1))],
    };
    assert!(
        matches!(&steps[..], [Step::AddBackends(_), ids, Step::ClearCachedVips(_), Step::PutVips { .. }] if *ids == put),
        "{steps:?}"
    );
    assert_eq!(model.plan(&desired).unwrap(), []);

    let steps = change(&mut model, &web());
    let servers = BTreeSet::from([server(0, &[1, 2, 3]), server(1, &[9])]).into_iter().collect();
    let remove = Step::RemoveServerIds { servers, services: vec![1] };
    assert!(
        matches!(&steps[..], [Step::ClearCachedVips(_), Step::PutVips { .. }, ids, Step::RetireBackends(gone)]
            if *ids == remove && gone == &[3]),
        "{steps:?}"
    );
}

#[test]
fn a_server_id_follows_its_backend_to_a_new_index_and_changes_its_backend_in_place() {
    let ids: [(u8, &[u8], usize); 1] = [(0, &[1, 2, 3], 1)];
    let mut model = model_of(&with_ids(&ids));
    let mut desired = with_ids(&ids);
    desired.backends[1] = backend("b", 9);
    let steps = change(&mut model, &desired);
    let to = |backend| {
        let servers = vec![(server(0, &[1, 2, 3]), Connection { backend, epoch: 1 })];
        Step::PutServerIds { servers, lengths: vec![] }
    };
    assert!(
        matches!(&steps[..], [Step::AddBackends(_), Step::ReplaceTables(_), ids, Step::RetireBackends(_)] if *ids == to(3)),
        "{steps:?}"
    );
    desired.services[0].server_ids[0].2 = 0;
    assert_eq!(change(&mut model, &desired), [to(1)]);
}

#[test]
fn a_new_length_is_written_after_the_new_server_ids_and_before_the_removal_of_old_ones() {
    let mut model = model_of(&with_ids(&[(0, &[1, 2, 3], 0)]));
    let steps = change(&mut model, &with_ids(&[(0, &[1, 2], 0)]));
    let put = Step::PutServerIds {
        servers: vec![(server(0, &[1, 2]), Connection { backend: 1, epoch: 1 })],
        lengths: vec![(1, QuicIdLengths::NONE.with(0, 2))],
    };
    let remove = Step::RemoveServerIds { servers: vec![server(0, &[1, 2, 3])], services: vec![] };
    assert_eq!(steps, [put, remove]);
}

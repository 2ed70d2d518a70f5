//! Random sequences of desired states, with crashes after any write.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use sluice_datapath::abi::{AddressOptions, VipOptions};

use super::*;

/// Room for the indexes in quarantine after interrupted changes.
const ROOMY: Capacities = Capacities { services: 12, backends: 60, vips: 10, connections: 1024 };

/// One change: the desired state, the number of writes before the daemon dies (if it does), and the
/// time until the next change.
#[derive(Debug, Clone)]
struct DesiredChange {
    desired: Desired,
    dies_after: Option<usize>,
    seconds: u64,
}

fn backends() -> impl Strategy<Value = Vec<DesiredBackend>> {
    let some = subsequence(vec!["a", "b", "c", "d", "e"], 1..=5).prop_shuffle();
    some.prop_flat_map(|names| {
        let addresses = subsequence((1..=7).collect::<Vec<u8>>(), names.len()).prop_shuffle();
        let draining = proptest::collection::vec(any::<bool>(), names.len());
        (Just(names), addresses, draining, proptest::collection::vec(0..4u8, 5))
    })
    .prop_map(|(names, mut addresses, draining, moves)| {
        // Most backends keep their usual address from one state to the next.
        for (position, name) in names.iter().enumerate() {
            let usual = name.as_bytes()[0] - b'a' + 1;
            if moves[position] != 0 {
                match addresses.iter().position(|address| *address == usual) {
                    Some(other) => addresses.swap(position, other),
                    None => addresses[position] = usual,
                }
            }
        }
        let all = names.into_iter().zip(addresses).zip(draining);
        all.map(|((name, address), draining)| DesiredBackend { draining, ..backend(name, address) })
            .collect()
    })
}

fn services(backends: usize) -> impl Strategy<Value = Vec<DesiredService>> {
    let table = || (proptest::collection::vec(0..backends, 5), any::<bool>());
    let vips = [(1, 80), (1, 443), (2, 80), (3, 80), (4, 53)];
    // Each VIP belongs to one of the services, or to none.
    let holders =
        proptest::collection::vec(select(vec![None, Some(0), Some(1), Some(2)]), vips.len());
    let routes = proptest::option::of(subsequence(
        vec!["198.51.100.0/24", "198.51.100.7/32", "2001:db8::/32"],
        1..=3,
    ));
    (subsequence(vec![0, 1, 2], 0..=3), holders, [table(), table(), table()], routes).prop_map(
        move |(chosen, holders, tables, routes)| {
            let count = chosen.len();
            let wanted =
                chosen.into_iter().enumerate().map(|(position, number): (usize, usize)| {
                    let held =
                        vips.iter().zip(&holders).filter(|(_, holder)| **holder == Some(number));
                    let held: Vec<_> = held.map(|((last, port), _)| vip(*last, *port)).collect();
                    let (owners, tracked) = &tables[number];
                    let options = VipOptions::NONE.with_if(owners[0] == 0, VipOptions::HASH_SOURCE);
                    // The first service routes clients to the others.
                    let routes = routes
                        .as_ref()
                        .filter(|_| position == 0 && count > 1)
                        .into_iter()
                        .flatten();
                    let routes: Vec<_> = routes
                        .enumerate()
                        .map(|(i, p)| (p.parse().unwrap(), 1 + i % (count - 1)))
                        .collect();
                    // Some services have server IDs, of one or two octets, in two configurations.
                    let ids = owners.iter().enumerate().filter(|_| owners[2] % 2 == 1);
                    let octets = 1 + owners[1] % 2;
                    let server_ids: Vec<_> = ids
                        .map(|(i, owner)| (i as u8 % 2, vec![i as u8; octets], *owner))
                        .collect();
                    let options = options.with_if(!routes.is_empty(), VipOptions::ROUTED);
                    let options = options.with_if(!server_ids.is_empty(), VipOptions::QUIC);
                    DesiredService {
                        tracked: *tracked,
                        options,
                        routes,
                        server_ids,
                        ..service(["x", "y", "z"][number], &held, owners)
                    }
                });
            wanted.collect()
        },
    )
}

fn desired() -> impl Strategy<Value = Desired> {
    backends().prop_flat_map(|backends| {
        let services = services(backends.len());
        // VIP addresses 1 and 2 may drop packets without a service, 1 and 3 may forward pings.
        let drop = [1, 2].map(|last| (vip(last, 80).prefix(), AddressOptions::DROP_NO_SERVICE));
        let forward = [1, 3].map(|last| (vip(last, 80).prefix(), AddressOptions::PING_FORWARD));
        let addresses = subsequence([drop, forward].concat(), 0..=4);
        (Just(backends), services, addresses).prop_map(|(backends, services, addresses)| Desired {
            backends,
            services,
            addresses: addresses.into_iter().collect(),
            global_acl: false,
            fragment_rates: false,
        })
    })
}

fn any_change() -> impl Strategy<Value = DesiredChange> {
    (desired(), proptest::option::weighted(0.5, 0..30usize), 0..40u64)
        .prop_map(|(desired, dies_after, seconds)| DesiredChange { desired, dies_after, seconds })
}

/// Plans and applies as the daemon does. Returns whether all steps are done, or the daemon died.
fn run(model: &mut Model, desired: &Desired, dies_after: Option<usize>) -> bool {
    let steps = model.plan(desired).expect("there is room");
    model.start_change(desired);
    model.writes_left = dies_after;
    let done = steps.iter().all(|step| model.apply(step).is_ok());
    model.writes_left = None;
    done
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// After each write the model checks that packets find consistent entries, also after earlier
    /// interruptions.
    #[test]
    fn every_state_is_reached_from_every_other_without_a_gap(changes in proptest::collection::vec(any_change(), 1..8)) {
        let mut model = Model::new(ROOMY);
        for change in &changes {
            if run(&mut model, &change.desired, change.dies_after) {
                model.check_reached(&change.desired);
            }
            model.now += change.seconds * SECOND;
        }
        let last = &changes[changes.len() - 1].desired;
        prop_assert!(run(&mut model, last, None));
        model.check_reached(last);
    }

    /// Each point at which the daemon can die during one change, with the restart after it.
    #[test]
    fn a_change_may_be_interrupted_after_any_write(before in desired(), after in desired()) {
        for dies_after in 0.. {
            let mut model = Model::new(ROOMY);
            prop_assert!(run(&mut model, &before, None));
            let done = run(&mut model, &after, Some(dies_after));
            prop_assert!(run(&mut model, &after, None));
            model.check_reached(&after);
            if done {
                break;
            }
        }
    }
}

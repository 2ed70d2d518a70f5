//! Random sequences of wanted states, with the daemon dying anywhere in between.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use sluice_datapath::abi::{AddressOptions, VipOptions};

use super::*;

/// Room for what interrupted changes leave resting.
const ROOMY: Capacities = Capacities { services: 12, backends: 60, vips: 10, connections: 1024 };

/// One change: what is wanted, after how many writes the daemon dies (if it does), and how long it
/// takes until the next.
#[derive(Debug, Clone)]
struct Turn {
    want: Desired,
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
                    // Of those there are, the first one routes clients to the others.
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

fn want() -> impl Strategy<Value = Desired> {
    backends().prop_flat_map(|backends| {
        let services = services(backends.len());
        // VIP addresses 1 and 2 may drop what no VIP takes, 1 and 3 may forward pings.
        let drop = [1, 2].map(|last| (vip(last, 80).prefix(), AddressOptions::DROP_NO_SERVICE));
        let forward = [1, 3].map(|last| (vip(last, 80).prefix(), AddressOptions::PING_FORWARD));
        let addresses = subsequence([drop, forward].concat(), 0..=4);
        (Just(backends), services, addresses).prop_map(|(backends, services, addresses)| Desired {
            backends,
            services,
            addresses: addresses.into_iter().collect(),
            list_of_all: false,
        })
    })
}

fn turn() -> impl Strategy<Value = Turn> {
    (want(), proptest::option::weighted(0.5, 0..30usize), 0..40u64)
        .prop_map(|(want, dies_after, seconds)| Turn { want, dies_after, seconds })
}

/// Applies as the daemon does until everything is done or it dies; whether it got to the end.
fn run(model: &mut Model, want: &Desired, dies_after: Option<usize>) -> bool {
    let steps = model.plan(want).expect("there is room");
    model.begin(want);
    model.writes_left = dies_after;
    let done = steps.iter().all(|step| model.apply(step).is_ok());
    model.writes_left = None;
    done
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// The model checks after every write what packets rely on, whatever was left by the last
    /// interruption.
    #[test]
    fn every_state_is_reached_from_whatever_is_there_without_a_gap(turns in proptest::collection::vec(turn(), 1..8)) {
        let mut model = Model::new(ROOMY);
        for turn in &turns {
            if run(&mut model, &turn.want, turn.dies_after) {
                model.check_reached(&turn.want);
            }
            model.now += turn.seconds * SECOND;
        }
        let last = &turns[turns.len() - 1].want;
        prop_assert!(run(&mut model, last, None));
        model.check_reached(last);
    }

    /// Each point at which the daemon can die in one change, and the start after it.
    #[test]
    fn a_change_may_be_interrupted_after_any_write(before in want(), after in want()) {
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

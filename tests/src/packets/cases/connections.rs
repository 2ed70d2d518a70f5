//! The connection table of tracked services.

use sluice_datapath::Reason;

use super::case::{Case, CaseStep};
use super::expect::{drops, forwards};
use crate::packets::expectation::Expectation;
use crate::packets::fixture::Fixture;
use crate::packets::frames::{Client, Frame};

/// The hint of the first lookup table and of its replacement.
const FIRST: u16 = 0x1240;
const SECOND: u16 = 0xa5c0;

pub(super) fn cases() -> Vec<Case> {
    let tracked = |backend, hint| Fixture::new().all_to(backend, hint).tracked(true);
    let plain = |backend, hint| Fixture::new().all_to(backend, hint);
    let case = |name, steps: Vec<Vec<CaseStep>>| Case { name, steps: steps.concat() };
    vec![
        case(
            "a tracked flow stays with its backend when the lookup table changes",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND)),
                // The backend comes from the connection table, the hint from the slot.
                all(1, SECOND),
            ],
        ),
        case(
            "a flow that starts after the lookup table changed goes to the new backend",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND)),
                other_port(2, SECOND),
                all(1, SECOND),
            ],
        ),
        case(
            "a SYN ignores the connection table and moves the flow to its slot's backend",
            vec![
                configure(tracked(1, FIRST)),
                syns(1, FIRST),
                all(1, FIRST),
                configure(tracked(2, SECOND)),
                syns(2, SECOND),
                tcp(2, SECOND),
            ],
        ),
        case(
            "a SYN creates no connection entry; the next segment follows the lookup table",
            vec![
                configure(tracked(1, FIRST)),
                syns(1, FIRST),
                configure(tracked(2, SECOND)),
                tcp(2, SECOND),
            ],
        ),
        case(
            "the first segment after a SYN creates the connection entry",
            vec![
                configure(tracked(1, FIRST)),
                syns(1, FIRST),
                tcp(1, FIRST),
                configure(tracked(2, SECOND)),
                tcp(1, SECOND),
            ],
        ),
        case(
            "an untracked service follows its lookup table",
            vec![
                configure(plain(1, FIRST)),
                all(1, FIRST),
                configure(plain(2, SECOND)),
                all(2, SECOND),
            ],
        ),
        case(
            "an untracked service writes nothing into the connection table",
            vec![
                configure(plain(1, FIRST)),
                syns(1, FIRST),
                all(1, FIRST),
                // A connection entry from above would keep these flows at backend 1.
                configure(tracked(2, SECOND)),
                all(2, SECOND),
            ],
        ),
        case(
            "a service that stops tracking does not read the connection table",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(plain(2, SECOND)),
                all(2, SECOND),
            ],
        ),
        case(
            "a reused backend index keeps no flows of its previous backend",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND).with_backend(1, |backend| backend.epoch = 2)),
                all(2, SECOND),
            ],
        ),
        case(
            "flows of a removed backend move to their slot's backend and stay there",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND).without_backend(1)),
                all(2, SECOND),
                configure(tracked(3, FIRST).without_backend(1)),
                all(2, FIRST),
            ],
        ),
        case(
            "a tracked flow stays with its backend when its slot is empty",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(0, SECOND)),
                all(1, SECOND),
                Client::each()
                    .map(|client| send(drops(client.from_port(9).frame(), Reason::NoBackend)))
                    .to_vec(),
            ],
        ),
        case(
            "a tracked flow to a backend without a route is dropped, not moved",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND).with_backend(1, |backend| backend.next_hop = None)),
                Client::each().map(|client| send(drops(client.frame(), Reason::NoRoute))).to_vec(),
            ],
        ),
        case(
            "flows that differ in one field of the 5-tuple have their own entries",
            vec![
                configure(tracked(1, FIRST)),
                all(1, FIRST),
                configure(tracked(2, SECOND)),
                Client::each()
                    .map(|client| send(forwards(&client.from_port(40_002), 2, SECOND)))
                    .to_vec(),
                Client::each()
                    .map(|client| {
                        let source = if client.is_v6() {
                            "[2001:db8:99::8]:40001"
                        } else {
                            "198.51.100.8:40001"
                        };
                        let source = source.parse().expect("an address");
                        send(forwards(&Client { source, ..client }, 2, SECOND))
                    })
                    .to_vec(),
                all(1, SECOND),
            ],
        ),
    ]
}

fn configure(fixture: Fixture) -> Vec<CaseStep> {
    vec![CaseStep::Configure(fixture)]
}

fn send((frame, outcome): (Frame, Expectation)) -> CaseStep {
    CaseStep::Send(frame, outcome)
}

fn all(backend: u16, hint: u16) -> Vec<CaseStep> {
    Client::each().map(|client| send(forwards(&client, backend, hint))).to_vec()
}

fn other_port(backend: u16, hint: u16) -> Vec<CaseStep> {
    Client::each().map(|client| send(forwards(&client.from_port(51_000), backend, hint))).to_vec()
}

fn tcp(backend: u16, hint: u16) -> Vec<CaseStep> {
    [Client::tcp4(), Client::tcp6()].map(|client| send(forwards(&client, backend, hint))).to_vec()
}

fn syns(backend: u16, hint: u16) -> Vec<CaseStep> {
    [false, true].map(|v6| send(forwards(&Client::syn(v6), backend, hint))).to_vec()
}

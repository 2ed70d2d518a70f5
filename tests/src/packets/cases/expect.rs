//! Frames of clients with their expectations.

use std::net::IpAddr;

use sluice_datapath::Reason;

use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::fixture::{BackendSpec, DNS, Fixture, SlotSpec, WEB};
use crate::packets::frames::{self, Client, Frame, L4Kind};
use crate::packets::oracle::flow;

/// A client's packet that is forwarded to a backend of [`Fixture::new`].
pub(super) fn forwards(client: &Client, backend: u16, hint: u16) -> (Frame, Expectation) {
    let bytes = client.frame();
    let outcome = forwarded(&bytes, client, backend, hint);
    (bytes.into(), outcome)
}

/// The expectation that a client's packet in these bytes, which may be padded, is forwarded.
pub(super) fn forwarded(bytes: &[u8], client: &Client, backend: u16, hint: u16) -> Expectation {
    let length = client.packet().len();
    let host = BackendSpec::new(backend);
    let outer = if client.is_v6() {
        frames::outer_v6(host.v6.expect("every backend has one"), client.tos, hint, length)
    } else {
        frames::outer_v4(host.v4.expect("every backend has one"), client.tos, hint, length)
    };
    Expectation::Forward(Forwarded {
        bytes: frames::encapsulated(bytes, &outer),
        service: if client.transport == L4Kind::Udp { DNS } else { WEB },
        backend,
        packets: 1,
        length: length as u64,
        is_syn: client.transport == L4Kind::TcpSyn,
    })
}

/// The slot of a client's flow in a fixture's lookup tables.
pub(super) fn slot_of(fixture: &Fixture, client: &Client) -> SlotSpec {
    let (service, protocol) = if client.transport == L4Kind::Udp { (DNS, 17) } else { (WEB, 6) };
    let ports =
        [client.source.port().to_be_bytes(), client.destination.port().to_be_bytes()].concat();
    let addresses: (IpAddr, IpAddr) = (client.source.ip(), client.destination.ip());
    let tuple = flow::tuple(addresses.0, addresses.1, &ports, protocol);
    flow::slot(&fixture.tables[&service].slots, &tuple).expect("the table has slots")
}

pub(super) fn passes(bytes: Vec<u8>, reason: Reason) -> (Frame, Expectation) {
    (bytes.into(), Expectation::Pass(reason))
}

pub(super) fn drops(bytes: Vec<u8>, reason: Reason) -> (Frame, Expectation) {
    (bytes.into(), Expectation::Drop(reason))
}

/// The bytes with `new` written at an offset.
pub(super) fn patched(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

//! The backend that a QUIC packet's connection ID names (QUIC-LB,
//! draft-ietf-quic-load-balancers-21, plaintext connection IDs).
//!
//! A server puts the server ID that it was given into the connection IDs that it chooses. So all
//! packets of a connection reach it, from whatever address and port its client sends them. The
//! first octet of such an ID has three bits that say which configuration it is of; the other five
//! mean nothing here. The server ID follows, then what the server made up.
//!
//! Only what is the same in all versions of QUIC is relied upon (RFC 8999), but for one thing:
//! which packets carry an ID that the client made up.

use crate::Reason;
use crate::balance::{Outcome, conclude, refuse};
use crate::choose::{Choice, still};
use crate::encapsulate::way;
use crate::entries::{Connection, Vip};
use crate::flow::UDP;
use crate::gue::Behind;
use crate::header::Udp;
use crate::options::{Features, VipOptions};
use crate::ours::{self, Ours};
use crate::packet::{ETHERNET, Packet};
use crate::parse::{self, Part, Size};
use crate::plain::plain;
use crate::tables::BalancerTables;
use crate::verifier::forgotten;
use crate::vip::{check_source, find_address, find_vip, route};
use crate::walk::Place;

/// Value of the array `QUIC_LENGTHS`, by service: how many octets the server IDs of each
/// configuration have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct IdLengths(u32);
plain!(IdLengths, 4);

impl IdLengths {
    /// No configuration.
    pub const NONE: Self = Self(0);
    /// The most octets of a server ID. Longer ones would leave nothing for the server in 20 octets.
    pub const MOST: u8 = 15;
    /// How many configurations there can be; the eighth number says that an ID names nobody.
    pub const ROTATIONS: u8 = 7;

    /// The same with a configuration, of a rotation below [`Self::ROTATIONS`], whose server IDs
    /// have 1 to [`Self::MOST`] octets.
    #[must_use]
    pub const fn with(self, rotation: u8, octets: u8) -> Self {
        Self(self.0 | (octets as u32 & 0xf) << ((rotation as u32 & 7) << 2))
    }

    /// Octets of a configuration's server IDs; 0 when there is no such configuration.
    #[inline(always)]
    const fn of(self, rotation: u32) -> u32 {
        self.0 >> (rotation << 2) & 0xf
    }
}

/// Key of the map `QUIC_SERVERS`: a server ID of a service's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServerKey {
    /// The service.
    pub service: u32,
    /// An octet of three bits for the configuration and five for the length, the server ID, and
    /// zeros.
    id: [u32; 4],
}
plain!(ServerKey, 20);

impl ServerKey {
    /// The key of a server ID of a configuration; `None` unless it has 1 to [`IdLengths::MOST`]
    /// octets.
    pub fn new(service: u32, rotation: u8, id: &[u8]) -> Option<Self> {
        let length =
            u8::try_from(id.len()).ok().filter(|length| (1..=IdLengths::MOST).contains(length))?;
        let mut octets = [0; 16];
        octets[0] = rotation << 5;
        octets[1..=id.len()].copy_from_slice(id);
        let begins = [0, 8].map(|at| u64::from_ne_bytes(core::array::from_fn(|i| octets[at + i])));
        Self::of(service, IdLengths::NONE.with(rotation, length), begins).map(|(key, _)| key)
    }

    /// The configuration, and its server ID.
    pub fn server_id(&self) -> (u8, [u8; 15], usize) {
        let mut octets = [0; 16];
        for (four, word) in octets.chunks_exact_mut(4).zip(self.id) {
            four.copy_from_slice(&word.to_ne_bytes());
        }
        let [head, id @ ..] = octets;
        (head >> 5, id, usize::from(head & 0xf))
    }

    /// The key of what a connection ID begins with, its first 16 octets as they lie in memory, and
    /// the octets of the server ID in it.
    #[inline(always)]
    fn of(service: u32, lengths: IdLengths, octets: [u64; 2]) -> Option<(Self, u32)> {
        let (high, low) = (u64::from_be(octets[0]), u64::from_be(octets[1]));
        let rotation = (high >> 61) as u32;
        let length = lengths.of(rotation);
        if length == 0 {
            return None;
        }
        // Bits behind the server ID, at most 112.
        let spare = 15_u32.wrapping_sub(length).wrapping_mul(8);
        let (keep_high, keep_low) =
            if spare < 64 { (u64::MAX, u64::MAX << spare) } else { (u64::MAX << (spare & 63), 0) };
        let head = u64::from(rotation << 5 | length) << 56;
        let high = (high & keep_high & (u64::MAX >> 8) | head).to_be();
        let low = (low & keep_low).to_be();
        // As they lie in memory.
        let id = if cfg!(target_endian = "big") {
            [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]
        } else {
            [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
        };
        Some((Self { service, id }, length))
    }
}

/// The backend that a datagram names, which is there, and what was found out about the datagram
/// until then.
pub struct Server {
    choice: Choice,
    /// Of whom it is a client: of the VIP's service, and of that to which a route leads.
    vip: Vip,
    routed: Vip,
    size: Size,
    behind: Behind,
    /// The flow's hash, 0 where nothing in an outer header depends on it.
    hash: u64,
}

/// The first half of a stage: whom the connection ID of a whole UDP datagram to a VIP address
/// names, at a known place. When it names nobody that is there, then it is uncounted, and a matter
/// for [`general`](crate::balance::general) at the same place, which says, too, whatever else is
/// wrong with it.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn named<P: Packet, T: BalancerTables>(
    packet: &P,
    place: Place,
    tables: &T,
) -> Result<Option<Server>, Reason> {
    find(packet, place, tables).inspect_err(|reason| refuse(tables, 0, *reason))
}

/// The second half: the packet goes there.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn quic<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    server: &Server,
    tables: &T,
) -> Result<Outcome<P>, Reason> {
    let mut service = 0;
    let outcome = forward(packet, place, server, tables, &mut service);
    conclude(tables, service, outcome)
}

/// Whether connection IDs of a VIP's packets may name their backends.
#[inline(always)]
pub(crate) fn is_quic<T: BalancerTables>(tables: &T, vip: &Vip, protocol: u8) -> bool {
    tables.uses(Features::QUIC) && protocol == UDP && vip.options.has(VipOptions::QUIC)
}

#[inline(always)]
fn find<P: Packet, T: BalancerTables>(
    packet: &P,
    place: Place,
    tables: &T,
) -> Result<Option<Server>, Reason> {
    let walked = place.walked(packet)?;
    let address = find_address(tables, &walked.network)?;
    let offset = walked.start.wrapping_add(walked.network.header);
    let transport = parse::transport_at(packet, offset, UDP)?;
    let vip = find_vip(tables, &address, transport.destination_port, UDP)?;
    if !is_quic(tables, &vip, UDP) {
        return Ok(None);
    }
    let routed = route(tables, &walked.network.source, vip);
    let Ok(size) = parse::size(packet, walked.start, &walked.network, &transport) else {
        return Ok(None);
    };
    let (start, end) = (offset.wrapping_add(Udp::SIZE), walked.start.wrapping_add(size.packet));
    let Some(choice) = server(packet, start, end, routed.service, tables)
        .and_then(|server| still(tables, &server, 0))
    else {
        return Ok(None);
    };
    let (size, behind) =
        Behind::transport(packet, &walked.network, Part::Whole, &transport, size, tables);
    let hash = if tables.uses(Features::SOURCES) || tables.uses(Features::GUE) {
        ours::hash(
            &ours::flow(&walked.network, &transport),
            walked.network.family,
            routed.options,
            tables,
        )
    } else {
        0
    };
    Ok(Some(Server { choice, vip, routed, size, behind, hash }))
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    server: &Server,
    tables: &T,
    service: &mut u32,
) -> Result<Outcome<P>, Reason> {
    let Server { choice, vip, routed, size, behind, hash } = server;
    // Read once more: kept while the server is found, it would take up the small stack.
    let walked = place.walked(&packet)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_source(tables, &walked.network.source, vip)?;
    *service = routed.service;
    let (network, tags) = (walked.network, walked.tags());
    let packet =
        Ours { network, size: *size, behind: *behind, opens: false, tags, vip: *routed, packet };
    packet.alive()?;
    packet.limit(tables)?;
    let way = way(&packet.network, routed.options, choice, tables)?;
    if let Some(mtu) = packet.mtu_to_tell(&way, tables)? {
        // What has tags in its bytes is told nothing.
        return if walked.start == ETHERNET {
            Ok(Outcome::TooBig(packet.packet, mtu))
        } else {
            Err(Reason::TooBig)
        };
    }
    packet.send(choice, &way, *hash, false, tables).map(Outcome::Forward)
}

/// The server that the connection ID of a UDP datagram names, if a service knows it. What UDP
/// carries is from `start` on and ends before `end`.
#[inline(always)]
fn server<P: Packet, T: BalancerTables>(
    packet: &P,
    start: usize,
    end: usize,
    service: u32,
    tables: &T,
) -> Option<Connection> {
    /// The octet, and after it four of a version and one of the connection ID's length, with which
    /// a long header begins.
    const LONG: u64 = 6;
    /// The most octets of a connection ID of version 1. Servers choose no longer ones, whatever the
    /// version.
    const MOST: u64 = 20;

    // In whole words, and with arithmetic where there could be a branch: the verifier follows each.
    let begins = u64::from_be(packet.load_variable(start)?);
    let is_long = begins >> 63;
    if is_long != 0 && is_clients_own((begins >> 24) as u32, (begins >> 56) as u8) {
        return None;
    }
    // In a short header the ID comes at once; how long it is, only its server knows.
    let before = 1_u64.wrapping_add(is_long.wrapping_mul(LONG.wrapping_sub(1)));
    let octets = if is_long == 0 { MOST } else { begins >> 16 & 0xff };
    let at = forgotten((start as u32).wrapping_add(before as u32)) as usize;
    // No packet of QUIC is so short that fewer octets follow: what is encrypted alone has 20 (RFC
    // 9001 section 5.4.2).
    if at.wrapping_add(size_of::<[u64; 2]>()) > end {
        return None;
    }
    let id: [u64; 2] = packet.load_variable(at)?;
    let (key, length) = ServerKey::of(service, tables.quic_lengths(service), id)?;
    if octets <= u64::from(length) { None } else { tables.quic_server(&key) }
}

/// Whether the client made up the connection ID of a packet with a long header: of an Initial or
/// 0-RTT packet.
#[inline(always)]
const fn is_clients_own(version: u32, first: u8) -> bool {
    /// RFC 9000 section 17.2.
    const VERSION_1: u32 = 1;
    /// RFC 9369 section 3.
    const VERSION_2: u32 = 0x6b33_43cf;

    let kind = first >> 4 & 3;
    match version {
        VERSION_1 => kind <= 1,
        VERSION_2 => kind == 1 || kind == 2,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn begins(octets: &[u8]) -> [u64; 2] {
        let mut padded = [0xa5; 16];
        padded[..octets.len()].copy_from_slice(octets);
        let (high, low) = padded.split_at(8);
        [high, low].map(|half| u64::from_ne_bytes(half.try_into().expect("eight octets")))
    }

    #[test]
    fn the_server_ids_of_the_drafts_plaintext_connection_ids_are_found() {
        let ids: [(u8, &[u8], &[u8]); 2] = [
            (0, &[0xc4, 0x60, 0x5e], &[0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f]),
            (
                1,
                &[0x35, 0x0d, 0x28, 0xb4, 0x20],
                &[0x2a, 0x35, 0x0d, 0x28, 0xb4, 0x20, 0x03, 0x48, 0x7d, 0x97, 0x0b],
            ),
        ];
        let lengths = ids
            .iter()
            .fold(IdLengths::NONE, |all, (rotation, id, _)| all.with(*rotation, id.len() as u8));
        for (rotation, id, connection_id) in ids {
            let (key, length) = ServerKey::of(9, lengths, begins(connection_id))
                .expect("the configuration is known");
            assert_eq!((Some(key), length), (ServerKey::new(9, rotation, id), id.len() as u32));
        }
        assert_eq!(
            ServerKey::of(9, lengths, begins(&[0xe7, 0xc4, 0x60, 0x5e])),
            None,
            "names nobody"
        );
        assert_eq!(
            ServerKey::of(9, lengths, begins(&[0x47, 0xc4, 0x60, 0x5e])),
            None,
            "no such configuration"
        );
    }

    proptest! {
        #[test]
        fn a_key_is_the_configuration_and_its_server_id_and_nothing_else(
            rotation in 0..7u8, id in prop::collection::vec(any::<u8>(), 1..=15), random: u8, behind: [u8; 15], other in 1..=15u8,
        ) {
            let key = ServerKey::new(3, rotation, &id).expect("a valid length");
            let (of, octets, length) = key.server_id();
            prop_assert_eq!((of, &octets[..length]), (rotation, &id[..]));
            prop_assert!(octets[length..].iter().all(|octet| *octet == 0));

            let mut connection_id = vec![rotation << 5 | random & 0x1f];
            connection_id.extend(&id);
            connection_id.extend(&behind[id.len()..]);
            let lengths = IdLengths::NONE.with(rotation, id.len() as u8).with((rotation + 1) % 7, other);
            prop_assert_eq!(ServerKey::of(3, lengths, begins(&connection_id)), Some((key, id.len() as u32)));
            // The same octets are another ID where IDs are longer or shorter.
            let lengths = IdLengths::NONE.with(rotation, other);
            let found = ServerKey::of(3, lengths, begins(&connection_id)).expect("there is such a configuration").0;
            prop_assert_eq!(found == key, usize::from(other) == id.len());
        }
    }

    #[test]
    fn a_server_id_of_no_or_too_many_octets_has_no_key() {
        assert_eq!((ServerKey::new(1, 0, &[]), ServerKey::new(1, 0, &[0; 16])), (None, None));
    }
}

//! The balancer's path: from a client's packet to an encapsulated one on its way to a backend.
//!
//! The path has stages. [`direct`] takes nearly every packet from wire to wire, reading headers at
//! constant offsets only. What it finds unusual (VLAN tags, options, extension headers, fragments)
//! it leaves to [`locate`], which finds the end of the headers wherever it is, and says whose
//! matter the packet is: that of [`general`], which does what [`direct`] does at any place, or that
//! of [`icmp`](crate::icmp()) or [`follow`](crate::follow()); before [`general`] comes
//! [`quic`](crate::quic()), for datagrams whose connection ID names a backend. In the kernel each
//! stage is a function with a stack frame of its own; [`balance`] is all of them, one after the
//! other.

use crate::encapsulate::way;
use crate::entries::Fragment;
use crate::gue::Behind;
use crate::icmp::{Heard, ping};
use crate::observe;
use crate::options::Features;
use crate::ours::Ours;
use crate::packet::{ETHERNET, Packet};
use crate::parse::Part;
use crate::quic::{is_quic, named};
use crate::reject::reject;
use crate::tables::BalancerTables;
use crate::vip::{check_source, find_address, find_vip, route};
use crate::walk::{self, Matter, Place};
use crate::{Family, Reason, follow, icmp, parse, quic};

/// Where an encapsulated packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Index of the interface towards the backend.
    pub interface: u32,
    /// Family of the outer header.
    pub family: Family,
    /// Index in `NEIGHBOURS` of whom it is handed to; 0 when the kernel finds out.
    pub neighbour: u32,
    /// In GUE, what the UDP header depends on: where stages are functions, it is a matter for
    /// [`gue::finish`](crate::gue::finish()). Else [`Behind::NONE`].
    pub behind: Behind,
}

/// What the first stage made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`locate`].
    Unusual(P),
    /// It is unchanged, uncounted, and a matter for the stages of a whole datagram, at the place
    /// that this number says ([`Place::from_word`]). (Old verifiers take no [`Place`] here:
    /// compilers copy it with what lies between its members.)
    Datagram(P, u32),
    /// It is unchanged, uncounted, and a matter for [`reject`](crate::reject()): it does not fit,
    /// and its sender should be told this MTU.
    TooBig(P, u32),
}

/// What [`general`] made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// As [`First::TooBig`].
    TooBig(P, u32),
}

/// Balances one packet: on success it is encapsulated and accounted, and leaves through the
/// interface named.
///
/// # Errors
///
/// The [`Reason`] why it is not forwarded, already counted; [`Reason::verdict`] says what to do
/// with the packet. It is unchanged, unless the verdict is to answer, or the reason
/// [`Reason::NoRoom`].
#[inline(always)]
pub fn balance<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    match direct(packet, tables)? {
        First::Forward(forward) => Ok(forward),
        First::TooBig(packet, mtu) => Err(reject(packet, mtu, tables)),
        First::Datagram(packet, place) => proceed(packet, Place::from_word(place), tables),
        First::Unusual(packet) => {
            let (packet, place) = locate(packet, tables)?;
            proceed(packet, place, tables)
        }
    }
}

/// What is left of [`balance`] where the end of the headers is known.
#[inline(always)]
fn proceed<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
) -> Result<Forward, Reason> {
    let matter = place.matter();
    if matter == Matter::Datagram
        && tables.uses(Features::QUIC)
        && let Some(server) = named(&packet, place, tables)?
    {
        return match quic(packet, place, &server, tables)? {
            Outcome::Forward(forward) => Ok(forward),
            Outcome::TooBig(packet, mtu) => Err(reject(packet, mtu, tables)),
        };
    }
    match matter {
        Matter::General | Matter::Datagram => match general(packet, place, tables)? {
            Outcome::Forward(forward) => Ok(forward),
            Outcome::TooBig(packet, mtu) => Err(reject(packet, mtu, tables)),
        },
        Matter::Icmp => match icmp(packet, place, tables)? {
            Heard::Forward(forward) => Ok(forward),
            Heard::Ping(packet) => Err(ping(packet, place, tables)),
        },
        Matter::Later => follow(packet, place, tables),
    }
}

/// The first stage: an untagged packet whose TCP or UDP header directly follows a plain IP header.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn direct<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<First<P>, Reason> {
    let mut service = 0;
    let outcome = forward_direct(packet, tables, &mut service);
    match &outcome {
        Ok(First::Forward(_) | First::Unusual(_) | First::Datagram(..)) => {}
        Ok(First::TooBig(..)) => refuse(tables, service, Reason::TooBig),
        Err(reason) => refuse(tables, service, *reason),
    }
    outcome
}

/// The second stage: finds the end of the headers of a packet to a VIP address, wherever it is.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn locate<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<(P, Place), Reason> {
    match find_place(&packet, tables) {
        Ok(place) => Ok((packet, place)),
        Err(reason) => {
            refuse(tables, 0, reason);
            Err(reason)
        }
    }
}

/// A stage of its own: TCP or UDP to a VIP address, at a place that [`locate`] found.
///
/// # Errors
///
/// As [`balance`].
#[inline(always)]
pub fn general<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
) -> Result<Outcome<P>, Reason> {
    let mut service = 0;
    let outcome = forward_at(packet, place, tables, &mut service);
    conclude(tables, service, outcome)
}

/// Accounts a packet that one stage took whole and did not forward.
#[inline(always)]
pub(crate) fn conclude<P, T: BalancerTables>(
    tables: &T,
    service: u32,
    outcome: Result<Outcome<P>, Reason>,
) -> Result<Outcome<P>, Reason> {
    match &outcome {
        Ok(Outcome::Forward(_)) => {}
        Ok(Outcome::TooBig(..)) => refuse(tables, service, Reason::TooBig),
        Err(reason) => refuse(tables, service, *reason),
    }
    outcome
}

/// Accounts a packet that is not forwarded. The service is that whose packet it is, 0 until it is
/// known.
#[inline(always)]
pub(crate) fn refuse<T: BalancerTables>(tables: &T, service: u32, reason: Reason) {
    tables.count_refused(reason);
    if service != 0
        && let Some(index) = reason.drop_index()
    {
        tables.count_dropped(service, index);
    }
    observe::refused(tables, service, reason);
}

#[inline(always)]
fn forward_direct<P: Packet, T: BalancerTables>(
    packet: P,
    tables: &T,
    service: &mut u32,
) -> Result<First<P>, Reason> {
    let Some(family) = parse::family(&packet)? else { return Ok(First::Unusual(packet)) };
    let network = match family {
        Family::V4 => parse::ipv4(&packet, ETHERNET)?,
        Family::V6 => parse::ipv6(&packet, ETHERNET)?,
    };
    let address = find_address(tables, &network)?;
    if !network.is_direct() {
        return Ok(First::Unusual(packet));
    }
    let transport = parse::transport(&packet, &network)?;
    let vip = find_vip(tables, &address, transport.destination_port, network.protocol)?;
    if is_quic(tables, &vip, network.protocol) {
        return Ok(First::Datagram(packet, Place::direct(network).to_word()));
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_source(tables, &network.source, &vip)?;
    let vip = route(tables, &network.source, vip);
    *service = vip.service;
    let size = parse::size(&packet, ETHERNET, &network, &transport)?;
    let (size, behind) =
        Behind::transport(&packet, &network, Part::Whole, &transport, size, tables);
    let packet = Ours { network, size, behind, opens: transport.opens, tags: None, vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables, true)?;
    let way = way(&packet.network, vip.options, &choice, tables)?;
    let shrink = packet.shrinks(&way, tables);
    if !shrink && let Some(mtu) = packet.mtu_to_tell(&way, tables)? {
        return Ok(First::TooBig(packet.packet, mtu));
    }
    packet.send(&choice, &way, hash, shrink, tables).map(First::Forward)
}

#[inline(always)]
fn find_place<P: Packet, T: BalancerTables>(packet: &P, tables: &T) -> Result<Place, Reason> {
    let walked = walk::network(packet)?;
    find_address(tables, &walked.network)?;
    Ok(Place::of(&walked.past_extensions(packet)?))
}

#[inline(always)]
fn forward_at<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
    service: &mut u32,
) -> Result<Outcome<P>, Reason> {
    let walked = place.walked(&packet)?;
    let address = find_address(tables, &walked.network)?;
    let offset = walked.start.wrapping_add(walked.network.header);
    let transport = parse::transport_at(&packet, offset, walked.network.protocol)?;
    let vip = find_vip(tables, &address, transport.destination_port, walked.network.protocol)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = vip.service;
    check_source(tables, &walked.network.source, &vip)?;
    let owner = vip.service;
    let vip = route(tables, &walked.network.source, vip);
    *service = vip.service;
    let size = parse::size(&packet, walked.start, &walked.network, &transport)?;
    let (size, behind) =
        Behind::transport(&packet, &walked.network, walked.part, &transport, size, tables);
    let (opens, tags) = (transport.opens, walked.tags());
    let mut packet = Ours { network: walked.network, size, behind, opens, tags, vip, packet };
    let flow = packet.flow(&transport);
    let (choice, hash) = packet.choose(&flow, tables, true)?;
    // Read once more: kept while a backend is chosen, it would take up the small stack.
    let walked = place.walked(&packet.packet)?;
    (packet.network, packet.tags) = (walked.network, walked.tags());
    if let Part::First = walked.part {
        let entry = Fragment {
            seen: tables.now(),
            service: vip.service,
            owner: owner as u16,
            options: vip.options.word() as u16,
            incarnation: choice.backend.incarnation,
            backend: choice.index,
            hint: choice.hint,
        };
        let key = packet.fragment_key(walked.identification(&packet.packet)?);
        tables.remember_fragment(&key, &entry);
    }
    let way = way(&packet.network, vip.options, &choice, tables)?;
    if let Some(mtu) = packet.mtu_to_tell(&way, tables)? {
        // What has tags in its bytes is told nothing.
        return if walked.start == ETHERNET {
            Ok(Outcome::TooBig(packet.packet, mtu))
        } else {
            Err(Reason::TooBig)
        };
    }
    packet.send(&choice, &way, hash, false, tables).map(Outcome::Forward)
}

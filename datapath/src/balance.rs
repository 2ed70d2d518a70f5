//! The balancer's path: from a client's packet to an encapsulated one on its way to a backend.

use crate::entries::{Backend, Connection, NextHop, Settings, Slot, TableHead, VipKey};
use crate::flow::slot_index;
use crate::header::{Ipv4, Ipv6};
use crate::packet::Packet;
use crate::parse::{Network, Size};
use crate::tables::{BalancerTables, Forwarded, LookupTable};
use crate::{Family, Flow, Reason, encapsulate, parse};

/// Where an encapsulated packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Index of the interface towards the backend.
    pub interface: u32,
    /// Family of the outer header.
    pub family: Family,
}

/// Balances one packet: on success it is encapsulated and accounted, and leaves through the interface named.
///
/// # Errors
///
/// The [`Reason`] why it is not forwarded, already counted; the packet is unchanged, and [`Reason::verdict`] says what to do
/// with it. (After [`Reason::NoRoom`] it may have been changed; it is dropped.)
#[inline(always)]
pub fn balance<P: Packet, T: BalancerTables>(packet: P, tables: &T, settings: &Settings) -> Result<Forward, Reason> {
    let outcome = forward(packet, tables, settings);
    if let Err(reason) = outcome {
        tables.count_refused(reason);
    }
    outcome
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(packet: P, tables: &T, settings: &Settings) -> Result<Forward, Reason> {
    let network = match parse::family(&packet)? {
        Family::V4 => parse::ipv4(&packet, crate::packet::ETHERNET)?,
        Family::V6 => parse::ipv6(&packet, crate::packet::ETHERNET)?,
    };
    if network.is_to_mapped() {
        return Err(Reason::NotVip);
    }
    let address = tables.vip_address(&network.destination).ok_or(Reason::NotVip)?;
    let transport = parse::transport(&packet, &network)?;
    let key = VipKey::new(address.id, transport.destination_port, network.protocol);
    let vip = tables.vip(&key).ok_or(Reason::NotVipPort)?;

    // From this line on the packet is ours, and every refusal is a counted drop.
    let size = parse::size(&packet, &network, &transport)?;
    if network.hops == 0 {
        return Err(Reason::Expired);
    }
    let flow = Flow::new(
        network.source,
        network.destination,
        transport.source_port,
        transport.destination_port,
        network.protocol,
    );
    let table = tables.table(vip.service).ok_or(Reason::NoTable)?;
    let hash = flow.hash(network.family, settings.hash_key);
    let choice = choose(tables, &table, &flow, hash, transport.opens)?;
    let next_hop = tables.next_hop(NextHop::index(choice.index, network.family));
    let next_hop = next_hop.filter(|hop| hop.interface != 0).ok_or(Reason::NoRoute)?;
    let forwarded =
        Forwarded { packets: packet.segments(), bytes: size.packet as u64, new_flows: u64::from(transport.opens) };
    wrap(packet, &network, &size, &choice, &next_hop, settings)?;
    tables.count_forwarded(vip.service, choice.index, &forwarded);
    Ok(Forward { interface: next_hop.interface, family: network.family })
}

/// The backend that takes a packet.
struct Choice {
    index: u16,
    backend: Backend,
    hint: u16,
}

/// Chooses the backend: the flow's slot names it, unless the service is tracked and the flow already has one.
#[inline(always)]
fn choose<T: BalancerTables>(
    tables: &T,
    table: &impl LookupTable,
    flow: &Flow,
    hash: u64,
    opens: bool,
) -> Result<Choice, Reason> {
    let head = TableHead::from_word(table.word(TableHead::HEAD).ok_or(Reason::NoTable)?);
    let word = slot_index(hash, head.slots).wrapping_add(TableHead::WORDS);
    let slot = Slot::from_word(table.word(word).ok_or(Reason::NoTable)?);

    // A segment that opens a connection takes the slot's backend even if an older connection of the same 5-tuple had another
    // one: that is how a draining backend gets empty.
    if head.tracked
        && !opens
        && let Some(choice) = tracked(tables, flow, slot.hint)
    {
        return Ok(choice);
    }
    if slot.first == 0 {
        return Err(Reason::NoBackend);
    }
    let backend = tables.backend(slot.first).ok_or(Reason::NoBackend)?;
    if head.tracked {
        tables.remember(flow, &Connection { backend: u32::from(slot.first), incarnation: backend.incarnation });
    }
    Ok(Choice { index: slot.first, backend, hint: slot.hint })
}

/// The backend that the connection table names, unless its index has been given to another backend since.
#[inline(always)]
fn tracked<T: BalancerTables>(tables: &T, flow: &Flow, hint: u16) -> Option<Choice> {
    let connection = tables.connection(flow)?;
    let index = connection.backend as u16;
    let backend = tables.backend(index)?;
    (backend.incarnation == connection.incarnation).then_some(Choice { index, backend, hint })
}

/// Writes the outer header, if the packet still fits with it.
#[inline(always)]
fn wrap<P: Packet>(
    packet: P,
    network: &Network,
    size: &Size,
    choice: &Choice,
    next_hop: &NextHop,
    settings: &Settings,
) -> Result<(), Reason> {
    match network.family {
        Family::V4 => {
            let destination = choice.backend.v4;
            if destination.is_none() {
                return Err(Reason::NoEncapsulation);
            }
            if size.segment.wrapping_add(Ipv4::SIZE) > next_hop.mtu as usize {
                return Err(Reason::TooBig);
            }
            let class = network.traffic_class;
            let outer = encapsulate::ipv4(settings.underlay_v4, destination, size.packet, class, choice.hint);
            packet.encapsulate(Family::V4, &outer)
        }
        Family::V6 => {
            let destination = choice.backend.v6;
            if destination.is_none() {
                return Err(Reason::NoEncapsulation);
            }
            if size.segment.wrapping_add(Ipv6::SIZE) > next_hop.mtu as usize {
                return Err(Reason::TooBig);
            }
            let class = network.traffic_class;
            let outer = encapsulate::ipv6(settings.underlay_v6, destination, size.packet, class, choice.hint);
            packet.encapsulate(Family::V6, &outer)
        }
    }
}

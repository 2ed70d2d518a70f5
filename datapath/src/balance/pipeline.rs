//! The order of the stages.

use crate::abi::{Features, Reason};
use crate::balance::fast_path::fast_path;
use crate::balance::fragment::fragment;
use crate::balance::icmp::{IcmpOutcome, echo_reply, icmp};
use crate::balance::outcome::{FastPathOutcome, Forward, SlowPathOutcome};
use crate::balance::packet_too_big::packet_too_big;
use crate::balance::quic::{forward_to_quic_server, select_by_connection_id};
use crate::balance::slow_path::{parse_headers, slow_path};
use crate::balance::tables::BalancerTables;
use crate::wire::offsets::{HeaderOffsets, PacketClass};
use crate::wire::packet::Packet;

/// Balances one packet: on success it is encapsulated and accounted, and leaves through the
/// interface named.
///
/// # Errors
///
/// The [`Reason`] why it is not forwarded, already counted; [`Reason::verdict`] says what to do
/// with the packet. It is unchanged, unless the verdict is to answer, or the reason
/// [`Reason::AdjustRoomFailed`].
#[inline(always)]
pub fn balance<P: Packet, T: BalancerTables>(packet: P, tables: &T) -> Result<Forward, Reason> {
    match fast_path(packet, tables)? {
        FastPathOutcome::Forward(forward) => Ok(forward),
        FastPathOutcome::TooBig(packet, mtu) => Err(packet_too_big(packet, mtu, tables)),
        FastPathOutcome::Udp(packet, offsets) => {
            proceed(packet, HeaderOffsets::decode(offsets), tables)
        }
        FastPathOutcome::SlowPath(packet) => {
            let (packet, offsets) = parse_headers(packet, tables)?;
            proceed(packet, offsets, tables)
        }
    }
}

/// What is left of [`balance`] where the end of the headers is known.
#[inline(always)]
fn proceed<P: Packet, T: BalancerTables>(
    packet: P,
    offsets: HeaderOffsets,
    tables: &T,
) -> Result<Forward, Reason> {
    let matter = offsets.class();
    if matter == PacketClass::Udp
        && tables.uses(Features::QUIC)
        && let Some(server) = select_by_connection_id(&packet, offsets, tables)?
    {
        return match forward_to_quic_server(packet, offsets, &server, tables)? {
            SlowPathOutcome::Forward(forward) => Ok(forward),
            SlowPathOutcome::TooBig(packet, mtu) => Err(packet_too_big(packet, mtu, tables)),
        };
    }
    match matter {
        PacketClass::SlowPath | PacketClass::Udp => match slow_path(packet, offsets, tables)? {
            SlowPathOutcome::Forward(forward) => Ok(forward),
            SlowPathOutcome::TooBig(packet, mtu) => Err(packet_too_big(packet, mtu, tables)),
        },
        PacketClass::Icmp => match icmp(packet, offsets, tables)? {
            IcmpOutcome::Forward(forward) => Ok(forward),
            IcmpOutcome::EchoRequest(packet) => Err(echo_reply(packet, offsets, tables)),
        },
        PacketClass::NonFirstFragment => fragment(packet, offsets, tables),
    }
}

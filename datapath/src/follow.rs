//! Later fragments follow their first one, which has the ports.

use crate::balance::{Forward, became, settle};
use crate::choose::Choice;
use crate::entries::{Fragment, Vip};
use crate::flow::Port;
use crate::gue::Behind;
use crate::observe::Seen;
use crate::options::VipOptions;
use crate::ours::Ours;
use crate::packet::Packet;
use crate::parse::{self, Size};
use crate::tables::BalancerTables;
use crate::walk::Place;
use crate::{Flow, Reason};

/// A stage of its own: a later fragment to a VIP address, at a place that [`locate`](crate::balance::locate) found, goes after its first one, if that
/// is known.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn follow<P: Packet, T: BalancerTables>(packet: P, place: Place, tables: &T) -> Result<(P, Forward), Reason> {
    let mut seen = Seen::default();
    let outcome = forward(packet, place, tables, &mut seen);
    settle(tables, &seen, became(&outcome));
    outcome
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
    seen: &mut Seen,
) -> Result<(P, Forward), Reason> {
    let walked = place.walked(&packet)?;
    let identification = walked.identification(&packet)?;
    let (vip, tags) = (Vip { service: 0, options: Default::default() }, walked.tags());
    let size = Size { packet: 0, segment: 0 };
    let behind = Behind::later(&walked.network);
    let mut ours = Ours { network: walked.network, size, behind, opens: false, tags, vip, packet };
    let first = tables.fragment(&ours.fragment_key(identification)).ok_or(Reason::Fragment)?;
    if tables.now().wrapping_sub(first.seen) > Fragment::LIFETIME {
        return Err(Reason::Fragment);
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    seen.service = first.service;
    ours.vip = Vip { service: first.service, options: VipOptions::from_word(first.options.into()) };
    ours.size = parse::size_of_fragment(&ours.packet, walked.start, &walked.network)?;
    ours.alive()?;
    let backend = tables.backend(first.backend as u16).ok_or(Reason::NoBackend)?;
    if backend.incarnation != first.incarnation {
        return Err(Reason::NoBackend);
    }
    seen.backend = first.backend as u16;
    let choice = Choice { index: first.backend as u16, backend, hint: first.hint };
    // A later fragment has no ports; its outer source may differ from the first one's.
    let ports = Port::new(0);
    let flow = Flow::new(walked.network.source, walked.network.destination, ports, ports, walked.network.protocol);
    let hash = flow.hash(walked.network.family, tables.hash_key());
    // Errors about later fragments are not sent (RFC 1122 section 3.2.2).
    ours.send_untold(&choice, hash, tables)
}

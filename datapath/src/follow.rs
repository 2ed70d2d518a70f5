//! Later fragments follow their first one, which has the ports.

use crate::balance::{Forward, refuse};
use crate::choose::Choice;
use crate::entries::{Fragment, PrefixKey, Vip};
use crate::flow::Port;
use crate::gue::Behind;
use crate::options::{Features, VipOptions};
use crate::ours::Ours;
use crate::packet::Packet;
use crate::parse::{self, Size};
use crate::tables::BalancerTables;
use crate::vip::check_list_of_all;
use crate::walk::Place;
use crate::{Address, Flow, Reason};

/// A stage of its own: a later fragment to a VIP address, at a place that
/// [`locate`](crate::balance::locate) found, goes after its first one, if that is known.
///
/// # Errors
///
/// As [`crate::balance()`].
#[inline(always)]
pub fn follow<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
) -> Result<Forward, Reason> {
    let mut service = 0;
    forward(packet, place, tables, &mut service)
        .inspect_err(|reason| refuse(tables, service, *reason))
}

#[inline(always)]
fn forward<P: Packet, T: BalancerTables>(
    packet: P,
    place: Place,
    tables: &T,
    service: &mut u32,
) -> Result<Forward, Reason> {
    let walked = place.walked(&packet)?;
    let identification = walked.identification(&packet)?;
    // Which VIP it is for is not known, only whose. A service that has no rates has none in the map
    // either.
    let (vip, tags) = (Vip { service: 0, options: VipOptions::LIMITED }, walked.tags());
    let size = Size { packet: 0, segment: 0 };
    let behind = Behind::later(&walked.network);
    let mut ours = Ours { network: walked.network, size, behind, opens: false, tags, vip, packet };
    let first = tables.fragment(&ours.fragment_key(identification)).ok_or(Reason::Fragment)?;
    if tables.now().wrapping_sub(first.seen) > Fragment::LIFETIME {
        return Err(Reason::Fragment);
    }

    // From this line on the packet is ours, and every refusal is a counted drop.
    *service = first.owner.into();
    check_source(tables, &walked.network.source, first.owner.into())?;
    *service = first.service;
    ours.vip.service = first.service;
    ours.vip.options = ours.vip.options.with(VipOptions::from_word(first.options.into()));
    ours.size = parse::size_of_fragment(&ours.packet, walked.start, &walked.network)?;
    ours.alive()?;
    ours.limit(tables)?;
    let backend = tables.backend(first.backend).ok_or(Reason::NoBackend)?;
    if backend.incarnation != first.incarnation {
        return Err(Reason::NoBackend);
    }
    let choice = Choice { index: first.backend, backend, hint: first.hint };
    // A later fragment has no ports; its outer source may differ from the first one's.
    let ports = Port::new(0);
    let flow = Flow::new(
        walked.network.source,
        walked.network.destination,
        ports,
        ports,
        walked.network.protocol,
    );
    let hash = flow.hash(walked.network.family, tables.hash_key());
    // Errors about later fragments are not sent (RFC 1122 section 3.2.2).
    ours.send_untold(&choice, hash, tables)
}

/// Whether the lists of sources let a later fragment through: the one for all, then the service's,
/// as they are by now. A service without a list lets everybody through: had it been new and its
/// list on the way, the first fragment would not have been served.
#[inline(always)]
fn check_source<T: BalancerTables>(
    tables: &T,
    client: &Address,
    service: u32,
) -> Result<(), Reason> {
    check_list_of_all(tables, client)?;
    if tables.uses(Features::LISTS)
        && let Some(listing) = tables.listing(service, &PrefixKey::address(client))
    {
        listing.check()?;
    }
    Ok(())
}

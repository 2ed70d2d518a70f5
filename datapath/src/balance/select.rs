//! Which backend takes a packet.

use crate::abi::{Backend, Connection, Flow, Reason, Slot, TableHead, slot_index};
use crate::balance::tables::{BalancerTables, LookupTable};

/// The backend that takes a packet.
pub(crate) struct Selection {
    /// Its index.
    pub(crate) index: u16,
    /// Its entry.
    pub(crate) backend: Backend,
    /// What the outer header tells it about other candidates.
    pub(crate) hint: u16,
}

/// Chooses the backend: the flow's slot names it, unless the service is tracked and the flow
/// already has one. `remembers` says whether a tracked flow without an entry gets one.
#[inline(always)]
pub(crate) fn select_backend<T: BalancerTables>(
    tables: &T,
    table: &impl LookupTable,
    flow: &Flow,
    hash: u64,
    is_syn: bool,
    insert: bool,
) -> Result<Selection, Reason> {
    let head = TableHead::decode(table.word(TableHead::HEAD).ok_or(Reason::NoTable)?);
    let word = slot_index(hash, head.slots).wrapping_add(TableHead::WORDS);
    let slot = Slot::decode(table.word(word).ok_or(Reason::NoTable)?);

    // A segment that is_syn a connection takes the slot's backend even if an older connection of
    // the same 5-tuple had another one: that is how a draining backend gets empty.
    if head.tracked
        && !is_syn
        && let Some(selection) = tracked_backend(tables, flow, slot.hint)
    {
        return Ok(selection);
    }
    if slot.first == 0 {
        return Err(Reason::NoBackend);
    }
    let backend = tables.backend(slot.first).ok_or(Reason::NoBackend)?;
    // A segment that is_syn a connection is no connection yet, and whoever sends it may never send
    // another: it changes an entry that is there and makes none, so that a flood of them pushes
    // nobody out. The client's next segment makes it.
    if head.tracked && insert && (!is_syn || tables.connection(flow).is_some()) {
        tables.insert_connection(
            flow,
            &Connection { backend: u32::from(slot.first), epoch: backend.epoch },
        );
    }
    Ok(Selection { index: slot.first, backend, hint: slot.hint })
}

/// The backend that the connection table names, unless its index has been given to another backend
/// since.
#[inline(always)]
fn tracked_backend<T: BalancerTables>(tables: &T, flow: &Flow, hint: u16) -> Option<Selection> {
    resolve_connection(tables, &tables.connection(flow)?, hint)
}

/// The backend that had a flow, unless its index has been given to another backend since.
#[inline(always)]
pub(crate) fn resolve_connection<T: BalancerTables>(
    tables: &T,
    connection: &Connection,
    hint: u16,
) -> Option<Selection> {
    let index = connection.backend as u16;
    let backend = tables.backend(index)?;
    (backend.epoch == connection.epoch).then_some(Selection { index, backend, hint })
}

//! Selection of the backend: by lookup table, or by connection table for tracked services.

use crate::abi::{Backend, Connection, Flow, Reason, Slot, TableHead, slot_index};
use crate::balance::maps::{LookupTable, SelectionMaps};

/// Whether the connection table may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// The entry of a tracked flow is used, created or replaced.
    ReadWrite,
    /// The entry of a tracked flow is used, if there is one.
    ReadOnly,
}

/// The selected backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// Index of the backend.
    pub(crate) index: u16,
    pub(crate) backend: Backend,
    /// The hint about other candidates in the outer header.
    pub(crate) hint: u16,
}

/// Selects the backend of a flow: that of its slot in the lookup table, unless the service is
/// tracked and the connection table has an entry of the flow.
#[inline(always)]
pub(crate) fn select_backend<M: SelectionMaps>(
    maps: &M,
    table: &impl LookupTable,
    flow: &Flow,
    hash: u64,
    is_syn: bool,
    tracking: Tracking,
) -> Result<Selection, Reason> {
    let head = TableHead::decode(table.word(TableHead::HEAD).ok_or(Reason::NoTable)?);
    let word_index = slot_index(hash, head.slots).wrapping_add(TableHead::WORDS);
    let slot = Slot::decode(table.word(word_index).ok_or(Reason::NoTable)?);

    // A SYN takes the slot's backend even if an older connection with the same 5-tuple has another
    // one: that is how a draining backend loses its flows.
    if head.tracked
        && !is_syn
        && let Some(selection) = find_tracked(maps, flow, slot.hint)
    {
        return Ok(selection);
    }
    if slot.backend == 0 {
        return Err(Reason::NoBackend);
    }
    let backend = maps.backend(slot.backend).ok_or(Reason::NoBackend)?;
    // A SYN replaces an existing entry but creates none, so that a SYN flood does not evict the
    // entries of established connections. The client's next segment creates the entry.
    if head.tracked
        && tracking == Tracking::ReadWrite
        && (!is_syn || maps.connection(flow).is_some())
    {
        maps.insert_connection(
            flow,
            &Connection { backend: u32::from(slot.backend), epoch: backend.epoch },
        );
    }
    Ok(Selection { index: slot.backend, backend, hint: slot.hint })
}

/// The backend in the connection table.
#[inline(always)]
fn find_tracked<M: SelectionMaps>(maps: &M, flow: &Flow, hint: u16) -> Option<Selection> {
    resolve_connection(maps, &maps.connection(flow)?, hint)
}

/// The backend of a connection, unless its index has been reused since.
#[inline(always)]
pub(crate) fn resolve_connection<M: SelectionMaps>(
    maps: &M,
    connection: &Connection,
    hint: u16,
) -> Option<Selection> {
    let index = connection.backend as u16;
    let backend = maps.backend(index)?;
    (backend.epoch == connection.epoch).then_some(Selection { index, backend, hint })
}

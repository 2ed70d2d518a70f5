//! Which backend takes a packet.

use crate::entries::{Backend, Connection, Slot, TableHead};
use crate::flow::slot_index;
use crate::tables::{BalancerTables, LookupTable};
use crate::{Flow, Reason};

/// The backend that takes a packet.
pub(crate) struct Choice {
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
pub(crate) fn choose<T: BalancerTables>(
    tables: &T,
    table: &impl LookupTable,
    flow: &Flow,
    hash: u64,
    opens: bool,
    remembers: bool,
) -> Result<Choice, Reason> {
    let head = TableHead::from_word(table.word(TableHead::HEAD).ok_or(Reason::NoTable)?);
    let word = slot_index(hash, head.slots).wrapping_add(TableHead::WORDS);
    let slot = Slot::from_word(table.word(word).ok_or(Reason::NoTable)?);

    // A segment that opens a connection takes the slot's backend even if an older connection of the
    // same 5-tuple had another one: that is how a draining backend gets empty.
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
    // A segment that opens a connection is no connection yet, and whoever sends it may never send
    // another: it changes an entry that is there and makes none, so that a flood of them pushes
    // nobody out. The client's next segment makes it.
    if head.tracked && remembers && (!opens || tables.connection(flow).is_some()) {
        tables.remember(
            flow,
            &Connection { backend: u32::from(slot.first), incarnation: backend.incarnation },
        );
    }
    Ok(Choice { index: slot.first, backend, hint: slot.hint })
}

/// The backend that the connection table names, unless its index has been given to another backend
/// since.
#[inline(always)]
fn tracked<T: BalancerTables>(tables: &T, flow: &Flow, hint: u16) -> Option<Choice> {
    still(tables, &tables.connection(flow)?, hint)
}

/// The backend that had a flow, unless its index has been given to another backend since.
#[inline(always)]
pub(crate) fn still<T: BalancerTables>(
    tables: &T,
    connection: &Connection,
    hint: u16,
) -> Option<Choice> {
    let index = connection.backend as u16;
    let backend = tables.backend(index)?;
    (backend.incarnation == connection.incarnation).then_some(Choice { index, backend, hint })
}

//! Results of stages, and how refusals are counted.

use crate::abi::{Family, Reason};
use crate::balance::capture;
use crate::balance::gue::GueMeta;
use crate::balance::tables::BalancerTables;

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
    /// [`gue::finish_gue`](crate::balance::gue::finish_gue()). Else [`GueMeta::NONE`].
    pub gue: GueMeta,
}

/// What the first stage made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FastPathOutcome<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// It is unchanged, uncounted, and a matter for [`locate`].
    SlowPath(P),
    /// It is unchanged, uncounted, and a matter for the stages of a whole datagram, at the place
    /// that this number says ([`HeaderOffsets::decode`]). (Old verifiers take no [`HeaderOffsets`] here:
    /// compilers copy it with what lies between its members.)
    Udp(P, u32),
    /// It is unchanged, uncounted, and a matter for [`reject`](crate::balance::packet_too_big()): it does not fit,
    /// and its sender should be told this MTU.
    TooBig(P, u32),
}

/// What [`general`] made of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowPathOutcome<P> {
    /// It is encapsulated and accounted, and leaves.
    Forward(Forward),
    /// As [`FastPathOutcome::TooBig`].
    TooBig(P, u32),
}

/// Accounts a packet that one stage took whole and did not forward.
#[inline(always)]
pub(crate) fn account_outcome<P, T: BalancerTables>(
    tables: &T,
    service: u32,
    outcome: Result<SlowPathOutcome<P>, Reason>,
) -> Result<SlowPathOutcome<P>, Reason> {
    match &outcome {
        Ok(SlowPathOutcome::Forward(_)) => {}
        Ok(SlowPathOutcome::TooBig(..)) => account_refusal(tables, service, Reason::TooBig),
        Err(reason) => account_refusal(tables, service, *reason),
    }
    outcome
}

/// Accounts a packet that is not forwarded. The service is that whose packet it is, 0 until it is
/// known.
#[inline(always)]
pub(crate) fn account_refusal<T: BalancerTables>(tables: &T, service: u32, reason: Reason) {
    tables.count_refused(reason);
    if service != 0
        && let Some(index) = reason.drop_index()
    {
        tables.count_dropped(service, index);
    }
    capture::record_refusal(tables, service, reason);
}

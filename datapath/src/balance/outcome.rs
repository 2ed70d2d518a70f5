//! Outcomes of stages, and the accounting of refusals.

use crate::abi::{Reason, ServiceRef};
use crate::balance::capture;
use crate::balance::gue::GueMeta;
use crate::balance::maps::BalancerMaps;
use crate::balance::next::Next;
use crate::balance::stage::{Egress, Hook};

/// The outcome of a stage. Except for [`StageOutcome::Forwarded`], the packet is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StageOutcome {
    /// The packet is encapsulated and accounted.
    Forwarded(Egress),
    /// [`Next::ParseHeaders`].
    ParseHeaders,
    /// [`Next::Quic`]. (Encoded, because compilers copy a
    /// [`HeaderOffsets`](crate::wire::offsets::HeaderOffsets) together with its padding, and old
    /// verifiers reject reads of uninitialised stack.)
    Quic(u32),
    /// [`Next::EchoReply`].
    EchoReply,
    /// [`Next::TooBig`]. The packet is accounted as dropped for the service.
    TooBig { service: u32, mtu: u32 },
}

/// A packet that is not forwarded, and the service to which the drop is accounted: 0 before the
/// packet has matched a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) service: u32,
    pub(crate) reason: Reason,
}

impl From<Reason> for Refusal {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { service: 0, reason }
    }
}

impl Refusal {
    /// Turns a reason into a refusal of a service's packet, for `map_err`.
    #[inline(always)]
    pub(crate) fn for_service(service: ServiceRef) -> impl FnOnce(Reason) -> Self {
        move |reason| Self { service: service.index, reason }
    }

    /// Counts the refusal, and records it for captures.
    #[inline(always)]
    pub(crate) fn account<M: BalancerMaps>(self, maps: &M) {
        let Self { service, reason } = self;
        maps.count_reason(reason);
        if service != 0
            && let Some(index) = reason.drop_index()
        {
            maps.count_dropped(service, index);
        }
        capture::record_refusal(maps, service, reason);
    }
}

/// Accounts a packet that is not forwarded, and turns a stage's result into its return value.
#[inline(always)]
pub(crate) fn conclude<H: Hook, M: BalancerMaps>(
    hook: &mut H,
    result: Result<StageOutcome, Refusal>,
    maps: &M,
) -> u64 {
    match result {
        Ok(StageOutcome::TooBig { service, .. }) => {
            Refusal { service, reason: Reason::TooBig }.account(maps);
        }
        Ok(_) => {}
        Err(refusal) => refusal.account(maps),
    }
    match result {
        Ok(StageOutcome::Forwarded(egress)) => {
            let action = hook.redirect(&egress, maps);
            match egress.gue {
                GueMeta::NONE => action.into(),
                gue => Next::FinishGue(action, gue).encode(),
            }
        }
        Ok(StageOutcome::ParseHeaders) => Next::ParseHeaders.encode(),
        Ok(StageOutcome::Quic(offsets)) => Next::Quic(offsets).encode(),
        Ok(StageOutcome::EchoReply) => Next::EchoReply.encode(),
        Ok(StageOutcome::TooBig { mtu, .. }) => Next::TooBig(mtu).encode(),
        Err(refusal) => hook.apply_verdict(refusal.reason).into(),
    }
}

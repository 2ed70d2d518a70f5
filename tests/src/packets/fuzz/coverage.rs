//! Checks that random frames reached every outcome.

use anyhow::ensure;
use sluice_datapath::Reason;

use super::totals::Totals;

/// Checks that the balancer returned every [`Reason`] that a client's frame can cause, and
/// forwarded to several services and backends.
pub fn check_balancer(totals: &Totals) -> anyhow::Result<()> {
    use Reason::{
        AdjustRoomFailed, EcnForbidden, IcmpTooBigRateLimited, NotBalancer, NotTunnel,
        TunnelDevice, VlanDepth,
    };

    // Of the backend, of a kernel that refuses room, or of the rate limit of ICMP errors.
    let elsewhere = [
        NotTunnel,
        NotBalancer,
        TunnelDevice,
        EcnForbidden,
        AdjustRoomFailed,
        VlanDepth,
        IcmpTooBigRateLimited,
    ];
    let counters = &totals.balanced;
    for reason in Reason::ALL.iter().filter(|reason| !elsewhere.contains(reason)) {
        ensure!(counters.reasons.contains_key(reason), "no random frame caused {reason}");
    }
    ensure!(
        counters.services.len() >= 2 && counters.backends.len() >= 4,
        "random frames reached too few services or backends"
    );
    Ok(())
}

/// Checks that the backend returned every [`Reason`] that an encapsulated frame can cause, and that
/// at least one frame in 20 was decapsulated, and one in 60 clamped: one fixture of three clamps.
pub fn check_backend(totals: &Totals, frames: u64) -> anyhow::Result<()> {
    use Reason::{
        BadHeader, BadLength, EcnForbidden, NotBalancer, NotTunnel, NotVip, OtherHost, Truncated,
        TunnelDevice,
    };

    let ((decapsulated, _), reasons) = &totals.decapsulated;
    for reason in [
        Truncated,
        BadHeader,
        NotVip,
        OtherHost,
        BadLength,
        NotTunnel,
        EcnForbidden,
        NotBalancer,
        TunnelDevice,
    ] {
        ensure!(reasons.contains_key(&reason), "no random frame caused {reason}");
    }
    ensure!(
        *decapsulated > frames / 20 && totals.clamped > frames / 60,
        "of {frames} frames {decapsulated} were decapsulated and {} clamped: too few",
        totals.clamped
    );
    Ok(())
}

//! Regressions: faults that packets revealed in other balancers, each with the cases that exclude
//! it here.
//!
//! Faults that need no packet have other tests: the order of removals (VIPs, lookup table,
//! backends), weights (`maglev/tests/known.rs`), and the memory of ten services with 65,537 slots
//! (`userspace/tests/daemon/large.rs`).

use anyhow::{Context as _, Result};

use crate::packets::bindings::BalancerBinding;
use crate::packets::cases;

/// A fault, and the names of the cases that exclude it.
pub type Regression = (&'static str, &'static [&'static str]);

/// Every regression.
pub const REGRESSIONS: &[Regression] = &[
    (
        "new connections go to the last backend after its removal",
        &[
            "packets of a slot without a backend are dropped",
            "packets of a slot with a free backend index are dropped",
        ],
    ),
    (
        "a reused index sends old flows to another backend or service",
        &[
            "a reused backend index keeps no flows of its previous backend",
            "a non-initial fragment does not go to a new backend with the index of the first fragment's backend",
        ],
    ),
    (
        "a flood or untracked traffic evicts flows from the connection table",
        &[
            "a SYN creates no connection entry; the next segment follows the lookup table",
            "an untracked service writes nothing into the connection table",
        ],
    ),
    (
        "fragments and packets with options are dropped, whatever their destination",
        &[
            "fragments to other addresses pass",
            "all fragments to a port without a VIP pass",
            "non-initial fragments go to the backend of the first fragment",
            "IPv4 options of every length stay in the inner packet",
        ],
    ),
    (
        "echo requests to every address of the interface are answered",
        &[
            "a packet to an address that is not a VIP address passes",
            "an echo request to a VIP address is answered from that address",
        ],
    ),
    (
        "ICMP errors with the minimum quote of RFC 792 are dropped",
        &["an ICMP error that quotes only 8 bytes of TCP or UDP is forwarded"],
    ),
    (
        "the length in a header is trusted",
        &[
            "an IP length of 65,535 bytes is dropped",
            "an IP length of one byte more than the frame is dropped",
            "a non-initial fragment with a wrong length is dropped",
            "an echo request with an IP length beyond the frame, or shorter than its header, is dropped",
        ],
    ),
    (
        "packets with a TTL of 0 are forwarded",
        &["a TTL of 0 is dropped", "a non-initial fragment with a TTL of 0 is dropped"],
    ),
    (
        "packets leave longer than the MTU",
        &[
            "a packet one byte longer than the MTU allows is dropped",
            "a merged packet with segments one byte longer than the MTU allows is dropped",
            "an ICMP error reports the MTU less the outer header",
        ],
    ),
    (
        "an IPv4 backend of an IPv6 VIP gets malformed packets",
        &[
            "an IPv6 packet to an IPv4 backend gets an IPv4 outer header",
            "an IPv4 packet to an IPv6 backend gets an IPv6 outer header",
        ],
    ),
    (
        "packets with VLAN tags or IPv6 extension headers are not forwarded",
        &[
            "a packet with a VLAN tag in metadata leaves without it",
            "a packet with VLAN tags in its bytes leaves without them",
            "extension headers of every kind, also several, are skipped to the L4 header",
        ],
    ),
    (
        "drops have no reason",
        &["a drop counts once by its reason, and the next packet is forwarded"],
    ),
];

/// Runs the cases of a regression, each on a new balancer.
pub fn check<B: BalancerBinding>(fault: &Regression, new: impl Fn() -> B) -> Result<()> {
    let all = cases::balancing();
    for name in fault.1 {
        let case = all
            .iter()
            .find(|case| case.name == *name)
            .with_context(|| format!("there is no case `{name}`"))?;
        case.run(&mut new()).with_context(|| format!("case `{name}`"))?;
    }
    Ok(())
}

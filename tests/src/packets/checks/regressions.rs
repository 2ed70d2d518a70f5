//! Faults that were found in other balancers by sending them packets, and the cases that show that
//! they are not here.
//!
//! What needs no packet is tested where it belongs: that a service's table goes before its backends
//! and its VIPs before its table (`userspace/src/plan/tests.rs`), that weights come out as
//! configured (`maglev/tests/known.rs`), and that ten services at 65,537 slots take less than 32
//! MiB (`userspace/tests/daemon/large.rs`).

use anyhow::{Context as _, Result};

use crate::packets::bindings::BalancerBinding;
use crate::packets::cases;

/// A fault in a sentence, and the names of the cases that show its absence.
pub type Regression = (&'static str, &'static [&'static str]);

/// All of them.
pub const REGRESSIONS: &[Regression] = &[
    (
        "new connections still go to the last backend after it was deleted",
        &[
            "a slot without a backend drops its packets",
            "a slot that names a free index drops its packets",
        ],
    ),
    (
        "a recycled index sends old flows to another backend or service",
        &[
            "a backend index that was given to another backend keeps no flows of the earlier one",
            "a later fragment does not go to another backend that got the index of the first one's",
        ],
    ),
    (
        "a flood or untracked traffic keeps flows out of the connection table",
        &[
            "a SYN alone is not remembered: the flow's next segment takes what the table then says",
            "an untracked service writes nothing into the connection table",
        ],
    ),
    (
        "fragments and packets with options are dropped, whoever they are for",
        &[
            "fragments to anybody else pass",
            "fragments to a port that is no VIP's pass, all of them",
            "later fragments go to the backend of the first one",
            "IPv4 options of every length stay in the inner packet",
        ],
    ),
    (
        "pings are answered for every address of the interface",
        &["what is not for a VIP address passes", "a ping to a VIP address is answered from there"],
    ),
    (
        "ICMP errors that quote no more than RFC 792 asks for are dropped",
        &["an ICMP error that quotes only 8 bytes of TCP or UDP is followed"],
    ),
    (
        "the length that a header claims is trusted",
        &[
            "a claim of 65,535 bytes is dropped",
            "a claim of one byte more than the frame has is dropped",
            "a later fragment that lies about its length is dropped",
            "a ping that claims more than there is, or less than itself, is dropped",
        ],
    ),
    (
        "packets whose time to live is zero are forwarded",
        &[
            "a packet whose time to live is zero is dropped",
            "a later fragment whose time to live is zero is dropped",
        ],
    ),
    (
        "full packets leave too long for the link",
        &[
            "a packet of one byte more than fits the MTU is dropped",
            "merged segments of one byte more than fit the MTU are dropped",
            "a client whose packet does not fit is told the MTU without the outer header",
        ],
    ),
    (
        "an IPv4 backend of an IPv6 VIP gets malformed packets",
        &[
            "an IPv6 packet goes to an IPv4 backend behind an IPv4 header",
            "an IPv4 packet goes to an IPv6 backend behind an IPv6 header",
        ],
    ),
    (
        "VLAN tags and IPv6 extension headers pass by",
        &[
            "a packet with a VLAN tag beside its bytes leaves without it",
            "a packet with VLAN tags in its bytes leaves without them",
            "extension headers are followed to the transport header, each kind and several",
        ],
    ),
    (
        "drops have no reason",
        &["what is dropped is counted once by its reason, and what comes next is forwarded"],
    ),
];

/// Runs the cases of a fault, each on a balancer of its own.
///
/// # Errors
///
/// What did not end as the case says; a name that no case has.
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

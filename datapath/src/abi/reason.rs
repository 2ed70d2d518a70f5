//! What happened to a packet that was not forwarded: one enum is the error, the counter index and
//! the metric name.

use core::fmt;

/// What happens to a packet that is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet is not ours: it goes on, untouched, to whatever comes next.
    Pass,
    /// The packet is ours and cannot be forwarded.
    Drop,
    /// The packet has become the answer to its sender: it leaves through the interface that it came
    /// from.
    Answer,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $verdict:ident;)+) => {
        /// Why a packet was not forwarded.
        ///
        /// The number is the index of the reason's counter; numbers are never reused.
        /// [`Reason::name`] is its name everywhere.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The reason's name in counters and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What the reason means, and whether it is normal in production.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }

            /// Whether the packet goes on untouched, is dropped, or was answered.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6 (ARP, for example). Normal.
    NotIp = 1, "not_ip", Pass;
    /// Tagged with more than two VLANs. Not normal: a broken sender or an attack.
    VlanDepth = 2, "vlan_depth", Pass;
    /// The frame ends inside its headers. Not normal: a broken sender or an attack.
    Truncated = 3, "truncated", Pass;
    /// An IP header that contradicts itself (version or header length). Not normal: a broken sender
    /// or an attack.
    BadHeader = 4, "bad_header", Pass;
    /// The destination is no VIP address. Normal: everybody else's traffic.
    NotVip = 5, "not_vip", Pass;
    /// A fragment to a VIP address whose first fragment is not known: it came before that, or long
    /// after it, or the first one was not for a VIP. Normal in small numbers.
    FragmentUnknown = 6, "fragment_unknown", Pass;
    /// To a VIP address, but neither TCP nor UDP, nor a ping or an error that is acted upon.
    /// Normal: pings that are left to the host, for example.
    OtherProtocol = 7, "other_protocol", Pass;
    /// To a VIP address, but to a port that no service has. Normal: scans, or a service that is not
    /// configured.
    NoService = 8, "no_service", Pass;
    /// Not for this host's link address: the interface is promiscuous, or the frame is a broadcast
    /// or multicast. Forwarding it would duplicate what its real receiver forwards. Normal while
    /// somebody captures packets.
    OtherHost = 9, "other_host", Pass;
    /// To a VIP address, behind more IPv6 extension headers than are followed, or with a routing
    /// header that is not at its end. Not normal: a broken sender or an attack.
    ExtensionHeaders = 10, "extension_headers", Pass;
    /// An ICMP error to a VIP address that quotes no packet from a VIP there. Normal in small
    /// numbers: errors for the host, scans.
    IcmpUnrelated = 11, "icmp_unrelated", Pass;
    /// An ICMP error to a VIP address that quotes a later fragment, which has no ports, so that
    /// nobody can tell whose it is. Normal in small numbers.
    IcmpInnerFragment = 12, "icmp_inner_fragment", Pass;
    /// The IP header claims more bytes than the packet has, or fewer than its headers. Not normal:
    /// a broken sender or an attack.
    BadLength = 16, "bad_length", Drop;
    /// The time to live is zero. Not normal: a broken sender or a routing loop.
    TtlExpired = 17, "ttl_expired", Drop;
    /// The service of a VIP has no lookup table. Not normal: a fault of Sluice's daemon.
    NoTable = 18, "no_table", Drop;
    /// No backend of the packet's slot can take it. Not normal: every backend of the slot is down
    /// or draining.
    NoBackend = 19, "no_backend", Drop;
    /// The backend has no address. Not normal: a fault of Sluice's daemon.
    BackendWithoutAddress = 20, "backend_without_address", Drop;
    /// There is no route to the backend. Not normal: look at the host's routing table.
    NoRoute = 21, "no_route", Drop;
    /// With its outer header the packet does not fit the MTU towards the backend.
    /// `icmp_too_big_sent` of them were answered. Not normal: raise the underlay's MTU.
    TooBig = 22, "too_big", Drop;
    /// The kernel refused to make room for the outer header, or to take it off. Not normal: the
    /// packet was already encapsulated, or memory ran out.
    AdjustRoomFailed = 23, "adjust_room_failed", Drop;
    /// To a VIP address that drops what no service listens to, at such a port. Normal: scans.
    NoServiceDropped = 24, "no_service_dropped", Drop;
    /// The source is in a deny-list, the service's or the one for all. Normal: that is what the
    /// list is for.
    AclDenied = 25, "acl_denied", Drop;
    /// There is an allow-list, the service's or the one for all, and the source is not in it; or a
    /// new service's lists are still being read. Normal: that is what the list is for.
    AclNotAllowed = 26, "acl_not_allowed", Drop;
    /// The service gets more packets or new flows than its `rate` lets through. Not normal: an
    /// attack, or a limit that is too low.
    RateLimitedService = 27, "rate_limited_service", Drop;
    /// The source sends more packets or new flows than the service's `rate` lets through for each.
    /// Not normal: an attack, many clients behind one address, or a limit that is too low.
    RateLimitedSource = 28, "rate_limited_source", Drop;
    /// A merged packet, a fragment, or one without a checksum of its own: in UDP over IPv6 it would
    /// go without a checksum, and the service does not say that its backends take that
    /// (`udp_zero_checksum`). Not normal: say it, or turn merging (GRO) off.
    NoChecksum = 30, "no_checksum", Drop;
    /// Not addressed to this backend as IP-in-IP or GUE. Normal: everybody else's traffic.
    NotTunnel = 32, "not_tunnel", Pass;
    /// The tunnel marked congestion on a packet that cannot carry the mark (RFC 6040). Normal in
    /// small numbers under congestion.
    EcnForbidden = 48, "ecn_forbidden", Drop;
    /// A ping to a VIP address, answered. Normal: monitoring.
    IcmpEchoReplied = 56, "icmp_echo_replied", Answer;
    /// The client was told by ICMP that its packet does not fit (`too_big` counts the packet).
    /// Normal where the underlay's MTU is small.
    IcmpTooBigSent = 57, "icmp_too_big_sent", Answer;
    /// Nobody was told that a packet does not fit (`too_big` counts it), because errors are sent
    /// only so often. Not normal: many clients, or one that does not listen.
    IcmpTooBigRateLimited = 58, "icmp_too_big_rate_limited", Drop;
}

impl Reason {
    /// One more than the largest number: the size of an array indexed by reason.
    pub const COUNTERS: u32 = 128;

    /// The reason's number: the index of its counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// How many counters of drops a service has.
    pub const DROPS: usize = 32;

    /// The lowest number of the range of a service's drop counters: 16 to 47.
    const FIRST_DROP: u32 = 16;

    /// Index of the reason in `ServiceCounters::drops`; `None` for
    /// a reason that does not drop a packet of a service.
    ///
    /// Number 32 lies in the range, but belongs to the backend's programs ([`Reason::NotTunnel`]):
    /// that element stays zero.
    #[inline(always)]
    pub const fn drop_index(self) -> Option<u32> {
        let index = self.index().wrapping_sub(Self::FIRST_DROP);
        if index < Self::DROPS as u32 && !matches!(self, Self::NotTunnel) {
            Some(index)
        } else {
            None
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!(Reason::ALL[i].index() > 0 && Reason::ALL[i].index() < Reason::COUNTERS);
        assert!(i == 0 || Reason::ALL[i].index() > Reason::ALL[i - 1].index());
        // A service's counters have room for nothing but drops.
        assert!(
            Reason::ALL[i].drop_index().is_none()
                || matches!(Reason::ALL[i].verdict(), Verdict::Drop)
        );
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_metric_label() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn every_meaning_says_whether_it_is_normal() {
        for reason in Reason::ALL {
            assert!(
                reason.meaning().to_lowercase().contains("normal"),
                "{reason}: {}",
                reason.meaning()
            );
        }
    }
}

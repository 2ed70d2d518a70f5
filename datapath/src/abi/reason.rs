//! Reasons why a packet is not forwarded. One enum is the error, the counter index and the metric
//! name.

use core::fmt;

/// Action on a packet that is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet is not for a VIP: it passes unchanged to the next program or the network stack.
    Pass,
    /// The packet is for a VIP and cannot be forwarded.
    Drop,
    /// The packet was rewritten into a reply to its sender, and leaves through its ingress
    /// interface.
    Answer,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $verdict:ident;)+) => {
        /// Why a packet was not forwarded.
        ///
        /// The number is the index of the reason's counter. Numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in counters, metrics and captures.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The meaning, and whether the reason is normal in production.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }

            /// The action on the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6, for example ARP. Normal.
    NotIp = 1, "not_ip", Pass;
    /// More than two VLAN tags. Not normal: a broken sender or an attack.
    VlanDepth = 2, "vlan_depth", Pass;
    /// The frame ends inside its headers. Not normal: a broken sender or an attack.
    Truncated = 3, "truncated", Pass;
    /// Invalid version or header length in the IP header. Not normal: a broken sender or an attack.
    BadHeader = 4, "bad_header", Pass;
    /// The destination is not a VIP address. Normal: all other traffic of the host.
    NotVip = 5, "not_vip", Pass;
    /// Non-initial fragment to a VIP address without an entry for its first fragment: it arrived
    /// before the first fragment or too long after it, or the first fragment was not for a VIP.
    /// Normal in small numbers.
    FragmentUnknown = 6, "fragment_unknown", Pass;
    /// To a VIP address, but neither TCP, UDP nor ICMP that the balancer handles. Normal: for
    /// example echo requests that pass to the host.
    OtherProtocol = 7, "other_protocol", Pass;
    /// To a VIP address, but to a port without a service. Normal: scans, or a service that is not
    /// configured.
    NoService = 8, "no_service", Pass;
    /// The destination MAC address is not this host's: the interface is promiscuous, or the frame
    /// is a broadcast or multicast. Forwarding it would duplicate the packet. Normal while the
    /// interface is promiscuous, for example during a packet capture.
    OtherHost = 9, "other_host", Pass;
    /// To a VIP address, with too many IPv6 extension headers, or with a routing header that has
    /// segments left. Not normal: a broken sender or an attack.
    ExtensionHeaders = 10, "extension_headers", Pass;
    /// ICMP error to a VIP address that quotes no packet from a VIP at this address. Normal in
    /// small numbers: errors for the host, scans.
    IcmpUnrelated = 11, "icmp_unrelated", Pass;
    /// ICMP error to a VIP address that quotes a non-initial fragment, which has no ports to select
    /// a backend by. Normal in small numbers.
    IcmpInnerFragment = 12, "icmp_inner_fragment", Pass;
    /// The length in the IP header exceeds the packet, or is less than the headers. Not normal: a
    /// broken sender or an attack.
    BadLength = 16, "bad_length", Drop;
    /// The time to live is zero. Not normal: a broken sender or a routing loop.
    TtlExpired = 17, "ttl_expired", Drop;
    /// The service has no lookup table. Not normal: a bug in Sluice's daemon.
    NoTable = 18, "no_table", Drop;
    /// No backend is available for the packet's slot. Not normal: all backends of the slot are down
    /// or draining.
    NoBackend = 19, "no_backend", Drop;
    /// The backend has no address. Not normal: a bug in Sluice's daemon.
    BackendWithoutAddress = 20, "backend_without_address", Drop;
    /// No route to the backend. Not normal: check the host's routing table.
    NoRoute = 21, "no_route", Drop;
    /// The packet with its outer header exceeds the MTU towards the backend. `icmp_too_big_sent`
    /// counts the ICMP errors. Not normal: raise the underlay's MTU.
    TooBig = 22, "too_big", Drop;
    /// The kernel failed to change the packet: to add or remove the outer header, or to load or
    /// store headers while the packet is rewritten. Not normal: the packet was already
    /// encapsulated, or memory ran out.
    AdjustRoomFailed = 23, "adjust_room_failed", Drop;
    /// To a port without a service, at a VIP address that is configured to drop such packets.
    /// Normal: scans.
    NoServiceDropped = 24, "no_service_dropped", Drop;
    /// The source matches the deny list of the global ACL or of the service's. Normal: the purpose
    /// of the ACL.
    AclDenied = 25, "acl_denied", Drop;
    /// The source does not match the allow list of the global ACL or of the service's, or the ACL
    /// of a new service is not loaded yet. Normal: the purpose of the ACL.
    AclNotAllowed = 26, "acl_not_allowed", Drop;
    /// The service's packets or new connections exceed its `rate`. Not normal: an attack, or a
    /// limit that is too low.
    RateLimitedService = 27, "rate_limited_service", Drop;
    /// The source's packets or new connections exceed the service's `rate` per source. Not normal:
    /// an attack, many clients that share one address, or a limit that is too low.
    RateLimitedSource = 28, "rate_limited_source", Drop;
    /// The GUE header of a merged packet, a fragment or a packet without a checksum would need a
    /// zero UDP checksum over IPv6, and `udp_zero_checksum` is not set for the service. Not normal:
    /// set it if the backends accept such packets, or disable GRO.
    NoChecksum = 30, "no_checksum", Drop;
    /// From a VIP address to a VIP, which would make two services answer each other, or from an
    /// address to itself. Not normal: a spoofed source. If the address is also one of a client, set
    /// `allow_as_source` for it.
    SourceIsVip = 31, "source_is_vip", Drop;
    /// Not IP-in-IP or GUE to an address of this backend. Normal: all other traffic of the host.
    NotTunnel = 32, "not_tunnel", Pass;
    /// First fragment to a service with `"fragments": "drop"`. The others of the packet count as
    /// `fragment_unknown`. Normal: the purpose of the option.
    FragmentDropped = 33, "fragment_dropped", Drop;
    /// The service's fragments exceed the `fragments` of its `rate`. Not normal: an attack, or a
    /// limit that is too low.
    RateLimitedFragments = 34, "rate_limited_fragments", Drop;
    /// To a VIP, from a source that no client has: an unspecified, loopback, multicast, broadcast,
    /// reserved, link-local or IPv4-mapped address (RFC 1812 section 5.3.7, RFC 4291 section 2.5).
    /// Not normal: a spoofed source, or a client without a configured address.
    MartianSource = 35, "martian_source", Drop;
    /// The outer header has the ECN codepoint CE, and the inner packet is not ECN-capable (RFC 6040
    /// section 4.2). Normal in small numbers under congestion.
    EcnForbidden = 48, "ecn_forbidden", Drop;
    /// IP-in-IP or GUE to an address of this backend, from a source that is not in
    /// `underlay.balancers`. Not normal: an attempt to bypass the balancers, or a balancer that is
    /// missing there.
    NotBalancer = 49, "not_balancer", Drop;
    /// IP-in-IP from a balancer to an address whose packets a tunnel device decapsulates. Normal.
    TunnelDevice = 50, "tunnel_device", Pass;
    /// Echo reply sent for an echo request to a VIP address. Normal: monitoring.
    IcmpEchoReplied = 56, "icmp_echo_replied", Answer;
    /// ICMP error sent to the client of a packet that exceeds the MTU (`too_big` counts the
    /// packet). Normal if the underlay's MTU is small.
    IcmpTooBigSent = 57, "icmp_too_big_sent", Answer;
    /// No ICMP error sent for a packet that exceeds the MTU (`too_big` counts the packet), because
    /// of the rate limit of ICMP errors. Not normal: many clients, or a client that ignores the
    /// errors.
    IcmpTooBigRateLimited = 58, "icmp_too_big_rate_limited", Drop;
}

impl Reason {
    /// Number of counters, which exceeds the largest reason.
    pub const COUNTERS: u32 = 128;

    /// The number: the index of the counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Number of drop counters of a service.
    pub const DROPS: usize = 32;

    /// Number of the first drop counter of a service. The range is 16 to 47.
    const FIRST_DROP: u32 = 16;

    /// Index in `ServiceCounters::drops`; `None` if the reason does not drop packets of a service.
    ///
    /// Number 32 is in the range, but is used by the backend's programs ([`Reason::NotTunnel`]), so
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
        // A service has counters for drops only.
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
    fn every_meaning_states_whether_the_reason_is_normal() {
        for reason in Reason::ALL {
            assert!(
                reason.meaning().to_lowercase().contains("normal"),
                "{reason}: {}",
                reason.meaning()
            );
        }
    }
}

//! Kinds of addresses that packets cannot be routed to.

use std::net::{IpAddr, Ipv4Addr};

/// The kind of an address that packets cannot be routed to, with its article; `None` for a unicast
/// address. See the IANA special-purpose address registries (RFC 6890). Private and other kinds
/// that networks route are allowed.
pub(super) fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some("the unspecified address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\""),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("the unspecified address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("an IPv4-mapped IPv6 address (write the IPv4 address itself)")
        }
        // Valid on one link only, and the configuration is shared by several hosts, so it cannot
        // name the link.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        address if address.is_loopback() => Some("a loopback address"),
        address if address.is_multicast() => Some("a multicast address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_are_usable() {
        for (address, kind) in [
            ("0.0.0.0", Some("unspecified")),
            ("0.1.2.3", Some("this network")),
            ("127.0.0.1", Some("loopback")),
            ("169.254.1.1", Some("link-local")),
            ("224.0.0.1", Some("multicast")),
            ("239.255.255.255", Some("multicast")),
            ("255.255.255.255", Some("broadcast")),
            ("::", Some("unspecified")),
            ("::1", Some("loopback")),
            ("fe80::1", Some("link-local")),
            ("ff02::1", Some("multicast")),
            ("::ffff:192.0.2.1", Some("IPv4-mapped")),
            ("10.0.0.1", None),
            ("203.0.113.10", None),
            ("2001:db8::1", None),
            ("fd00::1", None),
        ] {
            let found = unusable(address.parse().unwrap());
            match kind {
                Some(kind) => {
                    assert!(found.is_some_and(|found| found.contains(kind)), "{address}: {found:?}")
                }
                None => assert_eq!(found, None, "{address}"),
            }
        }
    }
}

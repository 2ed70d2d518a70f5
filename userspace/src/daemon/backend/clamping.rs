//! MSS clamping: the largest segment, and the interfaces through which replies leave.

use std::collections::BTreeSet;

use sluice_control::config::{self, Config};
use sluice_datapath::Family;
use sluice_datapath::wire::header::{Ipv4, Ipv6, Tcp};

use crate::args::BackendArgs;
use crate::kernel::netlink::{self, Netlink};

/// The configuration of MSS clamping on a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clamping {
    /// The underlay's MTU, if it is configured.
    mtu: Option<u32>,
    /// For each inner family, IPv4 first, the family of the outer header; `None` if the balancers
    /// send no such packets.
    outer: [(Family, Option<Family>); 2],
    /// Bytes between the outer and the inner IP header; 0 for IP-in-IP.
    overhead: u32,
    /// The interfaces of replies, if they are configured.
    interfaces: Vec<String>,
}

impl Clamping {
    /// The configuration for a backend; `None` if nothing is clamped. `overhead` is the largest
    /// overhead of its services' encapsulation after the outer IP header, in bytes.
    pub(super) fn new(
        args: &BackendArgs,
        config: &Config,
        backend: &config::BackendConfig,
        overhead: u32,
    ) -> Option<Self> {
        let underlay = config.underlay();
        config.clamp_mss().then(|| Self {
            mtu: args.mtu.or(underlay.mtu),
            outer: [Family::V4, Family::V6]
                .map(|inner| (inner, underlay.outer_family(backend, inner))),
            overhead,
            interfaces: args.reply_interfaces.clone(),
        })
    }

    /// The interfaces of replies, if they are configured.
    pub(super) fn configured_interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The interfaces through which replies to clients leave: those that are configured, or the
    /// receiving ones and those of default routes that have an Ethernet header.
    pub(super) async fn reply_interfaces(
        &self,
        netlink: &Netlink,
        receiving: &[String],
    ) -> Result<Vec<String>, netlink::Error> {
        if !self.interfaces.is_empty() {
            return Ok(self.interfaces.clone());
        }
        let mut names: BTreeSet<String> = receiving.iter().cloned().collect();
        for index in netlink.default_routes().await? {
            let interface = netlink.interface_at(index).await?;
            names.extend(
                interface.filter(|interface| interface.ethernet).map(|interface| interface.name),
            );
        }
        Ok(names.into_iter().collect())
    }

    /// The MSS to clamp to, for each family: by the configured MTU, or by the smallest MTU of the
    /// receiving interfaces that exist. `None` if none exists.
    pub(super) async fn largest_segments(
        &self,
        netlink: &Netlink,
        receiving: &[String],
    ) -> Result<Option<[(Family, u32); 2]>, netlink::Error> {
        let mut mtu = self.mtu;
        if mtu.is_none() {
            for name in receiving {
                let found = match netlink.interface(name).await {
                    Err(netlink::Error::NoInterface { .. }) => continue,
                    found => found?.mtu,
                };
                mtu = Some(mtu.map_or(found, |smallest| smallest.min(found)));
            }
        }
        let Some(mtu) = mtu else { return Ok(None) };
        let mtu = mtu.saturating_sub(self.overhead);
        Ok(Some(self.outer.map(|(inner, outer)| (inner, largest_segment(mtu, inner, outer)))))
    }
}

/// The largest segment that fits into `mtu` bytes with its headers and the outer header; 0 for no
/// limit.
fn largest_segment(mtu: u32, inner: Family, outer: Option<Family>) -> u32 {
    let header = |family| match family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    match outer {
        // At least 1, because 0 means no limit. The sender subtracts TCP options itself (RFC 6691).
        Some(outer) => mtu
            .saturating_sub((header(outer) + header(inner) + Tcp::SMALLEST) as u32)
            .clamp(1, u16::MAX.into()),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_leaves_room_for_all_headers() {
        let (v4, v6) = (Family::V4, Family::V6);
        for (inner, outer, largest) in
            [(v4, v4, 1440), (v4, v6, 1420), (v6, v4, 1420), (v6, v6, 1400)]
        {
            assert_eq!(largest_segment(1500, inner, Some(outer)), largest, "{inner} in {outer}");
        }
        assert_eq!(largest_segment(9000, v4, Some(v4)), 8940);
        assert_eq!(largest_segment(68, v6, Some(v6)), 1);
        assert_eq!(largest_segment(1500, v4, None), 0);
    }
}

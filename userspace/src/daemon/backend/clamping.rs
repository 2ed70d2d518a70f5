//! What the backend's program at TC egress is to do: how large a segment clients may be told of,
//! and where answers leave.

use std::collections::BTreeSet;

use sluice_control::config::{self, Config};
use sluice_datapath::Family;
use sluice_datapath::wire::header::{Ipv4, Ipv6, Tcp};

use crate::args::BackendArgs;
use crate::kernel::netlink::{self, Netlink};

/// What the configuration asks of a backend that clamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clamping {
    /// The underlay's MTU, where it is stated.
    mtu: Option<u32>,
    /// For packets of each family, IPv4 first, the family of their outer header; `None` when none
    /// can come.
    outer: [(Family, Option<Family>); 2],
    /// Bytes of what is behind the outer IP header, 0 for IP-in-IP.
    overhead: u32,
    /// Where answers leave; empty when routes tell.
    interfaces: Vec<String>,
}

impl Clamping {
    /// What is asked of a backend; `None` when it is to leave every segment alone. `overhead` is
    /// what the encapsulation of its services takes beside the outer IP header, in bytes: the most
    /// of them.
    pub(super) fn of(
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

    /// The interfaces that were named; none when routes tell.
    pub(super) fn named(&self) -> &[String] {
        &self.interfaces
    }

    /// The interfaces through which the host answers clients: those that were named, or else those
    /// through which it receives, and those of default routes that have an Ethernet header.
    ///
    /// # Errors
    ///
    /// [`netlink::Error`].
    pub(super) async fn replies(
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

    /// For each family the largest maximum segment size that may be told: by what is stated, else
    /// by the smallest MTU of the interfaces that receive.
    ///
    /// # Errors
    ///
    /// [`netlink::Error`].
    pub(super) async fn largest(
        &self,
        netlink: &Netlink,
        receiving: &[String],
    ) -> Result<[(Family, u32); 2], netlink::Error> {
        let mut mtu = self.mtu;
        if mtu.is_none() {
            for name in receiving {
                let found = netlink.interface(name).await?.mtu;
                mtu = Some(mtu.map_or(found, |smallest| smallest.min(found)));
            }
        }
        let mtu = mtu.map(|mtu| mtu.saturating_sub(self.overhead));
        Ok(self.outer.map(|(inner, outer)| (inner, largest_segment(mtu, inner, outer))))
    }
}

/// The largest segment of a packet that fits into `mtu` bytes with its outer header; 0 when nothing
/// limits it.
fn largest_segment(mtu: Option<u32>, inner: Family, outer: Option<Family>) -> u32 {
    let header = |family| match family {
        Family::V4 => Ipv4::SIZE,
        Family::V6 => Ipv6::SIZE,
    };
    match (mtu, outer) {
        // Never 0, which would be no limit; options of a segment are its sender's affair (RFC
        // 6691).
        (Some(mtu), Some(outer)) => mtu
            .saturating_sub((header(outer) + header(inner) + Tcp::SMALLEST) as u32)
            .clamp(1, u16::MAX.into()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_room_for_the_outer_header_and_its_own() {
        let (v4, v6) = (Family::V4, Family::V6);
        for (inner, outer, largest) in
            [(v4, v4, 1440), (v4, v6, 1420), (v6, v4, 1420), (v6, v6, 1400)]
        {
            assert_eq!(
                largest_segment(Some(1500), inner, Some(outer)),
                largest,
                "{inner} in {outer}"
            );
        }
        assert_eq!(largest_segment(Some(9000), v4, Some(v4)), 8940);
        assert_eq!(largest_segment(Some(68), v6, Some(v6)), 1);
        assert_eq!(
            (largest_segment(None, v4, Some(v4)), largest_segment(Some(1500), v4, None)),
            (0, 0)
        );
    }
}

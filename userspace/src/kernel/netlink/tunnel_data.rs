//! The attributes of tunnel devices.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::link::{InfoData, InfoIpTunnel, InfoKind, LinkInfo};
use sluice_datapath::Family;

/// A kind of tunnel device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum TunnelKind {
    /// `ipip`: IPv4 in IPv4.
    Ipip,
    /// `sit`: IPv6 in IPv4.
    Sit,
    /// `ip6tnl` in mode `any`: IPv4 and IPv6 in IPv6.
    Ip6Tnl,
}

impl TunnelKind {
    /// The kind that decapsulates packets of the family `inner` sent to `local`.
    pub fn of(local: IpAddr, inner: Family) -> Self {
        match (local, inner) {
            (IpAddr::V4(_), Family::V4) => Self::Ipip,
            (IpAddr::V4(_), Family::V6) => Self::Sit,
            (IpAddr::V6(_), _) => Self::Ip6Tnl,
        }
    }
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tnl => "ip6tnl",
        })
    }
}

/// Attributes of a tunnel device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TunnelData {
    pub(super) kind: TunnelKind,
    pub(super) local: Option<IpAddr>,
    /// `None`: any source.
    pub(super) remote: Option<IpAddr>,
    /// Whether routes supply the tunnel metadata (`external`).
    pub(super) external: bool,
}

/// Decodes the attributes of a tunnel device; `None` for any other device.
pub(super) fn tunnel_data(infos: &[LinkInfo]) -> Option<TunnelData> {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::IpIp) => Some(TunnelKind::Ipip),
        LinkInfo::Kind(InfoKind::SitTun) => Some(TunnelKind::Sit),
        LinkInfo::Kind(InfoKind::Ip6Tnl) => Some(TunnelKind::Ip6Tnl),
        _ => None,
    })?;
    let mut data = TunnelData { kind, local: None, remote: None, external: false };
    for info in infos {
        if let LinkInfo::Data(InfoData::IpTunnel(options)) = info {
            for option in options {
                match option {
                    InfoIpTunnel::Local(address) => {
                        data.local = Some(*address).filter(|a| !a.is_unspecified())
                    }
                    InfoIpTunnel::Remote(address) => {
                        data.remote = Some(*address).filter(|a| !a.is_unspecified())
                    }
                    InfoIpTunnel::CollectMetadata => data.external = true,
                    _ => {}
                }
            }
        }
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_remote_is_decoded_as_any_source() {
        let infos = [
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(InfoData::IpTunnel(vec![
                InfoIpTunnel::Local("192.0.2.1".parse().unwrap()),
                InfoIpTunnel::Remote("0.0.0.0".parse().unwrap()),
            ])),
        ];
        assert_eq!(
            tunnel_data(&infos),
            Some(TunnelData {
                kind: TunnelKind::Ipip,
                local: "192.0.2.1".parse().ok(),
                remote: None,
                external: false,
            })
        );
    }
}

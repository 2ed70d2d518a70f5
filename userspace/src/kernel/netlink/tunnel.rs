//! Tunnel devices, which decapsulate on backends.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::Ip6TunnelFlags;
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use rtnetlink::{LinkIp6Tnl, LinkIpIp, LinkSit};

use super::link::{Interface, Link};
use super::tunnel_data::{TunnelData, TunnelKind};
use super::{Error, Mode, Netlink};

/// A tunnel device that decapsulates what anybody sends to its local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its interface index.
    pub index: u32,
    /// Its interface name.
    pub name: String,
    /// Whether this call made it, rather than found it.
    pub created: bool,
}

/// Why there is no tunnel device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// This kernel has no such devices: decapsulate in BPF instead.
    #[error("this kernel cannot make {kind} devices: load its module, or decapsulate in BPF")]
    Unsupported {
        /// The kind that is missing.
        kind: TunnelKind,
    },
    /// The local address is not of the kind's family.
    #[error(
        "an {kind} device cannot have the local address {local}: give it one of its own family"
    )]
    Family {
        /// The kind that was asked for.
        kind: TunnelKind,
        /// The address that does not fit.
        local: IpAddr,
    },
    /// A device of that name is not the one wanted.
    #[error(
        "cannot use {name} as {kind} device for {local}: it {found}; remove it with `ip link del {name}` or choose another name"
    )]
    Mismatch {
        /// The device's name.
        name: String,
        /// The kind that was asked for.
        kind: TunnelKind,
        /// The local address that was asked for.
        local: IpAddr,
        /// What is different about it: "is ...".
        found: String,
    },
    /// Another device has these parameters.
    #[error(
        "cannot create {kind} device {name} for {local}: {holder} has the same local address and takes packets from anybody; use or remove it"
    )]
    Taken {
        /// The name that was asked for.
        name: String,
        /// The kind that was asked for.
        kind: TunnelKind,
        /// The local address that both want.
        local: IpAddr,
        /// The device that has it.
        holder: String,
    },
    /// Anything else.
    #[error(transparent)]
    Netlink(#[from] Error),
}

impl TunnelError {
    /// Whether the request certainly changed nothing. Without an answer nobody knows.
    pub fn changed_nothing(&self) -> bool {
        !matches!(self, Self::Netlink(error) if !error.changed_nothing())
    }
}

impl Netlink {
    /// Makes a tunnel device that is up and decapsulates what anybody sends to `local`, or adopts
    /// one that already does.
    ///
    /// The first device of a kind loads the kernel's module for it, which adds a device of its own
    /// to every namespace (`tunl0`, `sit0`, `ip6tnl0`: down and without effect) that stays until
    /// the module is unloaded.
    ///
    /// # Errors
    /// [`TunnelError::Unsupported`] when this kernel has no such devices, which is known only after
    /// trying.
    pub async fn create_tunnel(
        &self,
        name: &str,
        kind: TunnelKind,
        local: IpAddr,
    ) -> Result<Tunnel, TunnelError> {
        if let Some(found) = self.tunnel(name, kind, local).await? {
            return Ok(found);
        }
        let message = match (kind, local) {
            (TunnelKind::Ipip, IpAddr::V4(local)) => {
                LinkIpIp::new(name).local(local).protocol(IpProtocol::Ipip).up().build()
            }
            // Without a protocol of its own a `sit` device takes every kind of packet that the
            // module knows.
            (TunnelKind::Sit, IpAddr::V4(local)) => {
                LinkSit::new(name).local(local).protocol(IpProtocol::Ipv6).up().build()
            }
            // 0, which is also the hop-by-hop options' number, is mode `any`.
            (TunnelKind::Ip6Tnl, IpAddr::V6(local)) => LinkIp6Tnl::new(name)
                .local(local)
                .mode(IpProtocol::Hopopts)
                .set_flag(Ip6TunnelFlags::IgnEncapLimit, true)
                .up()
                .build(),
            _ => return Err(TunnelError::Family { kind, local }),
        };
        let request = RouteNetlinkMessage::NewLink(message);
        let doing = || format!("create {kind} device {name} for {local}");
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => {}
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {
                return Err(TunnelError::Unsupported { kind });
            }
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                return Err(match self.tunnel_holder(kind, local).await? {
                    Some(holder) => {
                        TunnelError::Taken { name: name.to_owned(), kind, local, holder }
                    }
                    None => error.into(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        let Interface { index, name, .. } = self.interface(name).await?;
        Ok(Tunnel { index, name, created: true })
    }

    /// The tunnel device of that name: `None` if there is none, an error if it is not what
    /// [`Self::create_tunnel`] would make.
    ///
    /// # Errors
    /// [`TunnelError::Mismatch`], or the kernel's refusal.
    pub async fn tunnel(
        &self,
        name: &str,
        kind: TunnelKind,
        local: IpAddr,
    ) -> Result<Option<Tunnel>, TunnelError> {
        let Some(Link { interface, tunnel }) = self.link_named(name).await? else {
            return Ok(None);
        };
        match difference(&interface, tunnel.as_ref(), kind, local) {
            None => {
                Ok(Some(Tunnel { index: interface.index, name: interface.name, created: false }))
            }
            Some(found) => Err(TunnelError::Mismatch { name: name.to_owned(), kind, local, found }),
        }
    }

    async fn tunnel_holder(
        &self,
        kind: TunnelKind,
        local: IpAddr,
    ) -> Result<Option<String>, Error> {
        let wanted = TunnelData { kind, local: Some(local), remote: None, external: false };
        let links = self.links().await?;
        Ok(links
            .into_iter()
            .find(|link| link.tunnel.as_ref() == Some(&wanted))
            .map(|link| link.interface.name))
    }
}

/// What is wrong about a device, as "is ...": `None` if it decapsulates what anybody sends to
/// `local`.
fn difference(
    interface: &Interface,
    tunnel: Option<&TunnelData>,
    kind: TunnelKind,
    local: IpAddr,
) -> Option<String> {
    let Some(tunnel) = tunnel.filter(|tunnel| tunnel.kind == kind) else {
        return Some(format!("is not an {kind} device"));
    };
    if tunnel.external {
        return Some("is an external (route-steered) tunnel".into());
    }
    if tunnel.local != Some(local) {
        let found = tunnel.local.map_or_else(
            || "no local address".to_owned(),
            |other| format!("the local address {other}"),
        );
        return Some(format!("has {found}"));
    }
    if let Some(remote) = tunnel.remote {
        return Some(format!("takes packets from {remote} alone"));
    }
    (!interface.up).then(|| "is down".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(up: bool) -> Interface {
        Interface { index: 9, name: "sluice4".into(), mtu: 1480, up, ethernet: false, mac: None }
    }

    fn data(kind: TunnelKind, local: &str) -> TunnelData {
        TunnelData { kind, local: local.parse().ok(), remote: None, external: false }
    }

    #[test]
    fn a_device_that_does_the_work_is_adopted() {
        let local = "192.0.2.1".parse().unwrap();
        assert_eq!(
            difference(
                &device(true),
                Some(&data(TunnelKind::Ipip, "192.0.2.1")),
                TunnelKind::Ipip,
                local
            ),
            None
        );
    }

    #[test]
    fn a_device_that_differs_is_refused_with_the_difference() {
        let local = "192.0.2.1".parse().unwrap();
        let good = || data(TunnelKind::Ipip, "192.0.2.1");
        let cases = [
            (true, None, "is not an ipip device"),
            (true, Some(data(TunnelKind::Ip6Tnl, "2001:db8::1")), "is not an ipip device"),
            (true, Some(data(TunnelKind::Ipip, "192.0.2.9")), "has the local address 192.0.2.9"),
            (true, Some(TunnelData { local: None, ..good() }), "has no local address"),
            (
                true,
                Some(TunnelData { remote: "192.0.2.7".parse().ok(), ..good() }),
                "takes packets from 192.0.2.7 alone",
            ),
            (
                true,
                Some(TunnelData { external: true, ..good() }),
                "is an external (route-steered) tunnel",
            ),
            (false, Some(good()), "is down"),
        ];
        for (up, tunnel, expected) in cases {
            let found = difference(&device(up), tunnel.as_ref(), TunnelKind::Ipip, local);
            assert_eq!(found.as_deref(), Some(expected));
        }
    }
}

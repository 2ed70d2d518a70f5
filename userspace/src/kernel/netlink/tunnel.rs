//! Tunnel devices: kernel decapsulation on backends.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::Ip6TunnelFlags;
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use rtnetlink::{LinkIp6Tnl, LinkIpIp, LinkSit};

use super::link::{Interface, Link};
use super::tunnel_data::{TunnelData, TunnelKind};
use super::{Error, Mode, Netlink};

/// A tunnel device that decapsulates packets from any source to its local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The interface index.
    pub index: u32,
    /// The interface name.
    pub name: String,
    /// Whether this call created the device.
    pub created: bool,
}

/// Why a tunnel device cannot be created or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The kernel lacks this kind of device.
    #[error("this kernel cannot make {kind} devices: load its module, or decapsulate in BPF")]
    Unsupported {
        /// The missing kind.
        kind: TunnelKind,
    },
    /// The family of the local address does not fit the kind.
    #[error(
        "an {kind} device cannot have the local address {local}: give it one of its own family"
    )]
    Family {
        /// The requested kind.
        kind: TunnelKind,
        /// The local address.
        local: IpAddr,
    },
    /// A device with that name exists and differs.
    #[error(
        "cannot use {name} as {kind} device for {local}: it {found}; remove it with `ip link del {name}` or choose another name"
    )]
    Mismatch {
        /// The device's name.
        name: String,
        /// The requested kind.
        kind: TunnelKind,
        /// The requested local address.
        local: IpAddr,
        /// The difference, such as "is down".
        found: String,
    },
    /// Another device has the same parameters.
    #[error(
        "cannot create {kind} device {name} for {local}: {holder} has the same local address and accepts any remote; use or remove it"
    )]
    Taken {
        /// The requested name.
        name: String,
        /// The requested kind.
        kind: TunnelKind,
        /// The local address of both.
        local: IpAddr,
        /// The other device.
        holder: String,
    },
    /// A netlink error.
    #[error(transparent)]
    Netlink(#[from] Error),
}

impl TunnelError {
    /// Whether the request certainly changed nothing. Without an answer it may have.
    pub fn changed_nothing(&self) -> bool {
        !matches!(self, Self::Netlink(error) if !error.changed_nothing())
    }
}

impl Netlink {
    /// Creates a tunnel device that is up and decapsulates packets from any source to `local`, or
    /// adopts an existing one.
    ///
    /// The first device of a kind loads the kernel module, which adds a default device to every
    /// namespace (`tunl0`, `sit0`, `ip6tnl0`: down and without effect) until the module is
    /// unloaded.
    ///
    /// # Errors
    /// [`TunnelError::Unsupported`] if the kernel lacks this kind, which only the attempt shows.
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
            // Without an explicit protocol, a `sit` device decapsulates every protocol that the
            // module supports.
            (TunnelKind::Sit, IpAddr::V4(local)) => {
                LinkSit::new(name).local(local).protocol(IpProtocol::Ipv6).up().build()
            }
            // Protocol 0 (also the number of hop-by-hop options) is mode `any`.
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

    /// The tunnel device with that name: `None` if there is none; [`TunnelError::Mismatch`] if it
    /// differs from what [`Self::create_tunnel`] creates.
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

    /// The kind and the local address of the tunnel device with that name, if it is one that
    /// [`Self::create_tunnel`] creates.
    pub async fn tunnel_named(&self, name: &str) -> Result<Option<(TunnelKind, IpAddr)>, Error> {
        let Some(Link { interface, tunnel }) = self.link_named(name).await? else {
            return Ok(None);
        };
        let found = tunnel.as_ref().and_then(|tunnel| Some((tunnel.kind, tunnel.local?)));
        Ok(found.filter(|(kind, local)| {
            difference(&interface, tunnel.as_ref(), *kind, *local).is_none()
        }))
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

/// The difference of a device from a tunnel that decapsulates packets from any source to `local`,
/// such as "is down"; `None` if there is none.
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
        return Some("is an external (metadata) tunnel".into());
    }
    if tunnel.local != Some(local) {
        let found = tunnel.local.map_or_else(
            || "no local address".to_owned(),
            |other| format!("the local address {other}"),
        );
        return Some(format!("has {found}"));
    }
    if let Some(remote) = tunnel.remote {
        return Some(format!("accepts packets from {remote} only"));
    }
    (!interface.up).then(|| "is down".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(up: bool) -> Interface {
        Interface {
            index: 9,
            name: "sluice4".into(),
            mtu: 1480,
            up,
            carrier: up,
            ethernet: false,
            mac: None,
            xdp_program: None,
        }
    }

    fn data(kind: TunnelKind, local: &str) -> TunnelData {
        TunnelData { kind, local: local.parse().ok(), remote: None, external: false }
    }

    #[test]
    fn a_matching_device_is_adopted() {
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
    fn a_device_that_differs_is_refused_and_the_error_names_the_difference() {
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
                "accepts packets from 192.0.2.7 only",
            ),
            (
                true,
                Some(TunnelData { external: true, ..good() }),
                "is an external (metadata) tunnel",
            ),
            (false, Some(good()), "is down"),
        ];
        for (up, tunnel, expected) in cases {
            let found = difference(&device(up), tunnel.as_ref(), TunnelKind::Ipip, local);
            assert_eq!(found.as_deref(), Some(expected));
        }
    }
}

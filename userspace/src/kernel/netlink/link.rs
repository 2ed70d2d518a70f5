//! Interfaces.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, LinkXdp};

use super::tunnel_data::{TunnelData, tunnel_data};
use super::{Error, Mode, Netlink, interface_name};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The index; it stays when the interface is renamed.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The MTU in bytes, from the IP header on; 0 if the kernel does not report one.
    pub mtu: u32,
    /// Whether the interface is administratively up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
    /// Whether its packets have an Ethernet header (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// The Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// The ID of the program on its XDP hook. Of several (native, generic, offloaded), one.
    pub xdp_program: Option<u32>,
}

/// An interface and, for a tunnel device, its tunnel attributes.
pub(super) struct Link {
    pub(super) interface: Interface,
    pub(super) tunnel: Option<TunnelData>,
}

impl Netlink {
    /// The interface with this name. Fails with [`Error::NoInterface`], which lists those that
    /// exist.
    pub async fn interface(&self, name: &str) -> Result<Interface, Error> {
        match self.link_named(name).await? {
            Some(link) => Ok(link.interface),
            None => {
                let existing =
                    self.interfaces().await?.into_iter().map(|interface| interface.name).collect();
                Err(Error::NoInterface { name: name.to_owned(), existing })
            }
        }
    }

    /// The interface with this index, if it exists.
    pub async fn interface_at(&self, index: u32) -> Result<Option<Interface>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::GetLink(message);
        let answer = self
            .request(request, Mode::One(0), || format!("look up {}", interface_name(index)))
            .await;
        Ok(first_link(answer)?.map(|link| link.interface))
    }

    /// All interfaces, in the kernel's order.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        Ok(self.links().await?.into_iter().map(|link| link.interface).collect())
    }

    /// Removes a virtual interface such as a tunnel device. A missing interface is not an error.
    pub async fn remove_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.link_named(name).await? else {
            return Ok(());
        };
        let mut message = LinkMessage::default();
        message.header.index = link.interface.index;
        let request = RouteNetlinkMessage::DelLink(message);
        match self.request(request, Mode::One(0), || format!("remove {name}")).await {
            Err(error) if error.errno() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn link_named(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let request = RouteNetlinkMessage::GetLink(message);
        first_link(
            self.request(request, Mode::One(0), || format!("look up interface {name}")).await,
        )
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers =
            self.request(request, Mode::Dump, || "list the interfaces of this host".into()).await?;
        Ok(answers.iter().filter_map(link).collect())
    }
}

/// The link in an answer. A name that no interface can have (too long, empty) is reported as
/// absent.
fn first_link(answer: Result<Vec<RouteNetlinkMessage>, Error>) -> Result<Option<Link>, Error> {
    match answer {
        Ok(answers) => Ok(answers.iter().find_map(link)),
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::ERANGE | libc::EINVAL)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn link(answer: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return None;
    };
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        mac: None,
        xdp_program: None,
    };
    let mut tunnel = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name.clone(),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) if interface.ethernet => {
                interface.mac = bytes.as_slice().try_into().ok()
            }
            LinkAttribute::Xdp(attributes) => {
                interface.xdp_program = attributes.iter().find_map(xdp_program);
            }
            LinkAttribute::LinkInfo(infos) => tunnel = tunnel_data(infos),
            _ => {}
        }
    }
    Some(Link { interface, tunnel })
}

fn xdp_program(attribute: &LinkXdp) -> Option<u32> {
    match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => Some(*id).filter(|id| *id != 0),
        _ => None,
    }
}

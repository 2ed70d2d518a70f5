//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::decode::own_address;
use super::{Error, Mode, Netlink, interface_name};

/// The outcome of [`Netlink::add_address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressAdded {
    /// The interface did not have the address.
    Created,
    /// The interface had the address already.
    Existed,
}

/// The outcome of [`Netlink::remove_address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRemoved {
    /// The interface had the address.
    Removed,
    /// The address or the interface was gone already.
    Absent,
}

fn message(index: u32, address: IpAddr, prefix_len: u8) -> Result<AddressMessage, Error> {
    if prefix_len > if address.is_ipv4() { 32 } else { 128 } {
        return Err(Error::PrefixLength { address, prefix_len });
    }
    Ok(match address {
        IpAddr::V4(v4) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, prefix_len).build()
        }
        IpAddr::V6(v6) => {
            let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
                .index(index)
                .address(v6, prefix_len)
                .build();
            // All backends have the same VIP addresses, which duplicate address detection would
            // report.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
        }
    })
}

impl Netlink {
    /// Adds an address to an interface; an IPv6 address without duplicate address detection
    /// (`IFA_F_NODAD`). Fails with [`Error::PrefixLength`], or if the kernel refuses, for example
    /// because IPv6 is disabled on the interface.
    pub async fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<AddressAdded, Error> {
        let request = RouteNetlinkMessage::NewAddress(message(index, address, prefix_len)?);
        let doing = || format!("add {address}/{prefix_len} to {}", interface_name(index));
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => Ok(AddressAdded::Created),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(AddressAdded::Existed),
            Err(error) => Err(error),
        }
    }

    /// Removes an address from an interface. A missing address or interface is not an error.
    pub async fn remove_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<AddressRemoved, Error> {
        let request = RouteNetlinkMessage::DelAddress(message(index, address, prefix_len)?);
        let doing = || format!("remove {address}/{prefix_len} from {}", interface_name(index));
        match self.request(request, Mode::One(0), doing).await {
            Ok(_) => Ok(AddressRemoved::Removed),
            Err(error) if matches!(error.errno(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => {
                Ok(AddressRemoved::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// All addresses of this host, each with the index of its interface.
    pub async fn local_addresses(&self) -> Result<Vec<(u32, IpAddr)>, Error> {
        let addresses = self.addresses().await?;
        Ok(addresses.into_iter().map(|(index, address, _)| (index, address)).collect())
    }

    /// The addresses of this host that packets can be sent from: without those that duplicate
    /// address detection has not confirmed.
    pub async fn usable_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let messages = self.address_messages().await?;
        let usable = messages.iter().filter(|message| is_usable(message.header.flags));
        Ok(usable.filter_map(own_address).map(|(_, address, _)| address).collect())
    }

    /// Whether the interface has this address with this prefix length.
    pub async fn has_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<bool, Error> {
        Ok(self.addresses().await?.contains(&(index, address, prefix_len)))
    }

    /// All addresses of this host: index of the interface, address, prefix length.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr, u8)>, Error> {
        Ok(self.address_messages().await?.iter().filter_map(own_address).collect())
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers =
            self.request(request, Mode::Dump, || "list the addresses of this host".into()).await?;
        let messages = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        });
        Ok(messages.collect())
    }
}

/// Whether an address with these flags can be the source of packets.
fn is_usable(flags: AddressHeaderFlags) -> bool {
    !flags.contains(AddressHeaderFlags::Dadfailed)
        && (!flags.contains(AddressHeaderFlags::Tentative)
            || flags.contains(AddressHeaderFlags::Optimistic))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressAttribute;

    use super::*;

    #[test]
    fn the_local_end_of_a_point_to_point_address_is_used() {
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        let peer: IpAddr = "192.0.2.2".parse().unwrap();
        for order in [
            [AddressAttribute::Address(peer), AddressAttribute::Local(own)],
            [AddressAttribute::Local(own), AddressAttribute::Address(peer)],
        ] {
            let mut message = AddressMessage::default();
            message.header.index = 7;
            message.header.prefix_len = 32;
            message.attributes = order.to_vec();
            assert_eq!(own_address(&message), Some((7, own, 32)));
        }
    }

    #[test]
    fn an_ipv6_address_is_added_without_duplicate_detection() {
        let v6 = message(1, "2001:db8::1".parse().unwrap(), 128).unwrap();
        assert!(v6.header.flags.contains(AddressHeaderFlags::Nodad));
    }

    #[test]
    fn an_address_without_confirmation_is_not_usable() {
        use AddressHeaderFlags as Flags;
        for (flags, usable) in [
            (Flags::empty(), true),
            (Flags::Permanent, true),
            (Flags::Permanent | Flags::Tentative, false),
            (Flags::Tentative | Flags::Optimistic, true),
            (Flags::Permanent | Flags::Tentative | Flags::Dadfailed, false),
        ] {
            assert_eq!(is_usable(flags), usable, "{flags:?}");
        }
    }

    #[test]
    fn a_prefix_longer_than_the_address_is_refused() {
        let error = message(1, "192.0.2.1".parse().unwrap(), 33).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1/33"), "{error}");
        assert!(message(1, "2001:db8::1".parse().unwrap(), 33).is_ok());
    }
}

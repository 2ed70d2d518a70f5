//! Finds the changes of an instance without its journal: filters and tunnel devices by name, VIPs
//! in the pinned maps.
//!
//! The previous values of sysctls, and whether a qdisc existed before, are only in the journal.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use ipnet::IpNet;
use sluice_control::prefix::key_prefix;
use sluice_datapath::abi::maps::backend::VIP_PREFIXES;

use super::journal::{Change, Journal, OtherJournals, STATE_DIRECTORY};
use super::sysctl::{BACKEND_SETTINGS, Sysctl};
use super::vips::{is_address, vip_change};
use super::{LOOPBACK, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4};
use crate::kernel::bpf::{self, BackendMaps, Pins};
use crate::kernel::namespace::NetworkNamespace;
use crate::kernel::netlink::{Clsact, Direction, Error, FilterSpec, Netlink};

/// The outcome of a search.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Changes to undo, oldest first.
    pub(crate) changes: Vec<Change>,
    /// Changes that another instance may need, each with the reason.
    pub(crate) left: Vec<(Change, String)>,
    /// Possible changes that only the journal could show, a line each.
    pub(crate) unknown: Vec<String>,
}

/// The filters whose name `is_ours` accepts, on all interfaces and in both directions.
pub(crate) async fn filters(
    netlink: &Netlink,
    is_ours: impl Fn(&str) -> bool,
) -> Result<Vec<Change>, Error> {
    let mut found = Vec::new();
    let with_filters = netlink.interfaces_with_filters().await?;
    for interface in netlink.interfaces().await? {
        if !with_filters.contains_key(&interface.index) {
            continue;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            for filter in netlink.filters(interface.index, direction).await? {
                let Some(name) = filter.bpf_name.clone().filter(|name| is_ours(name)) else {
                    continue;
                };
                let spec = FilterSpec { name, priority: filter.priority };
                if spec.owns(&filter) {
                    found.push(super::filter_change(&interface, direction, &spec));
                }
            }
        }
    }
    Ok(found)
}

/// The tunnel devices with names of Sluice's that no journal lists.
pub(crate) async fn unlisted_tunnels(netlink: &Netlink) -> Result<Vec<Change>, Error> {
    let namespace = NetworkNamespace::current().ok();
    let journals = OtherJournals::read(Path::new(STATE_DIRECTORY), None, namespace);
    let mut found = Vec::new();
    for name in [TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4] {
        if let Some((kind, local)) = netlink.tunnel_named(name).await? {
            found.push(Change::Link { name: name.to_owned(), kind, local });
        }
    }
    found.retain(|tunnel| journals.holder(tunnel).is_none());
    Ok(found)
}

/// The VIPs and tunnel devices of a backend with these pins and filters. `tunnels` are devices that
/// no journal lists, `others` the other backends on this host.
pub(crate) async fn backend(
    netlink: &Netlink,
    pins: Option<&Pins>,
    filters: &[Change],
    tunnels: Vec<Change>,
    others: &BTreeSet<String>,
) -> Result<Found, Error> {
    let mut found = Found::default();
    match pins.filter(|pins| pins.exist()).map(vips) {
        None => found.unknown.push(format!(
            "VIP addresses on {LOOPBACK} and local routes: no pinned map lists those of this \
             instance; see `ip address show {LOOPBACK}` and `ip route show table local`"
        )),
        Some(Err(error)) => {
            found.unknown.push(format!("VIP addresses on {LOOPBACK} and local routes: {error}"))
        }
        Some(Ok(vips)) => find_vips(netlink, pins, &vips, others, &mut found).await?,
    }
    for tunnel in tunnels {
        match others.first() {
            None => found.changes.push(tunnel),
            Some(other) => found.left.push((tunnel, format!("the instance {other} may use it"))),
        }
    }
    for interface in interfaces(filters).values() {
        for (setting, value) in BACKEND_SETTINGS {
            let Ok(key) = Sysctl::ipv4_interface(interface, setting) else { continue };
            if key.read().is_ok_and(|found| found == value) {
                found.unknown.push(format!(
                    "{key} is {value}: Sluice may have set it, and its value before is not known"
                ));
            }
        }
    }
    Ok(found)
}

/// Adds the changes that made VIPs local. An address that is not on the loopback interface is left
/// out; undoing the others finds out whether a route exists.
async fn find_vips(
    netlink: &Netlink,
    pins: Option<&Pins>,
    own: &[IpNet],
    others: &BTreeSet<String>,
    found: &mut Found,
) -> Result<(), Error> {
    let lo = netlink.interface(LOOPBACK).await?.index;
    let present: HashSet<_> = netlink.addresses().await?.into_iter().collect();
    let mut shared = BTreeMap::new();
    for other in others {
        let listed = pins.map(|pins| vips(&pins.of_instance(other)));
        shared.extend(listed.and_then(Result::ok).into_iter().flatten().map(|vip| (vip, other)));
    }
    for vip in own {
        if is_address(vip) && !present.contains(&(lo, vip.addr(), vip.prefix_len())) {
            continue;
        }
        match shared.get(vip) {
            None => found.changes.push(vip_change(lo, *vip)),
            Some(other) => found
                .left
                .push((vip_change(lo, *vip), format!("the instance {other} uses it, too"))),
        }
    }
    Ok(())
}

/// The VIP addresses and prefixes in the pinned maps of a backend.
fn vips(pins: &Pins) -> Result<Vec<IpNet>, bpf::Error> {
    let entries = BackendMaps::open(pins)?.entries(VIP_PREFIXES)?;
    Ok(entries.into_keys().map(key_prefix).collect())
}

/// The interfaces of filters: index and name.
fn interfaces(filters: &[Change]) -> BTreeMap<u32, String> {
    let places = filters.iter().filter_map(|change| match change {
        Change::Filter { index, interface, .. } => Some((*index, interface.clone())),
        _ => None,
    });
    places.collect()
}

/// The interfaces of filters that the journal does not list, without those whose qdisc a journal
/// lists.
pub(crate) fn interfaces_of_unlisted(
    journal: &Journal,
    filters: &[Change],
) -> BTreeMap<u32, String> {
    let others = journal.others();
    let mut found = interfaces(
        &filters.iter().filter(|filter| !journal.contains(filter)).cloned().collect::<Vec<_>>(),
    );
    found.retain(|index, interface| {
        let qdisc = Change::Clsact { interface: interface.clone(), index: *index };
        !journal.contains(&qdisc) && others.holder(&qdisc).is_none()
    });
    found
}

/// Describes the qdiscs of these interfaces that have no filters.
pub(crate) async fn unused_qdiscs(
    netlink: &Netlink,
    interfaces: &BTreeMap<u32, String>,
) -> Result<Vec<String>, Error> {
    let mut unused = Vec::new();
    for (index, interface) in interfaces {
        let mut filters = netlink.filters(*index, Direction::Ingress).await?;
        filters.extend(netlink.filters(*index, Direction::Egress).await?);
        if filters.is_empty() && netlink.clsact(*index).await? == Some(Clsact::Existed) {
            unused.push(format!(
                "the clsact qdisc on {interface} has no filters: whether it was there before Sluice \
                 is not known; if nothing needs it, `tc qdisc del dev {interface} clsact`"
            ));
        }
    }
    Ok(unused)
}

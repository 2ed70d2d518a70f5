//! The changes that a journal lists.

use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::kernel::host::sysctl::{BACKEND_SETTINGS, Sysctl};
use crate::kernel::netlink::{Direction, TunnelKind};

/// The start of the names of all filters and tunnel devices.
const NAME_PREFIX: &str = "sluice";

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A clsact qdisc was added.
    Clsact {
        /// The interface's name.
        interface: String,
        /// The interface's index: unchanged by a rename, different after the interface was created
        /// anew.
        index: u32,
    },
    /// A BPF filter was added to an interface.
    Filter {
        /// The interface's name.
        interface: String,
        /// The interface's index.
        index: u32,
        /// The direction.
        direction: Direction,
        /// The filter's name.
        name: String,
        /// The filter's priority.
        priority: u16,
    },
    /// A program was attached to the XDP hook of an interface, by a pinned link.
    XdpLink {
        /// The interface's name.
        interface: String,
        /// The interface's index.
        index: u32,
        /// The link's pin.
        pin: PathBuf,
    },
    /// A program was attached to a hook of a cgroup, by a pinned link.
    CgroupLink {
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// The cgroup's ID.
        id: u64,
        /// The link's pin.
        pin: PathBuf,
    },
    /// An address was added.
    Address {
        /// The interface's name.
        interface: String,
        /// The interface's index.
        index: u32,
        /// The address.
        address: IpAddr,
        /// The prefix length, in bits.
        prefix_len: u8,
    },
    /// A prefix was made local to the host, by a route of type local to `lo`.
    LocalRoute {
        /// The prefix.
        prefix: IpNet,
    },
    /// A tunnel device was created.
    Link {
        /// Its name.
        name: String,
        /// Its kind.
        kind: TunnelKind,
        /// Its local address.
        local: IpAddr,
    },
    /// A sysctl was set.
    Sysctl {
        /// Which.
        key: Sysctl,
        /// The value before Sluice set it for the first time.
        old: String,
        /// The value that Sluice set.
        new: String,
    },
}

impl Change {
    /// Whether both changes concern the same object; for a sysctl, whatever the values.
    pub(super) fn same_object(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    /// The change as a key: equal for changes of the same object. An interface is identified by its
    /// index, because it may have been renamed.
    pub(in crate::kernel::host) fn key(&self) -> Self {
        let mut key = self.clone();
        match &mut key {
            Self::Clsact { interface, .. }
            | Self::Filter { interface, .. }
            | Self::XdpLink { interface, .. }
            | Self::Address { interface, .. } => interface.clear(),
            Self::Sysctl { old, new, .. } => {
                old.clear();
                new.clear();
            }
            Self::CgroupLink { .. } | Self::LocalRoute { .. } | Self::Link { .. } => {}
        }
        key
    }

    /// Checks that Sluice makes such a change; the error is the unexpected value. Undoing another
    /// change would alter what is not Sluice's.
    pub(super) fn check(&self, instance: &str) -> Result<(), String> {
        let is_known = match self {
            Self::Clsact { .. } | Self::LocalRoute { .. } => true,
            Self::Filter { name, .. } | Self::Link { name, .. } => name.starts_with(NAME_PREFIX),
            Self::XdpLink { index, pin, .. } => is_pin(pin, instance, &format!("xdp-{index}")),
            Self::CgroupLink { id, pin, .. } => {
                let name = pin.file_name().unwrap_or_default().to_string_lossy();
                let hook = name.strip_prefix("cgroup-").and_then(|rest| rest.split_once('-'));
                hook.is_some_and(|(hook, found)| is_number(hook) && *found == id.to_string())
                    && is_pin(pin, instance, &name)
            }
            Self::Address { address, prefix_len, .. } => {
                *prefix_len == if address.is_ipv4() { 32 } else { 128 }
            }
            Self::Sysctl { key, old, new } => is_setting(key) && is_number(old) && is_number(new),
        };
        match self {
            _ if is_known => Ok(()),
            Self::XdpLink { pin, .. } | Self::CgroupLink { pin, .. } => {
                Err(format!("{self} with the pin {}", pin.display()))
            }
            _ => Err(self.to_string()),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clsact { interface, .. } => write!(f, "clsact qdisc on {interface}"),
            Self::Filter { interface, direction, name, priority, .. } => {
                write!(f, "filter {name} on {interface} {direction}, priority {priority}")
            }
            Self::XdpLink { interface, .. } => write!(f, "XDP link on {interface}"),
            Self::CgroupLink { cgroup, .. } => write!(f, "cgroup link on {}", cgroup.display()),
            Self::Address { interface, address, prefix_len, .. } => {
                write!(f, "address {address}/{prefix_len} on {interface}")
            }
            Self::LocalRoute { prefix } => write!(f, "local route to {prefix}"),
            Self::Link { name, kind, local } => write!(f, "{kind} device {name} for {local}"),
            Self::Sysctl { key, old, new } => write!(f, "{key} set from {old} to {new}"),
        }
    }
}

/// Whether a path is that of a pin of the instance, with this file name.
fn is_pin(pin: &Path, instance: &str, name: &str) -> bool {
    let mut components = pin.components();
    let is_plain = components.next() == Some(Component::RootDir)
        && components.clone().all(|component| matches!(component, Component::Normal(_)));
    let names: Vec<_> = components.collect();
    let is_home = |pair: &[Component<'_>]| {
        pair[0].as_os_str() == NAME_PREFIX && pair[1].as_os_str() == instance
    };
    is_plain && pin.file_name().is_some_and(|found| found == name) && names.windows(2).any(is_home)
}

/// Whether a sysctl is one that a backend sets.
fn is_setting(key: &Sysctl) -> bool {
    let interface_setting = key.as_str().strip_prefix("net/ipv4/conf/");
    interface_setting
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, setting)| BACKEND_SETTINGS.iter().any(|(name, _)| *name == setting))
}

fn is_number(text: &str) -> bool {
    text.parse::<i64>().is_ok()
}

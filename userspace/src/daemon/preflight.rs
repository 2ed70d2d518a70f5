//! Checks of the host before anything is changed.

use std::io;
use std::path::Path;

use anyhow::{anyhow, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_control::config::{AddressPolicy, Config, UnlistedPolicy};

use super::presence::InterfaceList;
use crate::error::CliError;
use crate::kernel::bpf;
use crate::kernel::netlink::{self, Netlink};

/// The oldest supported kernel: the first with lookup tables of different sizes in one map of maps
/// (`BPF_F_INNER_MAP`).
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// The minimum number of descriptors of a daemon: its maps, and the inner maps of 256 services,
/// which it opens at a time when maps are resized.
const MIN_DESCRIPTORS: u64 = 512;

/// Capabilities: number (`linux/capability.h`) and name.
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");

/// Checks the requirements of a daemon: number of descriptors, kernel version, capabilities of this
/// process, kernel features.
pub fn check() -> Result<(), CliError> {
    check_descriptors(raise_descriptor_limit().map_err(CliError::operation)?)
        .map_err(CliError::Operation)?;
    let system =
        nix::sys::utsname::uname().map_err(io::Error::from).map_err(CliError::operation)?;
    let release = system.release().to_string_lossy();
    check_kernel(&release).map_err(CliError::Operation)?;
    check_undoing()?;
    match bpf::missing_feature().map_err(CliError::operation)? {
        Some(feature) => Err(CliError::Operation(anyhow!(
            "this kernel is {release} and lacks {feature}; use one that has it, such as a stock \
             kernel of {} or later",
            oldest_kernel()
        ))),
        None => Ok(()),
    }
}

/// Raises the soft limit of descriptors to the hard limit, and returns it. Sluice does not use
/// `select(2)`, for which the soft limit exists.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

fn check_descriptors(limit: u64) -> anyhow::Result<()> {
    if limit < MIN_DESCRIPTORS {
        bail!(
            "the limit of open files is {limit}, and a daemon needs {MIN_DESCRIPTORS}; raise it \
             (`ulimit -Hn`, or LimitNOFILE of its service)"
        );
    }
    Ok(())
}

/// Checks the capabilities to change the host, which are also those to undo changes.
pub fn check_undoing() -> Result<(), CliError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(CliError::operation)?;
    check_capabilities(&status, &[NET_ADMIN, SYS_ADMIN]).map_err(CliError::Operation)
}

/// Checks the capabilities to read the maps.
pub fn check_reading() -> Result<(), CliError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(CliError::operation)?;
    check_capabilities(&status, &[SYS_ADMIN]).map_err(CliError::Operation)
}

/// Checks that interfaces have Ethernet headers, if they exist; otherwise they are bad input.
pub(super) async fn check_interfaces(
    netlink: &Netlink,
    names: &[String],
    list: &InterfaceList,
) -> Result<(), CliError> {
    for (index, name) in names.iter().enumerate() {
        let interface = match netlink.interface(name).await {
            Err(netlink::Error::NoInterface { .. }) => continue,
            found => found.map_err(CliError::operation)?,
        };
        if !interface.ethernet {
            return Err(CliError::bad_input(anyhow!(
                "{}: the interface {name} has no Ethernet header, which Sluice needs; name an \
                 Ethernet interface",
                list.place(index)
            )));
        }
    }
    Ok(())
}

/// Checks that packets to ports without a service are not dropped on an address of this host, which
/// would cut off its other services, such as SSH. Such an address is bad input.
pub(super) async fn check_own_addresses(
    netlink: &Netlink,
    config: &Config,
    file: &Path,
) -> Result<(), CliError> {
    let drops = |policy: &&AddressPolicy| {
        policy.unlisted() == UnlistedPolicy::Drop && !policy.allow_host_address()
    };
    if !config.addresses().iter().any(|policy| drops(&policy)) {
        return Ok(());
    }
    let own = netlink.local_addresses().await.map_err(CliError::operation)?;
    for (index, policy) in config.addresses().iter().enumerate().filter(|(_, policy)| drops(policy))
    {
        if let Some((_, address)) =
            own.iter().find(|(_, address)| policy.prefix().contains(address))
        {
            return Err(CliError::bad_input(anyhow!(
                "{}: addresses[{index}].unlisted: this host itself has the address {address}, and dropping its unlisted ports would cut off \
                 other services there, such as SSH; remove the address from the host, or write \"allow_host_address\": true",
                file.display()
            )));
        }
    }
    Ok(())
}

fn oldest_kernel() -> String {
    let (major, minor) = OLDEST_KERNEL;
    format!("Linux {major}.{minor}")
}

fn check_kernel(release: &str) -> anyhow::Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("cannot read this kernel's version from {release:?}");
    };
    if (major, minor) < OLDEST_KERNEL {
        bail!(
            "this kernel is {release}; Sluice needs {} or later (lookup tables of different sizes \
             in one map: BPF_F_INNER_MAP)",
            oldest_kernel()
        );
    }
    Ok(())
}

/// Checks capabilities in the text of `/proc/self/status`. `CAP_SYS_ADMIN` includes `CAP_BPF`, and
/// is required to mount the BPF file system and to open maps by ID.
fn check_capabilities(status: &str, needed: &[(u32, &str)]) -> anyhow::Result<()> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| anyhow!("cannot read this process's capabilities from /proc/self/status"))?;
    for (bit, name) in needed {
        if effective & (1 << bit) == 0 {
            bail!(
                "this process lacks {name}; run it as root, or give its service {name} \
                 (AmbientCapabilities)"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [(u32, &str); 2] = [NET_ADMIN, SYS_ADMIN];

    #[test]
    fn an_old_kernel_is_refused_with_its_missing_feature() {
        for release in ["5.9.16-generic", "4.19.0-27-amd64", "3.10.0"] {
            let error = check_kernel(release).unwrap_err().to_string();
            assert!(
                error.contains(release)
                    && error.contains("5.10")
                    && error.contains("BPF_F_INNER_MAP"),
                "{error}"
            );
        }
        for release in ["5.10.0-34-cloud-amd64", "6.1.0", "6.18.44-fc-v669", "7.3+deb14"] {
            check_kernel(release).unwrap();
        }
        assert!(check_kernel("custom").is_err());
    }

    #[test]
    fn the_error_contains_a_missing_capability() {
        assert!(check_capabilities("Name:\tsluice\nCapEff:\t000001ffffffffff\n", &BOTH).is_ok());
        let without_net_admin = format!("CapEff:\t{:016x}\n", !(1_u64 << 12));
        assert!(
            check_capabilities(&without_net_admin, &BOTH)
                .unwrap_err()
                .to_string()
                .contains("CAP_NET_ADMIN")
        );
        assert!(
            check_capabilities("CapEff:\t0000000000001000\n", &BOTH)
                .unwrap_err()
                .to_string()
                .contains("CAP_SYS_ADMIN")
        );
        assert!(check_capabilities("Name:\tsluice\n", &BOTH).is_err());
    }
}

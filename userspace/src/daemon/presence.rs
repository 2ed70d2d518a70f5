//! Interfaces and addresses that a configuration names and this host may lack.
//!
//! A first start waits for them. Later they are warnings: the existing interfaces keep handling
//! packets, and every change of the host is another attempt. Only a reload that names a missing one
//! anew is refused.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::{info, warn};

use super::service_manager;
use crate::error::CliError;
use crate::kernel::netlink::{Error, Netlink};

/// The time between two looks at the host.
const POLL: Duration = Duration::from_millis(250);

/// The time that the service manager grants for the start itself, after the wait.
const START: Duration = Duration::from_secs(90);

/// The place that names a daemon's interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InterfaceList {
    /// The field `interfaces` of this configuration file.
    File(PathBuf),
    /// An option of the command line.
    Option(&'static str),
}

impl InterfaceList {
    /// The place of the receiving interfaces: the option `--interface` if it is given, or the file.
    pub(super) fn of(arguments: &[String], file: &Path) -> Self {
        match arguments {
            [] => Self::File(file.to_owned()),
            _ => Self::Option("--interface"),
        }
    }

    /// The place of one of the interfaces, for errors.
    pub(super) fn place(&self, index: usize) -> String {
        match self {
            Self::File(file) => format!("{}: interfaces[{index}]", file.display()),
            Self::Option(option) => (*option).to_owned(),
        }
    }
}

/// An interface or address that this host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// Such as "interface eth0".
    pub(super) what: String,
    /// The error, with the place that names it and the remedy.
    pub(super) error: String,
}

/// The text of an interface in [`Missing::what`].
pub(super) fn interface(name: &str) -> String {
    format!("interface {name}")
}

/// The text of an address in [`Missing::what`].
pub(super) fn address(address: IpAddr) -> String {
    format!("address {address}")
}

/// The names of all, such as "interface eth0, address 10.0.0.1".
pub(super) fn list(missing: &[Missing]) -> String {
    let names: Vec<_> = missing.iter().map(|missing| missing.what.as_str()).collect();
    names.join(", ")
}

/// The interfaces that do not exist.
pub(super) async fn interfaces(
    netlink: &Netlink,
    names: &[String],
    list: &InterfaceList,
) -> Result<Vec<Missing>, CliError> {
    let mut missing = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match netlink.interface(name).await {
            Ok(_) => {}
            Err(error @ Error::NoInterface { .. }) => {
                let error = format!("{}: {error}", list.place(index));
                missing.push(Missing { what: interface(name), error });
            }
            Err(error) => return Err(CliError::operation(error)),
        }
    }
    Ok(missing)
}

/// The addresses that are not among `own`; each with the place that names it.
pub(super) fn addresses(
    own: &[IpAddr],
    wanted: impl Iterator<Item = (IpAddr, String)>,
) -> Vec<Missing> {
    let missing = wanted.filter(|(wanted, _)| !own.contains(wanted));
    let describe = |(missing, place)| Missing {
        what: address(missing),
        error: format!(
            "{place}: {missing} is not an address of this host; add it to the host, or name another"
        ),
    };
    missing.map(describe).collect()
}

/// Refuses a reload that names an interface or address anew which this host lacks: `new` are the
/// missing ones of the read configuration, `old` those of the configuration in force.
pub(super) fn check_reload(new: &[Missing], old: &[Missing]) -> Result<(), CliError> {
    let is_known = |missing: &Missing| old.iter().any(|known| known.what == missing.what);
    match new.iter().find(|missing| !is_known(missing)) {
        Some(missing) => Err(CliError::bad_input(anyhow!("{}", missing.error))),
        None => Ok(()),
    }
}

/// Waits until `look` finds nothing missing. After the timeout, a missing interface or address is
/// bad input.
pub(super) async fn wait<F: Future<Output = Result<Vec<Missing>, CliError>>>(
    timeout: Duration,
    look: impl Fn() -> F,
) -> Result<(), CliError> {
    let start = Instant::now();
    let mut logged = String::new();
    loop {
        let missing = look().await?;
        let Some(first) = missing.first() else { break };
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(CliError::bad_input(anyhow!("{}", first.error)));
        }
        let names = list(&missing);
        if names != logged {
            warn!(missing = %names, left_seconds = left.as_secs(), "waiting for this host");
            let microseconds = u32::try_from((left + START).as_micros()).unwrap_or(u32::MAX);
            service_manager::notify(&[
                NotifyState::ExtendTimeoutUsec(microseconds),
                NotifyState::Status(&format!("waiting for {names}")),
            ]);
            logged = names;
        }
        sleep(POLL.min(left)).await;
    }
    if !logged.is_empty() {
        info!(waited_seconds = start.elapsed().as_secs(), "all interfaces and addresses exist");
    }
    Ok(())
}

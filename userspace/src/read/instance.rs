//! Finds an instance on this host.

use anyhow::anyhow;

use super::elsewhere;
use super::interfaces::interfaces;
use crate::daemon::preflight;
use crate::error::CliError;
use crate::kernel::bpf::{BackendMaps, BalancerMaps, Error};
use crate::kernel::netlink::Netlink;
use crate::lock::Lock;
use crate::role::Role;
use crate::{roles, runtime};

/// Opens the maps of an instance, of each role that has any.
pub(crate) fn open(
    instance: &str,
) -> Result<(Option<BalancerMaps>, Option<BackendMaps>), CliError> {
    preflight::check_reading()?;
    let pins = |role| elsewhere::find_pins(instance, role);
    let failed = |role| move |error| cannot_open(instance, role, error);
    let lb = pins(Role::Lb)?
        .map(|pins| BalancerMaps::open(&pins))
        .transpose()
        .map_err(failed(Role::Lb))?;
    let backend = pins(Role::Backend)?
        .map(|pins| BackendMaps::open(&pins))
        .transpose()
        .map_err(failed(Role::Backend))?;
    Ok((lb, backend))
}

/// The error for an instance without visible pins.
pub(crate) fn absent(instance: &str) -> CliError {
    let mut roles = roles::ROLES.iter().map(|spec| spec.role);
    if let Some(role) = roles.find(|role| Lock::state_exists(instance, *role)) {
        let daemon = match Lock::holder(instance, role) {
            Some(process) => format!("its daemon runs (process {process})"),
            None => "no daemon runs".to_owned(),
        };
        return CliError::operation(anyhow!(
            "the instance {instance:?} has no pins here, although it has a journal ({role}), and \
             {daemon}: they were removed, or were in another mount namespace that has ended; packets \
             are handled as long as the program is attached; start the daemon again, or run `sluice \
             down --instance {instance}`"
        ));
    }
    CliError::operation(anyhow!(
        "the instance {instance:?} is not on this host; start `sluice lb` or `sluice backend`, or \
         name another instance with --instance"
    ))
}

/// The error for maps that cannot be opened. For another layout version, it describes the state.
fn cannot_open(instance: &str, role: Role, error: Error) -> CliError {
    if !matches!(error, Error::Layout { .. }) {
        return CliError::operation(error);
    }
    let attached = runtime::block_on(async {
        let netlink = Netlink::connect().map_err(CliError::operation)?;
        let found = interfaces(&netlink, roles::spec(role), instance, &[], None).await?;
        Ok(found.into_iter().map(|interface| interface.name).collect::<Vec<_>>().join(", "))
    });
    let program = match attached {
        Ok(names) if names.is_empty() => "; its program is not attached".to_owned(),
        Ok(names) => {
            format!("; its program is attached to {names} and handles packets as before")
        }
        // For example in another network namespace.
        Err(_) => String::new(),
    };
    let daemon = Lock::holder(instance, role)
        .map_or_else(String::new, |process| format!("; its daemon runs (process {process})"));
    CliError::operation(anyhow!("{error}{program}{daemon}"))
}

//! Finds an instance on this host.

use anyhow::anyhow;

use super::elsewhere;
use crate::daemon::lock::Lock;
use crate::daemon::{preflight, roles};
use crate::error::CliError;
use crate::kernel::bpf::{BackendMaps, BalancerMaps};
use crate::role::Role;

/// Opens the maps of an instance, of each role that has any.
pub(crate) fn open(
    instance: &str,
) -> Result<(Option<BalancerMaps>, Option<BackendMaps>), CliError> {
    preflight::check_reading()?;
    let pins = |role| elsewhere::find_pins(instance, role);
    let lb = pins(Role::Lb)?
        .map(|pins| BalancerMaps::open(&pins))
        .transpose()
        .map_err(CliError::operation)?;
    let backend = pins(Role::Backend)?
        .map(|pins| BackendMaps::open(&pins))
        .transpose()
        .map_err(CliError::operation)?;
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

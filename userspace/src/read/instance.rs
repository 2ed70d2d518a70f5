//! Finds an instance on this host.

use anyhow::anyhow;

use crate::daemon::preflight;
use crate::error::CliError;
use crate::kernel::bpf::{BackendMaps, BalancerMaps, Pins};
use crate::role::Role;

/// Opens the maps of an instance, of each role that has any.
pub(crate) fn open(
    instance: &str,
) -> Result<(Option<BalancerMaps>, Option<BackendMaps>), CliError> {
    preflight::check_reading()?;
    let pins = |role| {
        let found = Pins::find(instance, role).map_err(CliError::operation)?;
        Ok::<_, CliError>(found.filter(Pins::exist))
    };
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

/// The error for an instance that is not on this host.
pub(crate) fn absent(instance: &str) -> CliError {
    CliError::operation(anyhow!(
        "the instance {instance:?} is not on this host; start `sluice lb` or `sluice backend`, or \
         name another instance with --instance"
    ))
}

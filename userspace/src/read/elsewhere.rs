//! Detects an instance in another namespace, of mounts or of the network.

use std::path::Path;

use anyhow::anyhow;

use crate::error::CliError;
use crate::kernel::bpf::Pins;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::kernel::namespace::NetworkNamespace;
use crate::lock::Lock;
use crate::role::Role;

/// The pins of a role of an instance, if it has any. Fails if they are only in the mount namespace
/// of its daemon.
pub(crate) fn find_pins(instance: &str, role: Role) -> Result<Option<Pins>, CliError> {
    let found = Pins::find(instance, role).map_err(CliError::operation)?.filter(Pins::exist);
    if found.is_none()
        && let Some(process) = Lock::holder(instance, role)
        && Pins::in_mounts_of(instance, role, process).is_some_and(|pins| pins.exist())
    {
        return Err(CliError::operation(anyhow!(
            "the pins of the instance {instance:?} are in another mount namespace, that of its \
             daemon `sluice {role}` (process {process}); run the command there, for example `nsenter \
             --target {process} --mount --net sluice status --instance {instance}`"
        )));
    }
    Ok(found)
}

/// Fails if a role of an instance is in another network namespace, where its interfaces are.
pub(crate) fn check_namespace(instance: &str, role: Role) -> Result<(), CliError> {
    let recorded = Journal::namespace_of(Path::new(STATE_DIRECTORY), instance, role);
    let Some(recorded) = recorded else { return Ok(()) };
    if NetworkNamespace::current().map_err(CliError::operation)? == recorded {
        return Ok(());
    }
    let remedy = match recorded.enter_command() {
        Some(enter) => {
            format!("run the command there: `{enter} sluice status --instance {instance}`")
        }
        None => "no name in /run/netns and no process has it, so that it may be gone; `sluice \
                 counters` works here"
            .to_owned(),
    };
    Err(CliError::operation(anyhow!(
        "`sluice {role}` of the instance {instance:?} is in another network namespace, {recorded}; \
         {remedy}"
    )))
}

//! The control socket of a daemon: `sluice reload` and `sluice status` send requests to it.
//!
//! It is a unix socket in the state directory, which only root can enter. A connection carries one
//! request and one response, each a line of JSON ([`protocol`]).

pub(crate) mod client;
pub(crate) mod protocol;
pub(crate) mod server;

use std::path::{Path, PathBuf};

use crate::kernel::host::journal::STATE_DIRECTORY;
use crate::role::Role;

/// The path of the control socket of a role of an instance.
pub(crate) fn socket_path(instance: &str, role: Role) -> PathBuf {
    Path::new(STATE_DIRECTORY).join(instance).join(format!("{role}.sock"))
}

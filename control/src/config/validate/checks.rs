//! Checks that several parts of the document share.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::capacities::{Capacities, Limit};
use crate::config::address::unusable;
use crate::config::model::AclFiles;
use crate::config::problem::Problem;

/// The files of a pair of source ACLs. `prefix` is the path of the object with the fields: empty,
/// or with a dot at its end.
pub(super) fn acl_files(
    deny: Option<PathBuf>,
    allow: Option<PathBuf>,
    directory: &Path,
    prefix: &str,
) -> Result<AclFiles, Problem> {
    let path = |path: Option<PathBuf>, field: &str| match path {
        Some(path) if path.as_os_str().is_empty() => Err(Problem::new(
            format!("{prefix}{field}"),
            "empty; write a path such as \"/etc/sluice/sources.txt\", or remove the field",
        )),
        path => Ok(path.map(|path| directory.join(path))),
    };
    Ok(AclFiles { deny: path(deny, "deny_file")?, allow: path(allow, "allow_file")? })
}

/// Refuses a count above the capacity of a limit.
pub(super) fn check_limit(count: usize, limit: Limit, capacity: u32) -> Result<(), Problem> {
    if count <= capacity as usize {
        return Ok(());
    }
    let what = limit.name();
    let most = Capacities::MAX.get(limit);
    // VIPs are fields of services.
    let location = if limit == Limit::Vips { "services" } else { what };
    let message = if capacity == most {
        format!("{count} {what} are more than an instance can have, {most}; remove some")
    } else {
        format!(
            "{count} {what} are more than limits.{what}, {capacity}; raise it (to at most {most}) or remove some"
        )
    };
    Err(Problem::new(location, message))
}

/// Refuses an address to which packets cannot be routed. `role` completes "cannot be".
pub(super) fn check_usable(
    address: IpAddr,
    location: impl Fn() -> String,
    role: &str,
) -> Result<(), Problem> {
    match unusable(address) {
        Some(kind) => Err(Problem::new(
            location(),
            format!(
                "{address} is {kind}, which cannot be {role}; use a unicast address of the host"
            ),
        )),
        None => Ok(()),
    }
}

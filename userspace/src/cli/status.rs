//! `sluice status`: whether an instance forwards, its daemons, services, backends and memory.

use anyhow::anyhow;

use crate::args::ShowArgs;
use crate::cli::output::{print, print_json};
use crate::error::CliError;

mod memory;
mod model;
mod text;

pub use memory::MemoryStatus;
pub use model::{BackendEntry, BackendStatus, LbStatus, ServiceStatus, Status};

/// Runs `sluice status`. Fails if a role does not handle packets.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let status = model::read(&args.instance)?;
    if args.json {
        print_json(&status)?;
    } else {
        print(&text::text(&status))?;
    }
    match failure(&status) {
        Some(failure) => Err(CliError::Operation(anyhow!(failure))),
        None => Ok(()),
    }
}

/// Why packets are not handled.
fn failure(status: &Status) -> Option<String> {
    let lb = status
        .lb
        .as_ref()
        .filter(|lb| !lb.forwarding)
        .map(|lb| format!("the balancer does not forward {}", text::missing(&lb.interfaces)));
    let backend = status.backend.as_ref().filter(|backend| !backend.decapsulating).map(|backend| {
        format!("the backend does not decapsulate{}", text::not_decapsulating(backend))
    });
    let failures: Vec<_> = lb.into_iter().chain(backend).collect();
    (!failures.is_empty()).then(|| failures.join("; "))
}

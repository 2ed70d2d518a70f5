//! `sluice status`: whether an instance forwards, its daemons, services, backends and memory.

use anyhow::anyhow;

use crate::args::ShowArgs;
use crate::cli::output::{print, print_json};
use crate::error::CliError;

mod collect;
mod memory;
mod model;
mod notices;
mod text;

pub use memory::MemoryStatus;
pub use model::{BackendEntry, BackendStatus, LbStatus, ServiceStatus, Status};

/// Runs `sluice status`. Fails if a role does not handle packets, or loses some of them.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let status = collect::read(&args.instance)?;
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

/// Why packets are not handled, or some of them are lost.
fn failure(status: &Status) -> Option<String> {
    let lb = status.lb.as_ref().and_then(|lb| match lb.forwarding {
        true => problem("the balancer forwards with problems", lb.problems()),
        false => Some(format!("the balancer does not forward{}", text::not_forwarding(lb))),
    });
    let backend = status.backend.as_ref().and_then(|backend| match backend.decapsulating {
        true => problem("the backend decapsulates with problems", backend.problems()),
        false => {
            Some(format!("the backend does not decapsulate{}", text::not_decapsulating(backend)))
        }
    });
    let failures: Vec<_> = lb.into_iter().chain(backend).collect();
    (!failures.is_empty()).then(|| failures.join("; "))
}

/// The first problem, and the number of others.
fn problem<'a>(what: &str, mut problems: impl Iterator<Item = &'a str>) -> Option<String> {
    let first = problems.next()?;
    let more = match problems.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(format!("{what}: {first}{more}"))
}

//! `sluice capture`: what the balancer forwards and drops, packet by packet, with the reasons.
//!
//! The program in the kernel looks at one word for each packet, which says until when somebody
//! captures. This command pushes that moment ahead of itself while it runs. It replaces no program
//! and asks no daemon, so it works while one reloads and while none runs, and when this command
//! dies, by whatever signal, the moment passes and packets flow as before.

mod names;
mod output;

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::args::CaptureArgs;
use crate::daemon::signals::Signals;
use crate::daemon::{preflight, runtime};
use crate::error::CliError;
use crate::kernel::bpf;
use crate::read::instance;
use crate::role::Role;
use names::Names;
use output::Output;

/// How long the program captures after it was last told to.
const LEASE: Duration = Duration::from_secs(2);

/// How often it is told to, and names are looked up again.
const RENEWAL: Duration = Duration::from_millis(500);

/// Runs `sluice capture`.
///
/// # Errors
///
/// [`CliError::BadInput`] for a service that is not there, [`CliError::Operation`] when no balancer
/// of the instance is on this host, another capture of it runs, or the output takes no more.
pub(super) fn run(args: &CaptureArgs) -> Result<(), CliError> {
    preflight::check_reading()?;
    runtime::block_on(capture(args))
}

async fn capture(args: &CaptureArgs) -> Result<(), CliError> {
    let pins = bpf::Pins::find(&args.instance, Role::Lb)
        .map_err(CliError::operation)?
        .filter(bpf::Pins::exist);
    let pins = pins.ok_or_else(|| instance::absent(&args.instance))?;
    let mut names = Names::open(&pins)?;
    let mut selection = bpf::Selection {
        service: args.service.as_ref().map(|name| names.service_index(name)).transpose()?,
        one_in: if args.drops_only { 0 } else { args.sample },
        new_connections: args.new_connections,
        per_second: args.rate,
    };
    let mut capture = bpf::Capture::open(&pins).map_err(CliError::operation)?;
    let mut signals = Signals::listen()?;
    let mut output = Output::open(args.out.as_deref())?;
    let ready = capture.readable().map_err(CliError::operation)?;

    capture.select(&selection).map_err(CliError::operation)?;
    capture.renew(LEASE).map_err(CliError::operation)?;
    output.say("capturing; Ctrl-C ends it");
    let end = args.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gone = false;
    while !gone && !output.is_done(args.count) {
        tokio::select! {
            _ = signals.next() => break,
            () = until(end) => break,
            guard = ready.readable() => {
                // Before the events are read: those that come meanwhile wake us again.
                guard.map_err(CliError::operation)?.clear_ready();
            }
            _ = renewal.tick() => {
                capture.renew(LEASE).map_err(CliError::operation)?;
                // A reload may have given indices to others.
                match Names::open(&pins) {
                    Ok(fresh) => names = fresh,
                    Err(_) => gone = true,
                }
                if let Some(name) = &args.service {
                    let index = names.service_index(name).unwrap_or(u32::MAX);
                    if selection.service != Some(index) {
                        selection.service = Some(index);
                        capture.select(&selection).map_err(CliError::operation)?;
                    }
                }
            }
        }
        read(&mut capture, &mut output, &names, args.count)?;
    }
    capture.stop().map_err(CliError::operation)?;
    read(&mut capture, &mut output, &names, args.count)?;
    let (suppressed, lost) = capture.missed().map_err(CliError::operation)?;
    if gone {
        output.say(&format!("the instance {:?} was taken down", args.instance));
    }
    output.say(&format!(
        "captured {}, lost in the ring buffer {lost}, suppressed by the rate limit {suppressed}",
        output.written()
    ));
    Ok(())
}

/// Reads all events that are there, as far as more are wanted.
fn read(
    capture: &mut bpf::Capture,
    output: &mut Output,
    names: &Names,
    count: Option<u64>,
) -> Result<(), CliError> {
    let clock = output::Clock::read()?;
    while !output.is_done(count) {
        let Some(event) = capture.next_event() else { break };
        output.write(&event, names, &clock)?;
    }
    output.flush()
}

/// Waits until a moment, or for ever.
async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

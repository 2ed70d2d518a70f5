//! `sluice capture`: packets that the balancer forwards or drops, with the reasons.
//!
//! The program reads one word per packet: the time until which it captures. This command extends
//! that time while it runs. No program is replaced and no daemon is involved, so a capture works
//! while a daemon reloads and without a daemon. If this command is killed, the capture ends when
//! the time has passed.

mod names;
mod output;

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::args::CaptureArgs;
use crate::daemon::preflight;
use crate::daemon::reloads::Reloads;
use crate::daemon::signals::Signals;
use crate::error::CliError;
use crate::kernel::bpf;
use crate::read::{elsewhere, instance};
use crate::role::Role;
use crate::runtime;
use names::EventNames;
use output::Output;

/// The time by which each renewal extends the capture.
const LEASE: Duration = Duration::from_secs(2);

/// The period of renewals, and of reading names again.
const RENEWAL: Duration = Duration::from_millis(500);

/// Runs `sluice capture`. Fails with [`CliError::BadInput`] if the service does not exist, and with
/// [`CliError::Operation`] if another capture of the instance runs.
pub(super) fn run(args: &CaptureArgs) -> Result<(), CliError> {
    preflight::check_reading()?;
    runtime::block_on(capture(args))
}

async fn capture(args: &CaptureArgs) -> Result<(), CliError> {
    let pins = elsewhere::find_pins(&args.instance, Role::Lb)?;
    let pins = pins.ok_or_else(|| instance::absent(&args.instance))?;
    let mut names = EventNames::open(&pins)?;
    let mut selection = bpf::CaptureFilter {
        service: args.service.as_ref().map(|name| names.service_index(name)).transpose()?,
        one_in: if args.drops_only { 0 } else { args.sample },
        new_connections: args.new_connections,
        per_second: args.rate,
    };
    let mut capture = bpf::Capture::open(&pins).map_err(CliError::operation)?;
    // Opening a pipe waits for its reader. Until the signals are handled, they end the process.
    let mut output = Output::open(args.out.as_deref())?;
    let mut signals = Signals::listen(Reloads::default())?;
    let ready = capture.readable().map_err(CliError::operation)?;

    capture.select(&selection).map_err(CliError::operation)?;
    capture.renew(LEASE).map_err(CliError::operation)?;
    output.inform("capturing; stop with Ctrl-C");
    let end = args.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gone = false;
    while !gone && !output.is_done(args.count) {
        tokio::select! {
            _ = signals.next() => break,
            () = until(end) => break,
            guard = ready.readable() => {
                // Cleared before events are read, so that later ones are not missed.
                guard.map_err(CliError::operation)?.clear_ready();
            }
            _ = renewal.tick() => {
                capture.renew(LEASE).map_err(CliError::operation)?;
                // A reload may have reassigned indexes.
                match EventNames::open(&pins) {
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
        output.inform(&format!("the instance {:?} was taken down", args.instance));
    }
    output.inform(&format!(
        "captured {}, lost in the ring buffer {lost}, suppressed by the rate limit {suppressed}",
        output.written()
    ));
    Ok(())
}

/// Writes the events in the ring buffer, up to the wanted number.
fn read(
    capture: &mut bpf::Capture,
    output: &mut Output,
    names: &EventNames,
    count: Option<u64>,
) -> Result<(), CliError> {
    let clock = output::Clock::read()?;
    while !output.is_done(count) {
        let Some(event) = capture.next_event() else { break };
        output.write(&event, names, &clock)?;
    }
    output.flush()
}

/// Waits until a time, or forever without one.
async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

//! The policies for packets that exceed the underlay MTU once encapsulated: `reject`, `resegment`
//! and `jumbo`.

use anyhow::Result;

use super::transfer::BulkTransfer;
use crate::lab::capture::CaptureResult;
use crate::lab::config::OversizePolicy;
use crate::lab::instance::Lab;
use crate::lab::offload::enable_gso_and_gro;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{CLIENT_MTU, INTERFACE, IpVersion, LabHost, UNDERLAY_MTU};

/// Bytes of each transfer whose segments the balancers' kernels cut.
const KERNEL_SEGMENTED_BYTES: u64 = 1_000_000;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    // Not the first client: backends still cache its path MTU, so its segments would fit.
    let sender = lab.topology.last_client()?;
    for host in run.balancers().iter().chain(run.members()).chain([sender]) {
        lab.namespaces.within(host, || enable_gso_and_gro(INTERFACE))?;
    }
    for policy in OversizePolicy::ALL {
        check_policy(run, policy, sender)?;
    }
    run.set_oversize_policy(OversizePolicy::default())
}

/// Applies a policy and transfers large bodies, on an underlay of 1500 bytes or, for `jumbo`, 1600.
pub(super) fn check_policy(
    run: &mut LabRun<'_>,
    policy: OversizePolicy,
    sender: &LabHost,
) -> Result<()> {
    let jumbo = policy == OversizePolicy::Jumbo;
    run.set_balancer_mtu(if jumbo { UNDERLAY_MTU } else { CLIENT_MTU })?;
    run.set_oversize_policy(policy)?;
    run.reporter.info(match policy {
        OversizePolicy::Reject => {
            "reject: the balancer drops a packet that is too big and sends an ICMP error"
        }
        OversizePolicy::Resegment => {
            "resegment: GSO packets get smaller segments, which fit with the outer header"
        }
        OversizePolicy::Jumbo => "jumbo: the underlay MTU is 1600, so every packet fits",
    });
    for version in IpVersion::BOTH {
        transfer_gso_packets(run, policy, sender, version)?;
        if policy == OversizePolicy::Resegment {
            transfer_kernel_segmented(run, sender, version)?;
        }
    }
    Ok(())
}

/// GSO packets stay whole from end to end.
fn transfer_gso_packets(
    run: &mut LabRun<'_>,
    policy: OversizePolicy,
    sender: &LabHost,
    version: IpVersion,
) -> Result<()> {
    let lab = run.lab;
    flush_path_mtus(lab, sender)?;
    let errors_before = lab.too_big_errors_sent()?;
    let dropped_before = lab.reason("too_big")?;
    let transfer = BulkTransfer::run(run, sender, version, lab.scale.captured_bytes)?;
    let errors = lab.too_big_errors_sent()? - errors_before;
    let dropped = lab.reason("too_big")? - dropped_before;
    let resegmented = transfer.resegmented();
    let overhead = run.config.overhead(version);
    let count = resegmented.len();
    let too_big = |holds, expected| {
        Statement::measured(holds, "packets too big for the underlay", dropped, expected)
    };
    let sent = |holds, expected| {
        Statement::measured(holds, "ICMP errors sent to the client", errors, expected)
    };
    let cut =
        |holds, expected| Statement::measured(holds, "GSO packets resegmented", count, expected);
    let statements = match policy {
        OversizePolicy::Reject => vec![
            too_big(dropped > 0, "at least 1"),
            sent(errors > 0, "at least 1"),
            cut(count == 0, "0"),
        ],
        // Packets that are not GSO packets may also be too big; their sender gets an ICMP error.
        OversizePolicy::Resegment => {
            let other = resegmented.iter().filter(|gso| gso.size_in != gso.size_out + overhead);
            vec![
                cut(count > 0, "at least 1"),
                Statement::equal(
                    format!("GSO packets whose segments are not {overhead} bytes smaller"),
                    other.count(),
                    0,
                ),
            ]
        }
        OversizePolicy::Jumbo => vec![too_big(dropped == 0, "0"), cut(count == 0, "0")],
    };
    let label = format!("{}, {}", policy.name(), version.name());
    let observation =
        format!("; {dropped} too big, {errors} ICMP errors, {count} GSO packets resegmented");
    transfer.check(run, &label, statements, &observation);
    Ok(())
}

/// Without TX checksum offload the balancers' kernels segment GSO packets and compute checksums,
/// and the backends verify these.
fn transfer_kernel_segmented(
    run: &mut LabRun<'_>,
    sender: &LabHost,
    version: IpVersion,
) -> Result<()> {
    let lab = run.lab;
    flush_path_mtus(lab, sender)?;
    lab.set_tx_checksum(run.balancers(), false)?;
    let transfer = BulkTransfer::run(run, sender, version, KERNEL_SEGMENTED_BYTES)?;
    lab.set_tx_checksum(run.balancers(), true)?;
    let label = format!("resegment by the balancer's kernel, {}", version.name());
    let longest = transfer.balancers.iter().map(CaptureResult::longest).max();
    let (longest_in, longest_out) = longest.unwrap_or_default();
    let full = CLIENT_MTU as usize + 14;
    let statements = [
        Statement::measured(
            longest_in > full,
            "bytes of the longest packet that arrived at a balancer",
            longest_in,
            format!("above {full}"),
        ),
        Statement::equal("bytes of the longest packet that left it", longest_out, full),
    ];
    let observation =
        format!("; packets of up to {longest_in} bytes are cut to at most {longest_out}");
    transfer.check(run, &label, statements, &observation);
    Ok(())
}

/// Removes the path MTUs that a client has cached.
fn flush_path_mtus(lab: &Lab, sender: &LabHost) -> Result<()> {
    for family in ["-4", "-6"] {
        lab.namespaces.run(sender, "ip", &[family, "route", "flush", "cache"], "")?;
    }
    Ok(())
}

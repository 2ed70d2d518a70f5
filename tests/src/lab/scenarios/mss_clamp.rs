//! MSS clamping: the underlay MTU is that of the clients, and the backends lower the MSS in
//! SYN-ACKs so that segments fit with the outer header.

use anyhow::Result;

use super::transfer::BulkTransfer;
use crate::lab::offload::enable_gso_and_gro;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{CLIENT_MTU, INTERFACE, IpVersion, LabHost, UNDERLAY_MTU};

/// Bytes of each transfer with checksums computed by the kernel.
const KERNEL_CHECKSUM_BYTES: u64 = 1_000_000;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let sender = lab.topology.last_client()?;
    run.set_balancer_mtu(CLIENT_MTU)?;
    set_backend_mtu(run, CLIENT_MTU)?;
    run.reporter.info(format!(
        "the MTU of balancers and backends is {CLIENT_MTU}: only clamped segments fit"
    ));
    for host in run.members().chain([sender]) {
        lab.namespaces.within(host, || enable_gso_and_gro(INTERFACE))?;
    }
    for version in IpVersion::BOTH {
        transfer(run, version, sender, lab.scale.captured_bytes, "with TSO and GRO")?;
        // Without offload the packets contain complete checksums, and receivers verify them.
        lab.set_tx_checksum(run.members().chain([sender]), false)?;
        transfer(run, version, sender, KERNEL_CHECKSUM_BYTES, "with checksums by the kernel")?;
        lab.set_tx_checksum(run.members().chain([sender]), true)?;
    }
    run.set_balancer_mtu(UNDERLAY_MTU)?;
    set_backend_mtu(run, UNDERLAY_MTU)
}

fn transfer(
    run: &mut LabRun<'_>,
    version: IpVersion,
    sender: &LabHost,
    bytes: u64,
    offload: &str,
) -> Result<()> {
    let lab = run.lab;
    let errors_before = lab.too_big_errors_sent()?;
    let clamped_before = clamped(run)?;
    let transfer = BulkTransfer::run(run, sender, version, bytes)?;
    let errors = lab.too_big_errors_sent()? - errors_before;
    let clamped = clamped(run)? - clamped_before;
    let label = format!("{}, {offload}", version.name());
    let statements = [
        Statement::measured(clamped > 0, "SYN-ACKs with a clamped MSS", clamped, "at least 1"),
        Statement::equal("ICMP errors sent to the client", errors, 0),
    ];
    let observation = format!("; {clamped} SYN-ACK clamped, {errors} ICMP errors");
    transfer.check(run, &label, statements, &observation);
    Ok(())
}

/// Sets the MTU of the backends' interfaces, and reloads their daemons, which read it.
fn set_backend_mtu(run: &LabRun<'_>, mtu: u32) -> Result<()> {
    for backend in run.members() {
        run.set_mtu(backend, mtu)?;
        run.lab.reload_sluice(backend)?;
    }
    Ok(())
}

/// SYN-ACKs that the backends have clamped.
fn clamped(run: &LabRun<'_>) -> Result<u64> {
    run.members().map(|host| Ok(run.lab.backend_counters(host)?.mss_clamped)).sum()
}

//! Path MTU discovery by a client: a packet does not fit the underlay with its outer header, and
//! the balancer sends an ICMP error with the VIP as source.

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use crate::lab::client::{self, HttpConnection};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{CLIENT_MTU, IpVersion, LabHost, UNDERLAY_MTU};

/// Bytes of each upload: many full packets.
pub(super) const UPLOAD_BYTES: u64 = 2_000_000;

/// GSO packets cause one ICMP error each, so a correct balancer sends few.
const MAX_ERRORS: u64 = 50;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    run.set_balancer_mtu(CLIENT_MTU)?;
    run.reporter.info(format!(
        "the underlay MTU is {CLIENT_MTU}; full packets of clients exceed it once encapsulated"
    ));
    // With checksum offload, receivers on virtual links do not verify checksums. Without it, the
    // kernel completes the checksum of the quoted packet when the ICMP error leaves, and the client
    // verifies that of the error.
    lab.set_tx_checksum(run.balancers(), false)?;
    // Not the first client: backends still cache its path MTU, so its segments would fit.
    let sender = lab.topology.last_client()?;
    for version in IpVersion::BOTH {
        let before = lab.too_big_errors_sent()?;
        upload(run, sender, version);
        let errors = lab.too_big_errors_sent()? - before;
        run.check(Statement::measured(
            errors > 0 && errors < MAX_ERRORS,
            format!("{}: ICMP errors sent to the client", version.name()),
            errors,
            format!("1 to {}", MAX_ERRORS - 1),
        ));
    }
    lab.set_tx_checksum(run.balancers(), true)?;
    run.set_balancer_mtu(UNDERLAY_MTU)
}

/// Uploads from a client, and checks that all bytes arrive.
pub(super) fn upload(run: &mut LabRun<'_>, sender: &LabHost, version: IpVersion) {
    let limit = run.lab.scale.timeout;
    let upload = client::run_in(&run.lab.namespaces, sender, || async move {
        let mut connection = HttpConnection::open(version.web()).await?;
        timeout(limit, connection.upload(UPLOAD_BYTES)).await.context("upload timeout")?
    });
    let failures: Vec<_> = upload.err().map(|error| format!("{error:#}")).into_iter().collect();
    let text = format!("{}: {UPLOAD_BYTES} bytes are uploaded", version.name());
    run.reporter.check_none(&failures, text);
}

//! GSO packets: the balancer forwards them whole, and a device cuts them into segments later.

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use crate::lab::capture::PacketCapture;
use crate::lab::client::{self, HttpConnection};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{CLIENT_MTU, IpVersion, UNDERLAY_MTU};

/// Bytes of each upload. All of its packets are captured completely.
const UPLOAD_BYTES: u64 = 1_000_000;

/// Uploads over each IP version while the balancers' packets are captured.
pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let limit = lab.scale.timeout;
    let sender = lab.topology.first_client()?;
    for version in IpVersion::BOTH {
        let before: u64 = lab.forwarded()?.values().sum();
        let captures = PacketCapture::start_all(&lab.namespaces, run.balancers())?;
        let name = version.name();
        client::run_in(&lab.namespaces, sender, || async move {
            let mut connection = HttpConnection::open(version.web()).await?;
            timeout(limit, connection.upload(UPLOAD_BYTES)).await.context("upload timeout")?
        })
        .with_context(|| format!("an upload over {name} from {}", sender.name))?;
        let segments = lab.forwarded_settled()?.values().sum::<u64>() - before;
        let mut packets = 0;
        let mut longest_in = 0;
        let mut longest_out = 0;
        for capture in PacketCapture::stop_all(captures)? {
            let (length_in, length_out) = capture.longest();
            longest_in = longest_in.max(length_in);
            longest_out = longest_out.max(length_out);
            packets += capture.counts.encapsulated_out;
        }
        run.check(Statement::measured(
            longest_in > UNDERLAY_MTU as usize + 14,
            format!("{name}: bytes of the longest packet that arrived at a balancer"),
            longest_in,
            format!("above the MTU of {UNDERLAY_MTU}"),
        ));
        run.check(Statement::equal(
            format!("{name}: bytes of the longest packet that left it, with the outer header"),
            longest_out,
            longest_in + run.config.overhead(version),
        ));
        let least = UPLOAD_BYTES / u64::from(CLIENT_MTU);
        run.check(Statement::measured(
            segments > packets && segments >= least,
            format!("{name}: {packets} packets counted as segments"),
            segments,
            format!("more than {packets}, at least {least} for {UPLOAD_BYTES} bytes"),
        ));
    }
    Ok(())
}

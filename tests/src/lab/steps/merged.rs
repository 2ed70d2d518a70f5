//! Merged packets: what a sender's kernel leaves whole for a device to cut (TSO, GSO), or a
//! receiver's has merged (GRO).

use super::Examination;
use super::spread::{forwarded, settled};
use crate::lab::capture::Capture;
use crate::lab::client::{self, Connection};
use crate::lab::topology::{CLIENT_MTU, Family, UNDERLAY_MTU, balancers, clients};
use anyhow::{Context, Result};
use tokio::time::timeout;

/// Bytes of each upload. All of its packets are captured whole, so it is no larger than it must be.
const BODY: u64 = 1_000_000;

/// Uploads over each IP version while the balancers' packets are captured.
pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let limit = lab.scale.patience;
    let sender = clients().next().context("the lab has no client")?;
    for family in Family::BOTH {
        let before = forwarded(lab)?;
        let mut captures = Vec::new();
        for host in balancers() {
            captures.push(Capture::start(&lab.namespaces, host)?);
        }
        let uploaded = client::on(&lab.namespaces, sender, || async move {
            let mut connection = Connection::open(family.web()).await?;
            timeout(limit, connection.upload(BODY)).await.context("the upload takes too long")?
        });
        uploaded
            .with_context(|| format!("an upload over {} from {}", family.name(), sender.name))?;
        let after = settled(lab)?;
        let counted: u64 = before.iter().zip(&after).map(|((_, then), (_, now))| now - then).sum();
        let (mut packets, mut arrived, mut left) = (0, 0, 0);
        for capture in captures {
            let captured = capture.stop()?;
            let (longest_in, longest_out) = captured.longest();
            packets += captured.counts.encapsulated_out;
            (arrived, left) = (arrived.max(longest_in), left.max(longest_out));
        }
        let name = family.name();
        let what =
            format!("{name}: a packet of {arrived} bytes, longer than the MTU, reached a balancer");
        examination.check(arrived > UNDERLAY_MTU as usize + 14, what);
        let outer = match family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        examination.check(
            left == arrived + outer,
            format!("{name}: it left with {outer} bytes more: {left}"),
        );
        let what = format!(
            "{name}: {packets} packets are counted as the {counted} segments that they are"
        );
        // No segment carries more than the client's MTU.
        examination.check(counted > packets && counted >= BODY / u64::from(CLIENT_MTU), what);
    }
    Ok(())
}

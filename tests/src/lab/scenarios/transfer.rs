//! A large upload and download with all packets captured.

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use crate::lab::capture::{CaptureResult, PacketCapture, PacketCounts, Resegmented};
use crate::lab::client::{self, HttpConnection};
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{IpVersion, LabHost};

/// A finished or failed upload and download.
pub(super) struct BulkTransfer {
    bytes: u64,
    /// Why it failed.
    failure: Option<String>,
    /// Sums over all captures.
    counts: PacketCounts,
    /// The capture of each balancer.
    pub(super) balancers: Vec<CaptureResult>,
}

impl BulkTransfer {
    /// Uploads and downloads `bytes` bytes while the packets of the client, the balancers and the
    /// backends are captured.
    pub(super) fn run(
        run: &LabRun<'_>,
        sender: &LabHost,
        version: IpVersion,
        bytes: u64,
    ) -> Result<Self> {
        let lab = run.lab;
        let limit = lab.scale.timeout;
        let balancers = PacketCapture::start_all(&lab.namespaces, run.balancers())?;
        let others = PacketCapture::start_all(&lab.namespaces, run.members().chain([sender]))?;
        let transfer = client::run_in(&lab.namespaces, sender, || async move {
            let mut connection = HttpConnection::open(version.web()).await?;
            timeout(limit, connection.upload(bytes)).await.context("upload timeout")??;
            timeout(limit, connection.download(bytes)).await.context("download timeout")?
        });
        balancers.iter().for_each(PacketCapture::request_stop);
        let others = PacketCapture::stop_all(others)?;
        let balancers = PacketCapture::stop_all(balancers)?;
        let mut counts = PacketCounts::default();
        for capture in balancers.iter().chain(&others) {
            counts.tcp_checksum_good += capture.counts.tcp_checksum_good;
            counts.tcp_checksum_bad += capture.counts.tcp_checksum_bad;
            counts.outer_checksum_good += capture.counts.outer_checksum_good;
            counts.outer_checksum_zero += capture.counts.outer_checksum_zero;
            counts.outer_checksum_bad += capture.counts.outer_checksum_bad;
        }
        let failure = transfer.err().map(|error| format!("{error:#}"));
        Ok(Self { bytes, failure, counts, balancers })
    }

    /// Checks that all bytes arrived, that no checksum is wrong, and `more` statements. All are one
    /// group, whose summary ends with `observation`. `label` starts each line.
    pub(super) fn check(
        &self,
        run: &mut LabRun<'_>,
        label: &str,
        more: impl IntoIterator<Item = Statement>,
        observation: &str,
    ) {
        let counts = &self.counts;
        let mut statements = vec![
            Statement::new(
                self.failure.is_none(),
                format!(
                    "{label}: {} bytes uploaded and downloaded{}",
                    self.bytes,
                    self.failure.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
                ),
            ),
            Statement::measured(
                counts.tcp_checksum_bad == 0 && counts.tcp_checksum_good > 0,
                format!("{label}: captured TCP packets with a wrong checksum"),
                format!("{} of {}", counts.tcp_checksum_bad, self.tcp_packets()),
                0,
            ),
        ];
        if run.config.gue {
            let good = counts.outer_checksum_good;
            let zero = counts.outer_checksum_zero;
            statements.push(Statement::measured(
                counts.outer_checksum_bad == 0 && good > 0,
                format!("{label}: outer UDP headers with a wrong checksum"),
                format!("{}; correct: {good}, zero: {zero}", counts.outer_checksum_bad),
                0,
            ));
        }
        for statement in more {
            statements
                .push(Statement { text: format!("{label}: {}", statement.text), ..statement });
        }
        let summary = format!(
            "{label}: {} MB up and down, no wrong checksum in {} packets{observation}",
            self.bytes as f64 / 1e6,
            self.tcp_packets()
        );
        run.reporter.check_group(summary, statements);
    }

    fn tcp_packets(&self) -> u64 {
        self.counts.tcp_checksum_good + self.counts.tcp_checksum_bad
    }

    /// GSO packets that left a balancer with another segment size than they arrived with.
    pub(super) fn resegmented(&self) -> Vec<Resegmented> {
        self.balancers.iter().flat_map(CaptureResult::resegmented).collect()
    }
}

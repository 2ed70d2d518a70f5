//! A large upload and download while every packet of it is looked at.

use super::Examination;
use crate::lab::capture::{Capture, Captured};
use crate::lab::client::{self, Connection};
use crate::lab::lab::Lab;
use crate::lab::topology::{Family, Host, balancers};
use anyhow::{Context, Result};
use tokio::time::timeout;

/// An upload and a download that are over, or were given up.
pub(super) struct Transfer {
    /// What went wrong.
    wrong: Vec<String>,
    /// TCP packets that the captures saw, whose checksum is right, and others.
    checksums: (u64, u64),
    /// Packets in UDP whose outer checksum is right, those that have none, and others.
    outer_checksums: (u64, u64, u64),
    /// What each balancer saw.
    pub(super) balancers: Vec<Captured>,
}

impl Transfer {
    /// Sends so many bytes from a client to a service and back, while packets of the client, of the
    /// balancers and of `backends` are captured.
    pub(super) fn run(
        lab: &Lab,
        sender: &'static Host,
        backends: impl Iterator<Item = &'static Host>,
        family: Family,
        bytes: u64,
    ) -> Result<Self> {
        let limit = lab.scale.patience;
        let start = |host| Capture::start(&lab.namespaces, host);
        let at_balancers = balancers().map(start).collect::<Result<Vec<_>>>()?;
        let others = backends.chain([sender]).map(start).collect::<Result<Vec<_>>>()?;
        let moved = client::on(&lab.namespaces, sender, || async move {
            let mut connection = Connection::open(family.web()).await?;
            timeout(limit, connection.upload(bytes)).await.context("the upload does not end")??;
            timeout(limit, connection.download(bytes)).await.context("the download does not end")?
        });
        at_balancers.iter().chain(&others).for_each(Capture::end);
        let mut transfer = Self {
            wrong: moved.err().map(|error| format!("{error:#}")).into_iter().collect(),
            checksums: (0, 0),
            outer_checksums: (0, 0, 0),
            balancers: Vec::new(),
        };
        for capture in at_balancers {
            let captured = capture.stop()?;
            transfer.count(&captured);
            transfer.balancers.push(captured);
        }
        for capture in others {
            transfer.count(&capture.stop()?);
        }
        Ok(transfer)
    }

    fn count(&mut self, captured: &Captured) {
        self.checksums.0 += captured.counts.good_checksums;
        self.checksums.1 += captured.counts.bad_checksums;
        self.outer_checksums.0 += captured.counts.good_outer_checksums;
        self.outer_checksums.1 += captured.counts.no_outer_checksums;
        self.outer_checksums.2 += captured.counts.bad_outer_checksums;
    }

    /// Checks that all bytes went up and down, and that no checksum was bad.
    pub(super) fn judge(&self, examination: &mut Examination<'_>, which: &str, what: String) {
        examination.show.check_none(&self.wrong, format!("{which}: {what}"));
        let (good, bad) = self.checksums;
        let what = format!("{which}: of {good} captured TCP packets {bad} have a bad checksum");
        examination.check(good > 0 && bad == 0, what);
        if examination.wanted.in_udp {
            let (good, without, bad) = self.outer_checksums;
            let what = format!(
                "{which}: of the UDP headers before them {good} have a right checksum, {without} none, {bad} a bad one"
            );
            examination.check(good > 0 && bad == 0, what);
        }
    }

    /// Merged packets whose segments left a balancer in another size than they came: both sizes of
    /// each.
    pub(super) fn cut_otherwise(&self) -> Vec<(usize, usize)> {
        self.balancers.iter().flat_map(Captured::cut_otherwise).collect()
    }
}

//! QUIC connection IDs select backends: datagrams from changing source ports, as after a client's
//! migration, reach the backend in their connection ID.

use anyhow::Result;

use crate::lab::client::{self, Responses, datagram};
use crate::lab::config::ROTATION;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::IpVersion;

/// Datagrams with each connection ID over each IP version.
const DATAGRAMS: usize = 40;

/// A server ID without a backend, as long as a backend's name.
const UNKNOWN_ID: &str = "web-0";

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    run.config.quic = true;
    run.reload_balancers()?;
    for version in IpVersion::BOTH {
        let name = version.name();
        let mut correct = 0;
        let mut sent = 0;
        let mut failures = Vec::new();
        for backend in run.members() {
            let responses = send(run, version, &backend.name)?;
            correct += responses.from(&backend.name);
            sent += responses.sent();
            failures.extend(responses.failures);
        }
        run.check(Statement::measured(
            correct == sent && sent > 0,
            format!("{name}: datagrams that reached the backend in their connection ID"),
            correct,
            sent,
        ));
        run.reporter.details(&failures);
        let responses = send(run, version, UNKNOWN_ID)?;
        let backends = responses.by_backend.len();
        run.check(Statement::measured(
            responses.failed == 0 && backends > 1,
            format!(
                "{name}: backends of {} datagrams with an unknown server ID",
                responses.answered()
            ),
            backends,
            "at least 2, by the lookup table",
        ));
        run.reporter.details(&responses.failures);
    }
    run.config.quic = false;
    run.reload_balancers()
}

/// Sends datagrams that start like a QUIC packet with a short header, whose connection ID has this
/// server ID. Each is sent from a new port.
fn send(run: &LabRun<'_>, version: IpVersion, id: &str) -> Result<Responses> {
    let lab = run.lab;
    let sender = lab.topology.first_client()?;
    client::run_in(&lab.namespaces, sender, || async move {
        let mut responses = Responses::default();
        // Header form 0, fixed bit 1 (RFC 9000 section 17.3).
        let first_byte = char::from(0x40_u8);
        // The config rotation is in the upper three bits of the connection ID's first octet.
        let first_octet = char::from(ROTATION << 5 | 1);
        for number in 0..DATAGRAMS {
            let payload = format!("{first_byte}{first_octet}{id} datagram {number:02}");
            responses.add(datagram(version.echo(), &payload, lab.scale.timeout).await);
        }
        Ok(responses)
    })
}

//! Path MTU discovery (RFC 1191, RFC 8201) by a backend: a router sends its ICMP errors to the VIP,
//! and a balancer forwards them to the backend of the quoted flow.

use anyhow::Result;

use super::transfer::BulkTransfer;
use crate::lab::capture::CaptureResult;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::IpVersion;

/// MTU of the router's route to the client in bytes; IPv6 needs at least 1280.
const SMALL_MTU: u32 = 1400;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    let client = lab.topology.first_client()?;
    let router = lab.topology.router();
    run.reporter.info(format!(
        "the router's route to {} has an MTU of {SMALL_MTU}, which the backends' replies exceed",
        client.name
    ));
    for version in IpVersion::BOTH {
        // The MTU of the route and not of the link, which would drop longer frames from the client.
        // Locked, because the kernel ignores other route MTUs for forwarded packets.
        let address = client.address(version).to_string();
        let mtu = SMALL_MTU.to_string();
        let add = ["route", "add", &address, "dev", &client.name, "mtu", "lock", &mtu];
        lab.namespaces.run(router, "ip", &add, "")?;
        let transfer = BulkTransfer::run(run, client, version, lab.scale.captured_bytes)?;
        lab.namespaces.run(router, "ip", &["route", "del", &address, "dev", &client.name], "")?;
        let count = |encapsulated: bool| -> usize {
            let too_big = |capture: &CaptureResult| capture.too_big_errors(encapsulated);
            transfer.balancers.iter().map(too_big).sum()
        };
        let name = version.name();
        transfer.check(run, name, [], "");
        run.check(Statement::measured(
            count(true) == count(false) && count(false) > 0,
            format!("{name}: ICMP errors that the balancers forwarded to the backend of the flow"),
            count(true),
            format!("{}, all that arrived", count(false)),
        ));
    }
    Ok(())
}

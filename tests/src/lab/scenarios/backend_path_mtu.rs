//! Path MTU discovery by a balancer: a router between balancers and backends sends ICMP errors
//! about encapsulated packets. The balancer lowers the backend's MTU and sends ICMP errors to the
//! client.

use std::net::IpAddr;

use anyhow::Result;

use super::underlay_mtu::upload;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{BRIDGE, INTERFACE, IpVersion, UNDERLAY_MTU};

/// MTU of the router's routes to the backends in bytes: smaller than the path MTU that clients have
/// cached in earlier scenarios.
const SMALL_MTU: u32 = 1440;

/// MTU of the balancers' own routes over the router. It identifies these routes in the status.
const DETOUR_MTU: u32 = UNDERLAY_MTU - 10;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    let lab = run.lab;
    change_routes(run, "add")?;
    run.wait_for_status("packets to backends are routed over the router", |status| {
        let mut next_hops = status.backends.iter().flat_map(|b| b.next_hops.values());
        next_hops.all(|hop| hop.mtu == DETOUR_MTU)
    })?;
    run.reporter.info(format!(
        "the balancers reach the backends over the router, whose routes have an MTU of {SMALL_MTU}"
    ));
    let sender = lab.topology.last_client()?;
    for version in IpVersion::BOTH {
        let lowered_before = lowered(run)?;
        let sent_before = lab.too_big_errors_sent()?;
        upload(run, sender, version);
        let lowered = lowered(run)? - lowered_before;
        let sent = lab.too_big_errors_sent()? - sent_before;
        let name = version.name();
        run.check(Statement::measured(
            lowered > 0,
            format!("{name}: ICMP errors of the router that lowered a backend's MTU"),
            lowered,
            "at least 1",
        ));
        run.check(Statement::measured(
            sent > 0,
            format!("{name}: ICMP errors sent to the client"),
            sent,
            "at least 1",
        ));
        let known = path_mtus(run, version)?;
        let text: Vec<_> = known.iter().map(|(address, mtu)| format!("{address} {mtu}")).collect();
        run.check(Statement::measured(
            known.iter().all(|(_, mtu)| *mtu == SMALL_MTU) && !known.is_empty(),
            format!("{name}: path MTUs in sluice status"),
            text.join(", "),
            SMALL_MTU,
        ));
    }
    change_routes(run, "del")?;
    // A path MTU is discarded with the route that it belongs to, before it expires.
    run.wait_for_status(
        &format!("the MTU towards every backend is {UNDERLAY_MTU} again"),
        |status| {
            status.backends.iter().all(|backend| {
                let mut next_hops = backend.next_hops.values();
                backend.path_mtus.is_empty() && next_hops.all(|hop| hop.mtu == UNDERLAY_MTU)
            })
        },
    )?;
    let text = "the path MTUs are discarded when the routes are removed";
    run.check(Statement::new(true, text));
    Ok(())
}

/// Adds or removes the balancers' routes to backends over the router, and the router's routes with
/// a smaller MTU.
fn change_routes(run: &LabRun<'_>, verb: &str) -> Result<()> {
    let topology = &run.lab.topology;
    let router = topology.router();
    let mut small = String::new();
    let mut detours = String::new();
    for backend in topology.backends() {
        for version in IpVersion::BOTH {
            let destination = format!("{}/{}", backend.address(version), version.host_prefix());
            let gateway = router.address(version);
            // Locked, because the kernel ignores other route MTUs for forwarded packets.
            small += &format!("route {verb} {destination} dev {BRIDGE} mtu lock {SMALL_MTU}\n");
            detours += &format!(
                "route {verb} {destination} via {gateway} dev {INTERFACE} mtu {DETOUR_MTU}\n"
            );
        }
    }
    let batch = |host, lines: &str| run.lab.namespaces.run(host, "ip", &["-batch", "-"], lines);
    batch(router, &small)?;
    run.balancers().iter().try_for_each(|host| batch(host, &detours).map(drop))
}

/// ICMP errors that have lowered an MTU on the balancers.
fn lowered(run: &LabRun<'_>) -> Result<u64> {
    run.lab.sum_counters(|counters| counters.path_errors.get("lowered").copied().unwrap_or(0))
}

/// The addresses of backends with a path MTU that a router has reported, and the MTU in use.
fn path_mtus(run: &LabRun<'_>, version: IpVersion) -> Result<Vec<(IpAddr, u32)>> {
    let mut known = Vec::new();
    for balancer in run.balancers() {
        for backend in run.lab.status(balancer)?.backends {
            let addresses = backend.path_mtus.keys();
            let addresses =
                addresses.filter(|address| address.is_ipv4() == (version == IpVersion::V4));
            known.extend(addresses.map(|address| (*address, backend.next_hops[address].mtu)));
        }
    }
    Ok(known)
}

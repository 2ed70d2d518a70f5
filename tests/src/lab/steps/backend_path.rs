//! A router between balancers and backends with a smaller MTU: it tells the balancer, the balancer
//! tells the client, and the client sends smaller packets.

use std::net::IpAddr;

use super::Examination;
use super::reject::told;
use crate::lab::client::{self, Connection};
use crate::lab::lab::Lab;
use crate::lab::topology::{
    BRIDGE, Family, HOSTS, INTERFACE, UNDERLAY_MTU, backends, balancers, clients,
};
use anyhow::{Context, Result};
use tokio::time::timeout;

/// What the router carries towards backends for a while, in bytes: less than clients have been told
/// of so far.
const SMALL_MTU: u32 = 1440;

/// What the balancers' own routes by the router say for as long, so that one can see when a daemon
/// has found them.
const DETOUR_MTU: u32 = UNDERLAY_MTU - 10;

/// Bytes of each upload, enough for many full packets.
const BODY: u64 = 2_000_000;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let limit = lab.scale.patience;
    detour(lab, "add")?;
    examination.wait_status("packets to backends go by the router", |status| {
        status
            .backends
            .iter()
            .all(|backend| backend.next_hops.values().all(|(_, mtu)| *mtu == DETOUR_MTU))
    })?;
    let sender = clients().last().context("the lab has no client")?;
    for family in Family::BOTH {
        let before = (lowered(lab)?, told(lab)?);
        let uploaded = client::on(&lab.namespaces, sender, || async move {
            let mut connection = Connection::open(family.web()).await?;
            timeout(limit, connection.upload(BODY)).await.context("the upload does not end")?
        });
        let (lowered, told) = (lowered(lab)? - before.0, told(lab)? - before.1);
        let name = family.name();
        let wrong: Vec<_> = uploaded.err().map(|error| format!("{error:#}")).into_iter().collect();
        let what =
            format!("{name}: {BODY} bytes are uploaded behind a router whose MTU is {SMALL_MTU}");
        examination.show.check_none(&wrong, what);
        let what = format!(
            "{name}: a balancer was told {lowered} times, and told the client {told} times"
        );
        examination.check(lowered > 0 && told > 0, what);
        let known = known(lab, family)?;
        let what =
            format!("{name}: sluice status shows the MTU of {SMALL_MTU} that was told: {known:?}");
        examination
            .check(known.iter().all(|(_, mtu)| *mtu == SMALL_MTU) && !known.is_empty(), what);
    }
    detour(lab, "del")?;
    // It was told of another way: nobody waits for it to expire.
    examination.wait_status(
        &format!("the MTU towards every backend is {UNDERLAY_MTU} again"),
        |status| {
            status.backends.iter().all(|backend| {
                backend.path_mtus.is_empty()
                    && backend.next_hops.values().all(|(_, mtu)| *mtu == UNDERLAY_MTU)
            })
        },
    )
}

/// Sends what balancers send to backends by the router, which has routes with a smaller MTU, or
/// puts an end to that.
fn detour(lab: &Lab, verb: &str) -> Result<()> {
    let router = &HOSTS[0];
    let (mut small, mut detours) = (String::new(), String::new());
    for backend in backends() {
        for (family, length) in [(Family::V4, 32), (Family::V6, 128)] {
            let (address, gateway) = (backend.address(family), router.address(family));
            // A locked MTU counts for forwarded packets on every kernel.
            small +=
                &format!("route {verb} {address}/{length} dev {BRIDGE} mtu lock {SMALL_MTU}\n");
            detours += &format!(
                "route {verb} {address}/{length} via {gateway} dev {INTERFACE} mtu {DETOUR_MTU}\n"
            );
        }
    }
    lab.namespaces.run(router, "ip", &["-batch", "-"], &small)?;
    balancers()
        .try_for_each(|host| lab.namespaces.run(host, "ip", &["-batch", "-"], &detours).map(|_| ()))
}

/// How often errors lowered an MTU on the balancers so far.
fn lowered(lab: &Lab) -> Result<u64> {
    let mut lowered = 0;
    for balancer in balancers() {
        lowered += lab.counters(balancer)?.path_errors.get("lowered").copied().unwrap_or(0);
    }
    Ok(lowered)
}

/// The addresses of a family of whose way a router told a balancer, with the MTU that counts.
fn known(lab: &Lab, family: Family) -> Result<Vec<(IpAddr, u32)>> {
    let mut known = Vec::new();
    for balancer in balancers() {
        for backend in lab.status(balancer)?.backends {
            let told = backend
                .path_mtus
                .keys()
                .filter(|address| address.is_ipv4() == (family == Family::V4));
            known.extend(told.map(|address| (*address, backend.next_hops[address].1)));
        }
    }
    Ok(known)
}

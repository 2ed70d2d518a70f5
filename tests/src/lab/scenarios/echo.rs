//! ICMP echo requests to the VIPs, and packets to a port without a service: no forwarding loop
//! between balancers and router.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;

use crate::lab::capture::{PacketCapture, PacketCounts};
use crate::lab::ping::ping;
use crate::lab::reporter::Statement;
use crate::lab::run::LabRun;
use crate::lab::topology::{IpVersion, LabHost};

/// Payload sizes in bytes: none, an odd number, that of ping(8), and the largest that fits the
/// clients' MTU.
const PAYLOADS: [usize; 4] = [0, 1, 56, 1452];

/// A port without a service in the lab (the discard port of RFC 863).
const PORT_WITHOUT_SERVICE: u16 = 9;

pub(super) fn run(run: &mut LabRun<'_>) -> Result<()> {
    run.reporter.info(format!(
        "each client also sends a packet to port {PORT_WITHOUT_SERVICE} of the VIPs, \
         which has no service"
    ));
    for version in IpVersion::BOTH {
        let captures = PacketCapture::start_all(&run.lab.namespaces, run.balancers())?;
        let pings = send_pings(run, version);
        let mut datagrams = 0;
        for client in run.lab.topology.clients() {
            send_to_port_without_service(run, client, version)?;
            datagrams += 1;
        }
        // Long enough for a packet in a loop to arrive many times.
        std::thread::sleep(Duration::from_millis(200));
        let mut counts = PacketCounts::default();
        for capture in PacketCapture::stop_all(captures)? {
            counts.to_vip_in += capture.counts.to_vip_in;
            counts.from_vip_out += capture.counts.from_vip_out;
            counts.encapsulated_out += capture.counts.encapsulated_out;
        }
        let name = version.name();
        let port = PORT_WITHOUT_SERVICE;
        run.check(Statement::measured(
            counts.to_vip_in == pings + datagrams,
            format!("{name}: packets to the VIP that arrived at the balancers"),
            counts.to_vip_in,
            format!("{pings} pings, {datagrams} packets to port {port}; a loop would add more"),
        ));
        run.check(Statement::measured(
            counts.from_vip_out == pings && counts.encapsulated_out == 0,
            format!("{name}: packets sent by the balancers"),
            format!("{} replies, {} encapsulated", counts.from_vip_out, counts.encapsulated_out),
            format!("{pings} replies, 0 encapsulated"),
        ));
    }
    Ok(())
}

/// Sends pings from every client and checks the replies; returns the number of pings.
fn send_pings(run: &mut LabRun<'_>, version: IpVersion) -> u64 {
    let lab = run.lab;
    let limit = lab.scale.timeout;
    let mut failures = Vec::new();
    let mut sent = 0;
    for client in lab.topology.clients() {
        for (number, size) in PAYLOADS.into_iter().enumerate() {
            let payload: Vec<u8> = (0..size).map(|i| (i * 31 + 7) as u8).collect();
            let reply = lab
                .namespaces
                .within(client, || ping(version.vip(), number as u16, &payload, limit));
            if let Err(error) = reply {
                failures.push(format!("{}: {error:#}", client.name));
            }
            sent += 1;
        }
    }
    run.check(Statement::equal(
        format!("{}: correct replies to pings of 0 to 1452 bytes", version.name()),
        sent - failures.len() as u64,
        sent,
    ));
    run.reporter.details(&failures);
    sent
}

fn send_to_port_without_service(
    run: &LabRun<'_>,
    client: &LabHost,
    version: IpVersion,
) -> Result<()> {
    run.lab.namespaces.within(client, || {
        let unspecified: SocketAddr = match version {
            IpVersion::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpVersion::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(unspecified)?;
        socket.send_to(b"discard", SocketAddr::new(version.vip(), PORT_WITHOUT_SERVICE))?;
        Ok(())
    })
}

//! Pings to the VIP are answered by the balancers, and nothing goes round in circles between them
//! and the router.

use super::Examination;
use crate::lab::capture::{Capture, Counts};
use crate::lab::ping::ping;
use crate::lab::topology::{Family, balancers, clients};
use anyhow::Result;
use std::net::{SocketAddr, UdpSocket};

/// Bytes behind the echo header: none, an odd number, the usual one, and as many as fit the
/// clients' MTU.
const PAYLOADS: [usize; 4] = [0, 1, 56, 1452];

/// A port that no service of the lab has (the discard port of RFC 863).
const UNLISTED: u16 = 9;

pub(super) fn run(examination: &mut Examination<'_>) -> Result<()> {
    let lab = examination.lab;
    let limit = lab.scale.patience;
    for family in Family::BOTH {
        let captures = balancers()
            .map(|host| Capture::start(&lab.namespaces, host))
            .collect::<Result<Vec<_>>>()?;
        let (mut wrong, mut sent) = (Vec::new(), 0);
        for client in clients() {
            for (number, size) in PAYLOADS.into_iter().enumerate() {
                let payload: Vec<u8> = (0..size).map(|i| (i * 31 + 7) as u8).collect();
                let pinged = lab
                    .namespaces
                    .within(client, || ping(family.vip(), number as u16, &payload, limit));
                if let Err(error) = pinged {
                    wrong.push(format!("{}: {error:#}", client.name));
                }
                sent += 1;
            }
        }
        let what = format!(
            "{}: {sent} pings to the VIP are answered, with right checksums",
            family.name()
        );
        examination.show.check_none(&wrong, what);

        let mut unlisted = 0;
        for client in clients() {
            lab.namespaces.within(client, || {
                let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.send_to(b"nobody listens", SocketAddr::new(family.vip(), UNLISTED))?;
                Ok(())
            })?;
            unlisted += 1;
        }
        // A packet in a circle would be back many times in this time.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut counts = Counts::default();
        for capture in captures {
            let seen = capture.stop()?.counts;
            counts.to_vip_in += seen.to_vip_in;
            counts.from_vip_out += seen.from_vip_out;
            counts.encapsulated_out += seen.encapsulated_out;
        }
        let expected =
            Counts { to_vip_in: sent + unlisted, from_vip_out: sent, ..Counts::default() };
        let what = format!(
            "{}: each of {sent} pings and {unlisted} packets to an unlisted port reached a balancer once, {sent} answers left: {counts:?}",
            family.name()
        );
        examination.check(counts == expected, what);
    }
    Ok(())
}

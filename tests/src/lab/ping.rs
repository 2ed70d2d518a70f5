//! Echo requests, sent and checked from inside a host. The hosts of a lab have no `ping`, and it
//! would not look at checksums.

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
};
use etherparse::{Ipv4HeaderSlice, checksum::Sum16BitWords};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Sends one echo request with `payload` to `target` and waits for its reply, in the network
/// namespace of the calling thread.
///
/// # Errors
///
/// No reply within `limit`, or one that is not right: another payload, or (IPv4, where a raw socket
/// shows it) a wrong checksum or a time to live that is not one less than 64.
pub fn ping(target: IpAddr, sequence: u16, payload: &[u8], limit: Duration) -> Result<()> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket =
        Socket::new(domain, Type::RAW, Some(protocol)).context("cannot make a raw ICMP socket")?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    let echo = IcmpEchoHeader { id: 0x51ce, seq: sequence };
    let header = match target {
        IpAddr::V4(_) => {
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload).to_bytes().to_vec()
        }
        // The kernel fills the checksum in.
        IpAddr::V6(_) => Icmpv6Header { icmp_type: Icmpv6Type::EchoRequest(echo), checksum: 0 }
            .to_bytes()
            .to_vec(),
    };
    socket
        .send(&[&header, payload].concat())
        .with_context(|| format!("cannot send to {target}"))?;

    let deadline = Instant::now() + limit;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no reply from {target} to {} bytes", payload.len());
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = socket.read(&mut buffer) else { continue };
        let matched = match target {
            IpAddr::V4(_) => reply_v4(&buffer[..length], echo)?,
            IpAddr::V6(_) => reply_v6(&buffer[..length], echo)?,
        };
        if let Some(answer) = matched {
            ensure!(
                answer == payload,
                "{target} answered with {} bytes to {}",
                answer.len(),
                payload.len()
            );
            return Ok(());
        }
    }
}

/// The payload of the reply, from an IPv4 packet; `None` when it is another message.
fn reply_v4(packet: &[u8], echo: IcmpEchoHeader) -> Result<Option<&[u8]>> {
    let ip = Ipv4HeaderSlice::from_slice(packet)?;
    let message = &packet[ip.slice().len()..];
    let icmp = Icmpv4Slice::from_slice(message)?;
    if icmp.icmp_type() != Icmpv4Type::EchoReply(echo) {
        return Ok(None);
    }
    let sum = Sum16BitWords::new().add_slice(message).ones_complement();
    ensure!(sum == 0, "the checksum of the reply is wrong: {message:02x?}");
    ensure!(ip.ttl() == 63, "the reply came with a time to live of {}", ip.ttl());
    Ok(Some(&message[8..]))
}

/// The payload of the reply, from an ICMPv6 message whose checksum the kernel has checked; `None`
/// when it is another message.
fn reply_v6(message: &[u8], echo: IcmpEchoHeader) -> Result<Option<&[u8]>> {
    let icmp = Icmpv6Slice::from_slice(message)?;
    Ok((icmp.icmp_type() == Icmpv6Type::EchoReply(echo)).then(|| &message[8..]))
}

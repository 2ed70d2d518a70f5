//! ICMP echo requests sent from a host. Unlike ping(8), the checksum of the reply is verified.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4HeaderSlice,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Sends one echo request with `payload` to `target` and waits for its reply, in the network
/// namespace of the calling thread.
///
/// # Errors
///
/// No reply within `limit`, or a reply with another payload or, for IPv4, a wrong checksum or a TTL
/// other than 63. (A raw ICMPv6 socket shows neither; the kernel verifies the checksum.)
pub fn ping(target: IpAddr, sequence: u16, payload: &[u8], limit: Duration) -> Result<()> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))
        .context("cannot create a raw ICMP socket")?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    let echo = IcmpEchoHeader { id: 0x51ce, seq: sequence };
    let header = match target {
        IpAddr::V4(_) => {
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload).to_bytes().to_vec()
        }
        // The kernel computes the checksum.
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
        ensure!(!left.is_zero(), "no reply from {target} to a payload of {} bytes", payload.len());
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = socket.read(&mut buffer) else { continue };
        let matched = match target {
            IpAddr::V4(_) => reply_v4(&buffer[..length], echo)?,
            IpAddr::V6(_) => reply_v6(&buffer[..length], echo)?,
        };
        if let Some(reply) = matched {
            ensure!(
                reply == payload,
                "the reply from {target} has another payload: {} bytes for {}",
                reply.len(),
                payload.len()
            );
            return Ok(());
        }
    }
}

/// The payload of the reply in an IPv4 packet; `None` for another message.
fn reply_v4(packet: &[u8], echo: IcmpEchoHeader) -> Result<Option<&[u8]>> {
    let ip = Ipv4HeaderSlice::from_slice(packet)?;
    let message = &packet[ip.slice().len()..];
    let icmp = Icmpv4Slice::from_slice(message)?;
    if icmp.icmp_type() != Icmpv4Type::EchoReply(echo) {
        return Ok(None);
    }
    let sum = Sum16BitWords::new().add_slice(message).ones_complement();
    ensure!(sum == 0, "the reply has a wrong checksum: {message:02x?}");
    ensure!(ip.ttl() == 63, "the reply has TTL {} instead of 63", ip.ttl());
    Ok(Some(&message[8..]))
}

/// The payload of the reply in an ICMPv6 message whose checksum the kernel has verified; `None` for
/// another message.
fn reply_v6(message: &[u8], echo: IcmpEchoHeader) -> Result<Option<&[u8]>> {
    let icmp = Icmpv6Slice::from_slice(message)?;
    Ok((icmp.icmp_type() == Icmpv6Type::EchoReply(echo)).then(|| &message[8..]))
}

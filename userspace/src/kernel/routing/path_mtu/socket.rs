//! Raw sockets that receive ICMP errors about encapsulated packets. Socket filters discard
//! everything else, so that it does not wake the daemon.
#![expect(unsafe_code, reason = "registers a descriptor with tokio")]

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{SockaddrStorage, recvfrom};
use sluice_datapath::Family;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::time::{Instant, sleep_until};

use super::error::{Malformed, TooBigError};

/// Errors that are read at a time. Then none are read for [`PAUSE`], and the kernel drops those
/// that exceed the socket buffer.
const MAX_ERRORS: usize = 64;

/// The pause between reads, so that a flood of errors cannot occupy the daemon.
const PAUSE: Duration = Duration::from_millis(100);

/// More than the length of any error: 576 bytes (RFC 1812 section 4.3.2.3) or 1280 (RFC 4443
/// section 2.4).
const MAX_LENGTH: usize = 2048;

/// A received error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathError {
    /// The source address, which may be forged.
    pub from: IpAddr,
    /// The parsed error.
    pub error: Result<TooBigError, Malformed>,
}

/// The sockets.
#[derive(Debug, Default)]
pub struct Listener {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
    /// When the next errors may be read.
    resume: Option<Instant>,
}

impl Listener {
    /// Listens for errors about outer packets of these families, including UDP to `gue_port`.
    /// Replaces the earlier selection.
    ///
    /// Returns the families whose socket cannot be opened, with the error. Raw sockets need
    /// `CAP_NET_RAW`.
    pub fn listen(&mut self, v4: bool, v6: bool, gue_port: u16) -> Vec<(Family, io::Error)> {
        let mut refused = Vec::new();
        for (family, wanted, socket) in
            [(Family::V4, v4, &mut self.v4), (Family::V6, v6, &mut self.v6)]
        {
            if !wanted {
                *socket = None;
                continue;
            }
            let listens = match socket {
                Some(socket) => set_filter(family, socket.get_ref(), gue_port),
                None => open(family, gue_port).map(|opened| *socket = Some(opened)),
            };
            if let Err(error) = listens {
                refused.push((family, error));
            }
        }
        refused
    }

    /// Waits for errors. Dropping the future loses none.
    pub async fn next(&mut self) -> Vec<PathError> {
        loop {
            if let Some(resume) = self.resume {
                sleep_until(resume).await;
            }
            let (family, mut ready) = tokio::select! {
                ready = readable(self.v4.as_ref()) => (Family::V4, ready),
                ready = readable(self.v6.as_ref()) => (Family::V6, ready),
            };
            self.resume = Some(Instant::now() + PAUSE);
            let errors = read(family, &mut ready);
            if !errors.is_empty() {
                return errors;
            }
        }
    }
}

/// Sets or replaces the socket's filter.
fn set_filter(family: Family, socket: &Socket, gue_port: u16) -> io::Result<()> {
    match family {
        Family::V4 => socket.attach_filter(&filter_v4(gue_port)),
        Family::V6 => socket.attach_filter(&filter_v6(gue_port)),
    }
}

fn open(family: Family, gue_port: u16) -> io::Result<AsyncFd<Socket>> {
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    set_filter(family, &socket, gue_port)?;
    socket.set_nonblocking(true)?;
    // SAFETY: the socket owns its descriptor, which stays open until the socket is dropped,
    // together with the `AsyncFd`.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(watched?)
}

/// Waits until the socket is readable; forever without a socket.
async fn readable(socket: Option<&AsyncFd<Socket>>) -> AsyncFdReadyGuard<'_, Socket> {
    if let Some(socket) = socket
        && let Ok(ready) = socket.readable().await
    {
        return ready;
    }
    std::future::pending().await
}

/// Reads pending errors, at most [`MAX_ERRORS`].
fn read(family: Family, ready: &mut AsyncFdReadyGuard<'_, Socket>) -> Vec<PathError> {
    let mut buffer = [0; MAX_LENGTH];
    let mut errors = Vec::new();
    while errors.len() < MAX_ERRORS {
        let received = ready.try_io(|socket| {
            Ok(recvfrom::<SockaddrStorage>(socket.get_ref().as_raw_fd(), &mut buffer)?)
        });
        let Ok(Ok((length, Some(from)))) = received else { break };
        let message = &buffer[..length.min(MAX_LENGTH)];
        let (from, error) = match family {
            Family::V4 => (
                from.as_sockaddr_in().map(|from| from.ip().into()),
                TooBigError::from_ipv4(message),
            ),
            Family::V6 => (
                from.as_sockaddr_in6().map(|from| from.ip().into()),
                TooBigError::from_icmpv6(message),
            ),
        };
        if let Some(from) = from {
            errors.push(PathError { from, error });
        }
    }
    errors
}

// Classic BPF filters. A load beyond the end of a message discards it.

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE_INDIRECT: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const LOAD_HALF_INDIRECT: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
const LOAD_HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Accepts "fragmentation needed" about IP-in-IP packets or UDP to `gue_port`. Offsets start at the
/// IPv4 header.
const fn filter_v4(gue_port: u16) -> [SockFilter; 11] {
    [
        SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 0),
        // Type 3, code 4.
        SockFilter::new(LOAD_HALF_INDIRECT, 0, 0, 0),
        SockFilter::new(JUMP_IF_EQUAL, 0, 7, 0x0304),
        // The quoted header's protocol.
        SockFilter::new(LOAD_BYTE_INDIRECT, 0, 0, 8 + 9),
        SockFilter::new(JUMP_IF_EQUAL, 4, 0, 4),
        SockFilter::new(JUMP_IF_EQUAL, 3, 0, 41),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, 17),
        // The quoted destination port.
        SockFilter::new(LOAD_HALF_INDIRECT, 0, 0, 8 + 20 + 2),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, gue_port as u32),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Accepts "packet too big" about IP-in-IPv6 packets or UDP to `gue_port`. Offsets start at the
/// ICMPv6 header.
const fn filter_v6(gue_port: u16) -> [SockFilter; 10] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(JUMP_IF_EQUAL, 0, 7, 2),
        SockFilter::new(LOAD_BYTE, 0, 0, 8 + 6),
        SockFilter::new(JUMP_IF_EQUAL, 4, 0, 4),
        SockFilter::new(JUMP_IF_EQUAL, 3, 0, 41),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 8 + 40 + 2),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, gue_port as u32),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

//! Frames sent to an interface through its veth peer.
#![expect(unsafe_code, reason = "calls libc for packet sockets")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use crate::fixture::wait_until;
use crate::support::run;

/// Sends a TCP segment from one end of a veth pair to the MAC address of the other end.
pub(crate) fn send_segment(from: &str, to: &str, client: Ipv4Addr, vip: SocketAddrV4) {
    send_frame(from, &segment(to, client, vip));
}

/// A frame with a TCP segment to the MAC address of an interface.
pub(crate) fn segment(to: &str, client: Ipv4Addr, vip: SocketAddrV4) -> Vec<u8> {
    let mut frame = mac_address(to).to_vec();
    frame.extend([0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(client.octets());
    frame.extend(vip.ip().octets());
    frame.extend(40_001u16.to_be_bytes());
    frame.extend(vip.port().to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    frame
}

/// A UDP socket at an address, with a limit for receiving. An earlier socket there may still be
/// open in a process that another test has just forked.
pub(crate) fn udp_server(address: SocketAddr) -> UdpSocket {
    let mut server = None;
    wait_until("the address is free", || {
        server = UdpSocket::bind(address).ok();
        server.is_some()
    });
    let server = server.expect("the socket is bound");
    server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    server
}

/// Sends a frame from one end of a veth pair.
pub(crate) fn send_frame(from: &str, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex(from).expect("the interface exists");
    // SAFETY: the call takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "cannot create a packet socket");
    // SAFETY: the descriptor is valid and not owned elsewhere.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero bytes are a valid value of this C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the lengths are those of the frame and the address, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    assert_eq!(sent, frame.len() as isize, "the whole frame is sent");
}

/// An interface's MAC address.
pub(crate) fn mac_address(interface: &str) -> [u8; 6] {
    let shown = run(&format!("ip -o link show {interface}"));
    let text = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .expect("a MAC address");
    let mut bytes = [0; 6];
    for (byte, digits) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).expect("two hexadecimal digits");
    }
    bytes
}

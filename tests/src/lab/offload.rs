//! Device offloads, set by the ioctl of ethtool(8), because the program may not be installed.
#![expect(unsafe_code, reason = "calls ioctl(2)")]

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct ethtool_value` of the kernel's `uapi/linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Sets TX checksum offload of an interface in the network namespace of the calling thread. Without
/// it the kernel completes checksums and segments GSO packets before the device gets them.
pub fn set_tx_checksum(interface: &str, on: bool) -> Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;

    set(interface, ETHTOOL_STXCSUM, on)
        .with_context(|| format!("cannot set TX checksum offload of {interface}"))
}

/// Enables TSO, GSO and GRO of an interface in the network namespace of the calling thread.
pub fn enable_gso_and_gro(interface: &str) -> Result<()> {
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGSO: u32 = 0x24;
    const ETHTOOL_SGRO: u32 = 0x2c;

    for (command, name) in [(ETHTOOL_STSO, "TSO"), (ETHTOOL_SGSO, "GSO"), (ETHTOOL_SGRO, "GRO")] {
        set(interface, command, true)
            .with_context(|| format!("cannot enable {name} of {interface}"))?;
    }
    Ok(())
}

fn set(interface: &str, command: u32, on: bool) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { command, data: u32::from(on) };
    // SAFETY: all zero bytes are a valid value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(interface.len() < request.ifr_name.len(), "interface name {interface:?} is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `ifr_data` points to the `ethtool_value` that these commands take; both outlive the
    // call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    Errno::result(result)?;
    Ok(())
}

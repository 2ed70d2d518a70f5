//! What a device computes for the kernel, switched by the ioctl of ethtool(8), which the hosts of a
//! lab may not have.

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd as _;

/// `struct ethtool_value` of the kernel's `uapi/linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches whether the device fills in checksums of packets that it sends, in the network
/// namespace of the calling thread. Where it does not, the kernel does so before; and it cuts
/// packets before, too.
///
/// # Errors
///
/// What the kernel refused.
pub fn set_checksumming(interface: &str, on: bool) -> Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;

    set(interface, ETHTOOL_STXCSUM, on)
        .with_context(|| format!("cannot switch the checksumming of {interface}"))
}

/// Has the kernel leave it to the device to cut what it sends (TSO, GSO), and merge what it
/// receives (GRO), in the network namespace of the calling thread.
///
/// # Errors
///
/// What the kernel refused.
pub fn merge(interface: &str) -> Result<()> {
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGSO: u32 = 0x24;
    const ETHTOOL_SGRO: u32 = 0x2c;

    for (command, name) in [(ETHTOOL_STSO, "TSO"), (ETHTOOL_SGSO, "GSO"), (ETHTOOL_SGRO, "GRO")] {
        set(interface, command, true)
            .with_context(|| format!("cannot switch on {name} of {interface}"))?;
    }
    Ok(())
}

fn set(interface: &str, command: u32, on: bool) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { command, data: u32::from(on) };
    // SAFETY: all zero is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(
        interface.len() < request.ifr_name.len(),
        "{interface:?} is too long for an interface's name"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names a value of the size that its command says; both are live and ours.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    Errno::result(result)?;
    Ok(())
}

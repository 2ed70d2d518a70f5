//! A route out of a test's network namespace.

use std::process::Command;

use anyhow::{Context as _, ensure};

/// Link address of the device `out`.
pub const OWN: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x01];
/// Link address of the next hop of all routes.
pub const NEIGHBOUR: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 0x02];

/// Creates the veth device `out` with forwarding enabled and routes to all backends through a
/// static neighbour in each family. Returns its index.
pub fn route_out() -> anyhow::Result<u32> {
    for arguments in [
        "link add out address 02:00:00:00:aa:01 type veth peer name far",
        "link set far up",
        "link set out up",
        "address add 192.0.2.1/24 dev out",
        "address add 2001:db8:ffff::1/64 dev out nodad",
        "route add 10.0.1.0/24 via 192.0.2.9",
        "route add 2001:db8:2::/64 via 2001:db8:ffff::9",
        "neigh add 192.0.2.9 lladdr 02:00:00:00:aa:02 dev out nud permanent",
        "neigh add 2001:db8:ffff::9 lladdr 02:00:00:00:aa:02 dev out nud permanent",
    ] {
        let output =
            Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip")?;
        ensure!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // Each thread sees the settings of its own network namespace.
    for setting in
        ["/proc/sys/net/ipv4/conf/all/forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"]
    {
        std::fs::write(setting, "1").with_context(|| setting.to_owned())?;
    }
    nix::net::if_::if_nametoindex("out").context("there is no device `out`")
}

//! A network namespace with a name.

use crate::support::{run, try_run};

/// A network namespace that `ip netns` knows, in the test's `/run`. Removed on drop.
pub(crate) struct NamedNamespace {
    name: &'static str,
}

impl NamedNamespace {
    /// Creates it, with an interface `eth0` that has the address of the fixture.
    pub(crate) fn new(name: &'static str) -> Self {
        run(&format!("ip netns add {name}"));
        let namespace = Self { name };
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name far",
            "link set eth0 addrgenmode none",
            "link set far addrgenmode none",
            "link set eth0 up",
            "link set far up",
            "addr add 10.0.0.1/16 dev eth0",
        ] {
            run(&format!("ip -n {name} {command}"));
        }
        namespace
    }

    /// The command that runs another one in the network namespace, with the test's mounts.
    pub(crate) fn nsenter(&self) -> String {
        format!("nsenter --net=/run/netns/{}", self.name)
    }
}

impl Drop for NamedNamespace {
    fn drop(&mut self) {
        let _ = try_run(&format!("ip netns del {}", self.name));
    }
}

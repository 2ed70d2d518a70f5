//! The part of the configuration that applies to a backend.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use sluice_control::config::{self, Config};

use super::clamping::Clamping;
use crate::args::BackendArgs;
use crate::daemon::presence::InterfaceList;

/// The part of the configuration that applies to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The backend's name.
    pub(super) name: String,
    /// The place of the backend's addresses in the configuration file, for errors.
    pub(super) place: String,
    /// The backend's addresses.
    pub(super) local: Vec<IpAddr>,
    /// The VIP addresses and prefixes of the services with this backend. Those where its weight is
    /// 0 are included, because it may still have their connections.
    pub(super) vips: Vec<IpNet>,
    /// The interfaces on which encapsulated packets arrive.
    pub(super) interfaces: Vec<String>,
    /// The place that names them.
    pub(super) list: InterfaceList,
    /// The accepted sources of outer headers; empty for any.
    pub(super) balancers: Vec<IpNet>,
    /// The port of GUE, if a service with this backend uses GUE.
    pub(super) gue_port: Option<u16>,
    /// Whether strict reverse-path filtering of the interfaces stays.
    pub(super) keep_rp_filter: bool,
    /// How the MSS option is clamped; `None` if it is not.
    pub(super) clamping: Option<Clamping>,
}

impl Assignment {
    /// Finds the backend that this host is, by `--name` or by the host's addresses.
    pub(super) fn find(
        args: &BackendArgs,
        config: &Config,
        own: &[IpAddr],
    ) -> Result<Self, anyhow::Error> {
        let position = match &args.name {
            Some(name) => {
                config.backends().iter().position(|backend| backend.name() == name).ok_or_else(
                    || {
                        anyhow!(
                            "{}: there is no backend {name:?}; --name must be one of backends[]",
                            args.config.display()
                        )
                    },
                )?
            }
            None => by_address(config, own).with_context(|| args.config.display().to_string())?,
        };
        let backend = &config.backends()[position];
        let has_backend = |service: &&config::ServiceConfig| {
            service.backends().iter().any(|listed| listed.backend() == position)
        };
        // Packets to a service's VIPs also arrive at the backends of the services that its routes
        // point to.
        let routes_here = |service: &config::ServiceConfig| {
            service.routes().iter().any(|to| has_backend(&&config.services()[to.service]))
        };
        let services = || {
            config.services().iter().filter(|service| has_backend(service) || routes_here(service))
        };
        // The encapsulation is that of the service with the backend.
        let own = config.services().iter().filter(has_backend);
        let overhead = own.map(|service| service.encapsulation().overhead()).max().unwrap_or(0);
        let vips: BTreeSet<IpNet> =
            services().flat_map(|service| service.vips()).map(|vip| vip.prefix()).collect();
        Ok(Self {
            name: backend.name().to_owned(),
            place: format!("{}: backends[{position}].address", args.config.display()),
            local: backend.addresses().collect(),
            list: InterfaceList::of(&args.interfaces, &args.config),
            interfaces: if args.interfaces.is_empty() {
                config.interfaces()
            } else {
                &args.interfaces
            }
            .to_vec(),
            keep_rp_filter: args.keep_rp_filter,
            balancers: config.balancers().to_vec(),
            gue_port: (overhead > 0).then_some(config.underlay().gue_port),
            clamping: Clamping::new(args, config, backend, overhead).filter(|_| !vips.is_empty()),
            vips: vips.into_iter().collect(),
        })
    }
}

fn by_address(config: &Config, own: &[IpAddr]) -> Result<usize, anyhow::Error> {
    let own: HashSet<_> = own.iter().collect();
    let backends = config.backends().iter().enumerate();
    let mine: Vec<usize> = backends
        .filter(|(_, backend)| backend.addresses().any(|address| own.contains(&address)))
        .map(|(position, _)| position)
        .collect();
    match mine[..] {
        [position] => Ok(position),
        [] => Err(anyhow!(
            "no backend has an address of this host; add this host to backends[], or use --name"
        )),
        [first, second, ..] => {
            let name = |position: usize| config.backends()[position].name();
            Err(anyhow!(
                "this host has the addresses of both {} and {}; use --name",
                name(first),
                name(second)
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::args::WaitArgs;

    fn config() -> Config {
        let text = r#"{ "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" }, "hash_key_file": "/k",
            "backends": [ { "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" },
                          { "name": "idle", "address": "10.0.1.3" } ],
            "services": [
                { "name": "one", "vips": ["203.0.113.1:80/tcp", "203.0.113.1:443/tcp"], "backends": [ { "name": "a" } ] },
                { "name": "two", "vips": ["203.0.113.2:80/tcp"],
                  "backends": [ { "name": "a", "weight": 1 }, { "name": "b", "weight": 0 } ] } ] }"#;
        Config::parse(text, Path::new("edge.json")).unwrap()
    }

    fn args(name: Option<&str>, interfaces: &[&str]) -> BackendArgs {
        BackendArgs {
            keep_rp_filter: false,
            config: PathBuf::from("edge.json"),
            name: name.map(str::to_owned),
            ephemeral: false,
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            reply_interfaces: Vec::new(),
            mtu: None,
            wait: WaitArgs::none(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_backend_is_found_by_its_address_with_the_vips_of_all_its_services() {
        let assignment =
            Assignment::find(&args(None, &[]), &config(), &[ip("127.0.0.1"), ip("10.0.1.1")])
                .unwrap();
        assert_eq!(
            (assignment.name.as_str(), &assignment.vips[..]),
            ("a", &[net("203.0.113.1/32"), net("203.0.113.2/32")][..])
        );
        assert_eq!(assignment.interfaces, ["eth0"]);
        // With weight 0 there are no new connections, but there may be old ones.
        let assignment =
            Assignment::find(&args(None, &["ens1"]), &config(), &[ip("10.0.1.2")]).unwrap();
        assert_eq!(
            (assignment.name.as_str(), &assignment.vips[..]),
            ("b", &[net("203.0.113.2/32")][..])
        );
        assert_eq!(assignment.interfaces, ["ens1"]);
        assert!(
            Assignment::find(&args(Some("idle"), &[]), &config(), &[]).unwrap().vips.is_empty()
        );
    }

    #[test]
    fn gue_is_decapsulated_if_a_service_with_the_backend_uses_it() {
        let text = r#"{ "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1", "gue_port": 5555, "mtu": 1500 },
            "hash_key_file": "/k",
            "backends": [ { "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" } ],
            "services": [
                { "name": "one", "vips": ["203.0.113.1:80/tcp"], "backends": [ { "name": "a" }, { "name": "b" } ] },
                { "name": "two", "vips": ["203.0.113.2:80/tcp"], "encapsulation": "gue", "backends": [ { "name": "a" } ] } ] }"#;
        let config = Config::parse(text, Path::new("edge.json")).unwrap();
        let assignment = |name| Assignment::find(&args(Some(name), &[]), &config, &[]).unwrap();
        assert_eq!((assignment("a").gue_port, assignment("b").gue_port), (Some(5555), None));
        assert_ne!(assignment("a").clamping, assignment("b").clamping, "8 bytes less");
    }

    #[test]
    fn a_host_that_is_no_backend_or_two_is_refused() {
        for (args, own, message) in [
            (args(None, &[]), vec![ip("10.9.9.9")], "no backend has an address of this host"),
            (args(None, &[]), vec![ip("10.0.1.1"), ip("10.0.1.2")], "both a and b; use --name"),
            (args(Some("c"), &[]), vec![ip("10.0.1.1")], "there is no backend \"c\""),
        ] {
            let error = format!("{:#}", Assignment::find(&args, &config(), &own).unwrap_err());
            assert!(error.contains(message) && error.contains("edge.json"), "{error}");
        }
    }
}

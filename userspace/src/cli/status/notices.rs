//! Notices that follow from the maps and the interfaces, without the daemon.

use std::collections::BTreeSet;

use sluice_control::step_text::list;

use super::model::{BackendEntry, BackendStatus, LbStatus, ServiceStatus};
use crate::notice::Notice;
use crate::read::daemon::DaemonStatus;
use crate::read::interfaces::InterfaceStatus;

impl LbStatus {
    /// The problems, of this host and of the daemon.
    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        problems(&self.notices, self.daemon.as_ref())
    }
}

impl BackendStatus {
    /// The problems, of this host and of the daemon.
    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        problems(&self.notices, self.daemon.as_ref())
    }
}

fn problems<'a>(
    notices: &'a [Notice],
    daemon: Option<&'a DaemonStatus>,
) -> impl Iterator<Item = &'a str> {
    let state = daemon.and_then(|daemon| daemon.state.as_ref());
    let failing = state.and_then(|state| state.failing.as_deref());
    let listed = state.map_or(&[][..], |state| &state.notices);
    let problems = notices.iter().chain(listed).filter(|notice| notice.is_problem());
    failing.into_iter().chain(problems.map(|notice| notice.text.as_str()))
}

/// The notices about the paths to the backends of services.
pub(super) struct PathNotices {
    pub(super) notices: Vec<Notice>,
    /// Whether there are services, and all packets of all of them are dropped.
    pub(super) all_lost: bool,
}

/// Finds services whose packets are dropped because backends have no next hop over an interface
/// that is up.
pub(super) fn paths(services: &[ServiceStatus], backends: &[BackendEntry]) -> PathNotices {
    let is_reachable = |backend: &&BackendEntry| backend.next_hops.values().any(|hop| hop.up);
    let reachable: BTreeSet<&str> =
        backends.iter().filter(is_reachable).map(|backend| backend.name.as_str()).collect();
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for service in services {
        let slots = service.slots.iter();
        let lost: u32 = slots
            .filter(|(backend, _)| !reachable.contains(backend.as_str()))
            .map(|(_, slots)| *slots)
            .sum();
        if lost >= service.table_size {
            all.push(service.name.clone());
        } else if lost > 0 {
            let percent = 100.0 * f64::from(lost) / f64::from(service.table_size);
            some.push(format!("{} ({percent:.1} % of its slots)", service.name));
        }
    }
    let notice = |what: &str, services: &[String]| {
        let named = list(services.iter().cloned());
        let text = format!(
            "{what} are dropped, because there is no route to backends, or its interface is down: \
             service {named}"
        );
        (!services.is_empty()).then(|| Notice::problem(text))
    };
    PathNotices {
        all_lost: !services.is_empty() && all.len() == services.len(),
        notices: [notice("all packets", &all), notice("some packets", &some)]
            .into_iter()
            .flatten()
            .collect(),
    }
}

/// The notices about programs and filters that run before ours.
pub(super) fn predecessors(interfaces: &[InterfaceStatus]) -> Vec<Notice> {
    let foreign = interfaces.iter().flat_map(|interface| {
        let foreign = interface.predecessors.iter().filter(|found| !found.is_sluice());
        foreign.map(move |predecessor| (&interface.name, predecessor))
    });
    let notices = foreign.map(|(name, predecessor)| {
        Notice::warning(format!(
            "on {name}, {predecessor} runs first and can end the path of packets"
        ))
    });
    notices.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::read::next_hops::NextHopStatus;

    fn service(name: &str, slots: &[(&str, u32)]) -> ServiceStatus {
        ServiceStatus {
            name: name.to_owned(),
            vips: Vec::new(),
            routes: BTreeMap::new(),
            server_ids: BTreeMap::new(),
            tracked: false,
            generation: 1,
            table_digest: String::new(),
            table_size: slots.iter().map(|(_, slots)| slots).sum(),
            slots: slots.iter().map(|(name, slots)| ((*name).to_owned(), *slots)).collect(),
        }
    }

    fn backend(name: &str, up: Option<bool>) -> BackendEntry {
        let address = IpAddr::from([10, 0, 1, 1]);
        let hop = |up| NextHopStatus { interface: "eth0".to_owned(), gateway: None, mtu: 1500, up };
        BackendEntry {
            name: name.to_owned(),
            addresses: vec![address],
            draining: false,
            next_hops: up.map(|up| (address, hop(up))).into_iter().collect(),
            path_mtus: BTreeMap::new(),
        }
    }

    fn texts(paths: &PathNotices) -> Vec<&str> {
        paths.notices.iter().map(|notice| notice.text.as_str()).collect()
    }

    #[test]
    fn services_without_a_path_are_problems() {
        let backends = [backend("a", Some(true)), backend("b", Some(false)), backend("c", None)];
        let good = service("good", &[("a", 10)]);
        let none = paths(std::slice::from_ref(&good), &backends);
        assert_eq!((texts(&none).len(), none.all_lost), (0, false));
        let lost = service("lost", &[("b", 5), ("c", 5)]);
        let mixed = paths(&[good, lost, service("half", &[("a", 5), ("c", 5)])], &backends);
        let [all, some] = texts(&mixed)[..] else { panic!("{:?}", mixed.notices) };
        assert!(all.starts_with("all packets") && all.ends_with(": service lost"), "{all}");
        assert!(some.ends_with(": service half (50.0 % of its slots)"), "{some}");
        assert!(!mixed.all_lost);
        assert!(paths(&[service("lost", &[("c", 5)])], &backends).all_lost);
        assert!(!paths(&[], &backends).all_lost);
    }
}

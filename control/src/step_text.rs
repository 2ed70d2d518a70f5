//! The steps of a plan as text for the log, with the names of services and backends.

use std::collections::{BTreeMap, BTreeSet};

use crate::have::Have;
use crate::service_table::ServiceTable;
use crate::step::{NewTable, Step};

/// The number of names that a line lists.
const SHOWN: usize = 10;

/// Describes the steps of a plan.
pub struct StepText<'a> {
    have: &'a Have,
    /// The names of services, by index.
    services: BTreeMap<u32, &'a str>,
    /// The names of backends, by index.
    backends: BTreeMap<u16, &'a str>,
}

impl<'a> StepText<'a> {
    /// Collects the names from the state of the maps and from the steps that add to it.
    pub fn new(have: &'a Have, steps: &'a [Step]) -> Self {
        let named = have.services.iter();
        let mut services: BTreeMap<_, _> =
            named.filter_map(|(index, has)| Some((*index, has.name.as_deref()?))).collect();
        let named = have.backends.iter();
        let mut backends: BTreeMap<_, _> =
            named.filter_map(|(index, has)| Some((*index, has.name.as_deref()?))).collect();
        for step in steps {
            match step {
                Step::AddBackends(new) => {
                    backends.extend(new.iter().map(|new| (new.index, new.name.as_str())));
                }
                Step::ReplaceTables(new) => {
                    services.extend(new.iter().map(|new| (new.service, new.name.as_str())));
                }
                _ => {}
            }
        }
        Self { have, services, backends }
    }

    /// A step as an imperative sentence, in lower case and without a full stop.
    pub fn describe(&self, step: &Step) -> String {
        match step {
            Step::AddBackends(new) => {
                format!("add backends {}", list(new.iter().map(|new| new.name.clone())))
            }
            Step::SetDraining(changed) => self.draining(changed),
            Step::ReplaceTables(new) => format!(
                "replace the lookup tables of {}",
                list(new.iter().map(|new| self.replaced(new)))
            ),
            Step::PutRoutes(routes) => format!(
                "add or change {} routes of {}",
                routes.len(),
                self.of_services(routes.iter().map(|(key, _)| key.service))
            ),
            Step::RemoveRoutes(keys) => format!(
                "remove {} routes of {}",
                keys.len(),
                self.of_services(keys.iter().map(|key| key.service))
            ),
            Step::PutServerIds { servers, lengths } => {
                let of_servers = servers.iter().map(|(key, _)| key.service);
                let of_lengths = lengths.iter().map(|(service, _)| *service);
                format!(
                    "add or change {} QUIC server IDs of {}",
                    servers.len(),
                    self.of_services(of_servers.chain(of_lengths))
                )
            }
            Step::RemoveServerIds { servers, services } => {
                let of_servers = servers.iter().map(|key| key.service);
                format!(
                    "remove {} QUIC server IDs of {}",
                    servers.len(),
                    self.of_services(of_servers.chain(services.iter().copied()))
                )
            }
            Step::ClearCachedVips(addresses) => format!(
                "clear the cached VIPs of {}",
                list(addresses.iter().map(|(address, _)| address.to_string()))
            ),
            Step::PutVips { addresses, vips } => {
                let mut parts = Vec::new();
                if !vips.is_empty() {
                    let services = self.of_services(vips.iter().map(|(_, service)| service.index));
                    parts.push(format!("{} VIPs of {services}", vips.len()));
                }
                if !addresses.is_empty() {
                    let addresses = addresses.iter().map(|(address, _)| address.to_string());
                    parts.push(format!("VIP addresses {}", list(addresses)));
                }
                format!("add or change {}", parts.join(" and "))
            }
            Step::RemoveVips { vips, addresses } => {
                let mut parts = Vec::new();
                if !vips.is_empty() {
                    let service = |key| self.have.vips.get(key).map(|service| service.index);
                    let services = self.of_services(vips.iter().filter_map(service));
                    parts.push(format!("{} VIPs of {services}", vips.len()));
                }
                if !addresses.is_empty() {
                    let addresses = addresses.iter().map(ToString::to_string);
                    parts.push(format!("VIP addresses {}", list(addresses)));
                }
                format!("remove {}", parts.join(" and "))
            }
            Step::RetireServices(indexes) => {
                format!("retire services {}", self.of_services(indexes.iter().copied()))
            }
            Step::RetireBackends(indexes) => {
                format!(
                    "retire backends {}",
                    list(indexes.iter().map(|index| self.backend(*index)))
                )
            }
        }
    }

    fn draining(&self, changed: &[(u16, bool)]) -> String {
        let with = |draining: bool| {
            let set = changed.iter().filter(move |(_, set)| *set == draining);
            list(set.map(|(index, _)| self.backend(*index)))
        };
        let parts = [("start to drain", with(true)), ("stop draining", with(false))];
        let parts = parts.iter().filter(|(_, backends)| !backends.is_empty());
        parts.map(|(verb, names)| format!("{verb} {names}")).collect::<Vec<_>>().join("; ")
    }

    /// A service whose table is replaced, and the share of its slots that move.
    fn replaced(&self, new: &NewTable) -> String {
        let name = &new.name;
        let before = self.have.services.get(&new.service).and_then(|has| has.table.as_ref());
        let Some(before) = before.filter(|_| !new.created) else { return format!("{name} (new)") };
        let (was, is) = (before.slots.len(), new.table.slots.len());
        if was != is {
            return format!("{name} (from {was} to {is} slots)");
        }
        let share = moved(before, &new.table) as f64 * 100.0 / is.max(1) as f64;
        format!("{name} ({share:.1} % of its slots move)")
    }

    /// The names of services, each once.
    fn of_services(&self, indexes: impl Iterator<Item = u32>) -> String {
        let indexes: BTreeSet<u32> = indexes.collect();
        list(indexes.into_iter().map(|index| name(self.services.get(&index), index)))
    }

    fn backend(&self, index: u16) -> String {
        name(self.backends.get(&index), index.into())
    }
}

/// The number of slots that another backend owns.
fn moved(before: &ServiceTable, after: &ServiceTable) -> usize {
    let slots = before.slots.iter().zip(&after.slots);
    slots.filter(|(before, after)| before.backend != after.backend).count()
}

/// A name, or the index of what has none.
fn name(name: Option<&&str>, index: u32) -> String {
    name.map_or_else(|| unnamed(index), |name| (*name).to_owned())
}

/// The text for the index of a service, backend or interface that has no name (any more).
pub fn unnamed(index: u32) -> String {
    format!("(index {index})")
}

/// The first items, and the number of the others.
pub fn list(mut items: impl Iterator<Item = String>) -> String {
    let shown = items.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    match items.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use sluice_datapath::Address;
    use sluice_datapath::abi::{Backend, Port, ServiceRef, Slot, TableHead, VipKey, VipOptions};

    use super::*;
    use crate::have::{HaveBackend, HaveService};
    use crate::step::NewBackend;

    const ENTRY: Backend = Backend { v4: Address::NONE, v6: Address::NONE, epoch: 1 };

    fn table(owners: &[u16]) -> ServiceTable {
        ServiceTable {
            head: TableHead { slots: owners.len() as u32, tracked: false },
            generation: 1,
            digest: 0,
            slots: owners.iter().map(|owner| Slot { backend: *owner, hint: 0 }).collect(),
        }
    }

    fn have() -> Have {
        let backend = |name: &str| HaveBackend {
            name: Some(name.to_owned()),
            entry: ENTRY,
            epoch: 1,
            draining: false,
            reusable_after: 0,
        };
        let web = HaveService {
            name: Some("web".to_owned()),
            table: Some(table(&[1, 1, 2, 2])),
            reusable_after: 0,
        };
        let vip = VipKey::new(1, Port::new(80), 6);
        Have {
            backends: [(1, backend("a")), (2, backend("b"))].into(),
            services: [(1, web)].into(),
            vips: [(vip, ServiceRef { index: 1, options: VipOptions::NONE })].into(),
            ..Have::default()
        }
    }

    fn describe(step: &Step) -> String {
        let have = have();
        StepText::new(&have, std::slice::from_ref(step)).describe(step)
    }

    #[test]
    fn ten_names_and_the_number_of_others_are_listed() {
        let step = |count: u16| {
            let name = |index| format!("n{index}");
            let new =
                |index| NewBackend { index, name: name(index), entry: ENTRY, draining: false };
            Step::AddBackends((1..=count).map(new).collect())
        };
        assert_eq!(describe(&step(2)), "add backends n1, n2");
        assert_eq!(
            describe(&step(12)),
            "add backends n1, n2, n3, n4, n5, n6, n7, n8, n9, n10 and 2 more"
        );
    }

    #[test]
    fn a_replaced_table_has_the_share_of_slots_that_move() {
        let replace = |service, name: &str, created, owners: &[u16]| {
            let new = NewTable { service, name: name.to_owned(), created, table: table(owners) };
            describe(&Step::ReplaceTables(vec![new]))
        };
        assert_eq!(
            replace(1, "web", false, &[1, 2, 2, 2]),
            "replace the lookup tables of web (25.0 % of its slots move)"
        );
        assert_eq!(
            replace(1, "web", false, &[1, 2]),
            "replace the lookup tables of web (from 4 to 2 slots)"
        );
        assert_eq!(replace(2, "dns", true, &[1]), "replace the lookup tables of dns (new)");
    }

    #[test]
    fn backends_and_services_have_their_names() {
        let draining = Step::SetDraining(vec![(1, true), (2, false)]);
        assert_eq!(describe(&draining), "start to drain a; stop draining b");
        assert_eq!(describe(&Step::RetireBackends(vec![2, 7])), "retire backends b, (index 7)");
        assert_eq!(describe(&Step::RetireServices(vec![1])), "retire services web");
        let vips = vec![VipKey::new(1, Port::new(80), 6)];
        let addresses = vec!["203.0.113.1/32".parse().unwrap()];
        assert_eq!(
            describe(&Step::RemoveVips { vips, addresses }),
            "remove 1 VIPs of web and VIP addresses 203.0.113.1/32"
        );
    }
}

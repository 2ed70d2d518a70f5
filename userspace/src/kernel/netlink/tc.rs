//! The clsact qdisc and the BPF filters on it.
//!
//! An interface has one qdisc with handle `ffff:`: `clsact` (both directions), or the older
//! `ingress`. Ingress filters work on both. The kernel ignores the direction on an `ingress` qdisc,
//! so a filter added to its "egress" side silently sees *ingress* packets. Every egress operation
//! therefore checks first which qdisc it is.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};

use super::direction::Direction;
use super::{Error, Mode, Netlink, interface_name};

/// `ETH_P_ALL`: the filter sees every packet, VLAN-tagged ones too.
const ETH_P_ALL: u16 = 0x0003;
/// The handle of Sluice's filter within its priority. A fixed handle makes replacement atomic.
const FILTER_HANDLE: u32 = 1;
/// The start of the names of Sluice's filters, which the role and the instance follow.
const OUR_FILTERS: &str = "sluice_";
const CLSACT: &str = "clsact";
const INGRESS: &str = "ingress";

impl Direction {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// The outcome of [`Netlink::ensure_clsact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clsact {
    /// The qdisc was created.
    Created,
    /// A clsact qdisc existed.
    Existed,
    /// An `ingress` qdisc existed: ingress filters work on it, egress filters do not.
    IngressOnly,
}

/// A filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The priority ("pref"): filters run in ascending order.
    pub priority: u16,
    /// The handle within the priority; 0 for a classifier without an element.
    pub handle: u32,
    /// The EtherType it matches, host byte order; 3 is all of them.
    pub protocol: u16,
    /// The chain; 0 by default.
    pub chain: u32,
    /// The classifier: "bpf", "flower", "u32", ...
    pub kind: String,
    /// The name of a BPF filter, set by the program that added it.
    pub bpf_name: Option<String>,
    /// The program ID of a BPF filter.
    pub program_id: Option<u32>,
}

impl Filter {
    /// The instance of Sluice that the filter belongs to, by its name.
    fn instance(&self) -> Option<&str> {
        let (_, instance) = self.bpf_name.as_deref()?.strip_prefix(OUR_FILTERS)?.split_once(':')?;
        Some(instance)
    }
}

/// Whether a filter with this name is Sluice's.
pub(crate) fn is_sluice_filter(name: &str) -> bool {
    name.starts_with(OUR_FILTERS)
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bpf_name {
            Some(name) => write!(f, "{} filter \"{name}\"", self.kind)?,
            None => write!(f, "a {} filter", self.kind)?,
        }
        if let Some(instance) = self.instance() {
            write!(f, " of the instance {instance} of Sluice")?;
        }
        write!(f, " (handle {:#x}, protocol {:#06x})", self.handle, self.protocol)
    }
}

/// Identifies a filter of Sluice by its name and priority. The rest is fixed: all protocols, direct
/// action, handle 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// The filter's name, as `tc filter show` prints it.
    pub name: String,
    /// The filter's priority, from 1; filters run in ascending order.
    pub priority: u16,
}

impl FilterSpec {
    /// Whether the filter has this name and priority.
    pub fn owns(&self, filter: &Filter) -> bool {
        filter.kind == TcFilterBpf::KIND
            && filter.bpf_name.as_deref() == Some(&self.name)
            && (filter.priority, filter.handle) == (self.priority, FILTER_HANDLE)
            && (filter.protocol, filter.chain) == (ETH_P_ALL, 0)
    }

    /// Whether another filter occupies the priority.
    fn collides(&self, filter: &Filter) -> bool {
        filter.priority == self.priority && filter.chain == 0 && !self.owns(filter)
    }

    /// Fails with [`Error::Held`] if another one of the filters occupies the priority.
    fn check_free(&self, index: u32, direction: Direction, all: &[Filter]) -> Result<(), Error> {
        match all.iter().find(|filter| self.collides(filter)) {
            Some(other) => {
                let is_sluice = other.instance().is_some();
                Err(self.held(index, direction, other.to_string(), is_sluice))
            }
            None => Ok(()),
        }
    }

    fn held(&self, index: u32, direction: Direction, holder: String, is_sluice: bool) -> Error {
        Error::Held {
            interface: interface_name(index),
            direction,
            priority: self.priority,
            ours: self.name.clone(),
            holder,
            is_sluice,
        }
    }
}

/// The outcome of [`Netlink::put_filter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A filter was added.
    Created,
    /// The program of the filter was replaced atomically.
    Replaced,
}

/// The outcome of [`Netlink::remove_filter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The filter was removed.
    Removed,
    /// The filter, its qdisc or its interface did not exist.
    Absent,
}

impl Netlink {
    /// Adds a clsact qdisc to an interface unless it has a qdisc for filters. Fails on kernels
    /// without `CONFIG_NET_SCH_INGRESS`.
    pub async fn ensure_clsact(&self, index: u32) -> Result<Clsact, Error> {
        if let Some(found) = self.clsact(index).await? {
            return Ok(found);
        }
        let request = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(index));
        let doing = || format!("add a clsact qdisc to {}", interface_name(index));
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => Ok(Clsact::Created),
            // Another process may have added one in the meantime.
            Err(error) => self.clsact(index).await?.ok_or(error),
        }
    }

    /// The qdisc for filters of an interface: `None`, [`Clsact::Existed`] or
    /// [`Clsact::IngressOnly`].
    pub async fn clsact(&self, index: u32) -> Result<Option<Clsact>, Error> {
        let doing = || format!("list the qdiscs of {}", interface_name(index));
        Ok(self.filter_qdiscs(index, doing).await?.remove(&index))
    }

    /// The interfaces with a qdisc for filters, by index: [`Clsact::Existed`] or
    /// [`Clsact::IngressOnly`].
    pub async fn interfaces_with_filters(&self) -> Result<BTreeMap<u32, Clsact>, Error> {
        self.filter_qdiscs(0, || "list the qdiscs of this host".to_owned()).await
    }

    /// The qdiscs for filters. The kernel lists those of all interfaces, whatever the index.
    async fn filter_qdiscs(
        &self,
        index: u32,
        doing: impl Fn() -> String,
    ) -> Result<BTreeMap<u32, Clsact>, Error> {
        let mut message = TcMessage::default();
        message.header.index = index as i32;
        let request = RouteNetlinkMessage::GetQueueDiscipline(message);
        let answers = self.request(request, Mode::Dump, doing).await?;
        let found = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.parent == TcHandle::CLSACT =>
            {
                let clsact = match kind(message) {
                    CLSACT => Clsact::Existed,
                    INGRESS => Clsact::IngressOnly,
                    _ => return None,
                };
                Some((message.header.index as u32, clsact))
            }
            _ => None,
        });
        Ok(found.collect())
    }

    /// Removes the clsact qdisc of an interface **and all filters on it**: call it only for a qdisc
    /// that Sluice added and that is empty. A missing qdisc or interface is not an error; an
    /// `ingress` qdisc is left alone.
    pub async fn remove_clsact(&self, index: u32) -> Result<(), Error> {
        if self.clsact(index).await? != Some(Clsact::Existed) {
            return Ok(());
        }
        let request = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(index));
        let doing = || format!("remove the clsact qdisc of {}", interface_name(index));
        match self.request(request, Mode::One(0), doing).await {
            Ok(_) => Ok(()),
            // The error for a qdisc that has been removed depends on the kernel version.
            Err(error) => match self.clsact(index).await? {
                Some(Clsact::Existed) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// The filters of one direction of an interface, in the order in which they run; empty without
    /// a qdisc for them.
    pub async fn filters(&self, index: u32, direction: Direction) -> Result<Vec<Filter>, Error> {
        // For the egress side of an `ingress` qdisc the kernel would list the ingress filters.
        if direction == Direction::Egress && self.clsact(index).await? != Some(Clsact::Existed) {
            return Ok(Vec::new());
        }
        let mut message = TcMessage::default();
        message.header.index = index as i32;
        message.header.parent = direction.parent();
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        let doing = || format!("list the {direction} filters of {}", interface_name(index));
        let answers = match self.request(request, Mode::Dump, doing).await {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            other => other?,
        };
        let listed = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message)
                if message.header.index == index as i32 =>
            {
                Some(filter(message))
            }
            _ => None,
        });
        Ok(without_heads(listed.collect()))
    }

    /// Checks that no other filter has the priority of `spec` on an interface.
    ///
    /// # Errors
    /// [`Error::Held`] if another filter has that priority, or the kernel's refusal.
    pub async fn check_place(
        &self,
        index: u32,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<(), Error> {
        spec.check_free(index, direction, &self.filters(index, direction).await?)
    }

    /// Attaches a program to one direction of an interface as the filter `spec`, or atomically
    /// replaces that filter's program.
    ///
    /// # Errors
    /// [`Error::Held`] if another filter has that priority, [`Error::IngressOnly`] for egress on an
    /// `ingress` qdisc, or the kernel's refusal.
    pub async fn put_filter(
        &self,
        index: u32,
        direction: Direction,
        spec: &FilterSpec,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, Error> {
        if direction == Direction::Egress && self.clsact(index).await? == Some(Clsact::IngressOnly)
        {
            return Err(Error::IngressOnly { interface: interface_name(index) });
        }
        let filters = self.filters(index, direction).await?;
        spec.check_free(index, direction, &filters)?;
        let (done, exclusive) = match filters.iter().any(|filter| spec.owns(filter)) {
            true => (Attached::Replaced, 0),
            // A filter added after the listing must not be overwritten.
            false => (Attached::Created, NLM_F_EXCL),
        };
        let mut message = filter_message(index, direction, spec);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(spec.name.clone())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        let doing = || format!("add filter {} to {} {direction}", spec.name, interface_name(index));
        match self.request(request, Mode::One(NLM_F_CREATE | exclusive), doing).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                Err(spec.held(index, direction, "a filter that has just appeared".into(), false))
            }
            other => other.map(|_| done),
        }
    }

    /// Removes the filter `spec`, and no other. A missing filter, qdisc or interface is not an
    /// error.
    pub async fn remove_filter(
        &self,
        index: u32,
        direction: Direction,
        spec: &FilterSpec,
    ) -> Result<Detached, Error> {
        let filters = self.filters(index, direction).await?;
        if !filters.iter().any(|filter| spec.owns(filter)) {
            return Ok(Detached::Absent);
        }
        let request = RouteNetlinkMessage::DelTrafficFilter(filter_message(index, direction, spec));
        let doing =
            || format!("remove filter {} from {} {direction}", spec.name, interface_name(index));
        match self.request(request, Mode::One(0), doing).await {
            Ok(_) => Ok(Detached::Removed),
            Err(error) if is_gone(&error) => Ok(Detached::Absent),
            Err(error) => Err(error),
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV))
}

fn clsact_message(index: u32) -> TcMessage {
    let header = TcHeader {
        index: index as i32,
        handle: TcHandle { major: TcHandle::CLSACT.major, minor: 0 },
        parent: TcHandle::CLSACT,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, vec![TcAttribute::Kind(CLSACT.into())])
}

fn filter_message(index: u32, direction: Direction, spec: &FilterSpec) -> TcMessage {
    let header = TcHeader {
        index: index as i32,
        handle: FILTER_HANDLE.into(),
        parent: direction.parent(),
        // The upper half is the priority in host order, the lower half the protocol in network
        // order.
        info: u32::from(spec.priority) << 16 | u32::from(ETH_P_ALL.to_be()),
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, vec![TcAttribute::Kind(TcFilterBpf::KIND.into())])
}

fn kind(message: &TcMessage) -> &str {
    let kinds = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    kinds.unwrap_or_default()
}

fn filter(message: &TcMessage) -> Filter {
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        protocol: u16::from_be(message.header.info as u16),
        chain: 0,
        kind: kind(message).to_owned(),
        bpf_name: None,
        program_id: None,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Chain(chain) => filter.chain = *chain,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            filter.bpf_name = Some(name.clone())
                        }
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => {
                            filter.program_id = Some(*id)
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}

/// Drops the entry that the kernel lists for a classifier as such (handle 0) where the classifier's
/// elements follow.
fn without_heads(listed: Vec<Filter>) -> Vec<Filter> {
    let place = |filter: &Filter| (filter.chain, filter.priority, filter.protocol);
    let elements: Vec<_> = listed.iter().filter(|filter| filter.handle != 0).map(place).collect();
    listed
        .into_iter()
        .filter(|filter| filter.handle != 0 || !elements.contains(&place(filter)))
        .collect()
}

#[cfg(test)]
mod tests;

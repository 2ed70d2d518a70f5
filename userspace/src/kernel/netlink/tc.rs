//! The clsact qdisc and the BPF filters on it.
//!
//! An interface has room for one qdisc with handle `ffff:`. It is `clsact` (both directions), or
//! the older `ingress`, on which ingress filters work like on clsact, while a filter put on its
//! "egress" side would silently see *ingress* packets: the kernel does not look at the direction
//! there. So every egress operation asks first which of the two it is.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};

use super::{Error, Mode, Netlink, interface_name};

/// `ETH_P_ALL`: the filter sees every packet, VLAN-tagged ones too.
const ETH_P_ALL: u16 = 0x0003;
/// The handle of Sluice's filter within its priority; naming it makes replacing it atomic.
const FILTER_HANDLE: u32 = 1;
const CLSACT: &str = "clsact";
const INGRESS: &str = "ingress";

/// Which packets of an interface a filter sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Those that arrive.
    Ingress,
    /// Those that leave.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl Direction {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// What [`Netlink::ensure_clsact`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clsact {
    /// There was none; there is now.
    Created,
    /// Somebody had made one.
    Existed,
    /// There is an old-style `ingress` qdisc in its place: ingress filters work on it, egress
    /// filters do not.
    IngressOnly,
}

/// A filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its priority ("pref"): smaller numbers see a packet first.
    pub priority: u16,
    /// Its handle within the priority; 0 for a classifier without an element.
    pub handle: u32,
    /// The EtherType it looks at, in host byte order (3 is all of them).
    pub protocol: u16,
    /// The chain it is on: 0, unless somebody builds chains.
    pub chain: u32,
    /// The classifier's kind: "bpf", "flower", "u32", ...
    pub kind: String,
    /// The name given to a BPF filter by whoever put it there.
    pub bpf_name: Option<String>,
    /// The id of a BPF filter's program.
    pub program_id: Option<u32>,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bpf_name {
            Some(name) => write!(f, "{} filter \"{name}\"", self.kind)?,
            None => write!(f, "a {} filter", self.kind)?,
        }
        write!(f, " (handle {:#x}, protocol {:#06x})", self.handle, self.protocol)
    }
}

/// What makes a filter ours: its name and its priority. The rest is fixed (all protocols, direct
/// action, handle 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// The filter's name, as `tc filter show` prints it.
    pub name: String,
    /// The filter's priority, from 1: smaller numbers see a packet first.
    pub priority: u16,
}

impl FilterSpec {
    /// Whether that filter was put there under this name and priority.
    pub fn owns(&self, filter: &Filter) -> bool {
        filter.kind == TcFilterBpf::KIND
            && filter.bpf_name.as_deref() == Some(&self.name)
            && (filter.priority, filter.handle) == (self.priority, FILTER_HANDLE)
            && (filter.protocol, filter.chain) == (ETH_P_ALL, 0)
    }

    /// Whether the filter shares our place, so that ours cannot be put there.
    fn collides(&self, filter: &Filter) -> bool {
        filter.priority == self.priority && filter.chain == 0 && !self.owns(filter)
    }
}

/// What [`Netlink::put_filter`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// There was no filter of ours.
    Created,
    /// Our filter has the new program; every packet met either the old or the new one.
    Replaced,
}

/// What [`Netlink::remove_filter`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// Our filter was there.
    Removed,
    /// Our filter, its qdisc or its interface was gone already.
    Absent,
}

impl Netlink {
    /// Makes sure that filters can be attached to an interface.
    ///
    /// # Errors
    /// The kernel's refusal: without `CONFIG_NET_SCH_INGRESS` it cannot make the qdisc.
    pub async fn ensure_clsact(&self, index: u32) -> Result<Clsact, Error> {
        if let Some(found) = self.clsact(index).await? {
            return Ok(found);
        }
        let request = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(index));
        let doing = || format!("add a clsact qdisc to {}", interface_name(index));
        match self.request(request, Mode::One(NLM_F_CREATE | NLM_F_EXCL), doing).await {
            Ok(_) => Ok(Clsact::Created),
            // Somebody was quicker: whatever they made decides.
            Err(error) => self.clsact(index).await?.ok_or(error),
        }
    }

    /// Which qdisc an interface has for filters: `None`, [`Clsact::Existed`] or
    /// [`Clsact::IngressOnly`].
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
    pub async fn clsact(&self, index: u32) -> Result<Option<Clsact>, Error> {
        let mut message = TcMessage::default();
        message.header.index = index as i32;
        let request = RouteNetlinkMessage::GetQueueDiscipline(message);
        let answers = self
            .request(request, Mode::Dump, || {
                format!("list the qdiscs of {}", interface_name(index))
            })
            .await?;
        let found = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == index as i32
                    && message.header.parent == TcHandle::CLSACT =>
            {
                match kind(message) {
                    CLSACT => Some(Clsact::Existed),
                    INGRESS => Some(Clsact::IngressOnly),
                    _ => None,
                }
            }
            _ => None,
        });
        Ok(found)
    }

    /// Removes an interface's clsact qdisc **with all filters that are on it**: only for one that
    /// is ours and empty.
    ///
    /// # Errors
    /// The kernel's refusal; a qdisc or interface that is gone already is none, nor is an `ingress`
    /// qdisc, which is left alone.
    pub async fn remove_clsact(&self, index: u32) -> Result<(), Error> {
        if self.clsact(index).await? != Some(Clsact::Existed) {
            return Ok(());
        }
        let request = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(index));
        let doing = || format!("remove the clsact qdisc of {}", interface_name(index));
        match self.request(request, Mode::One(0), doing).await {
            Ok(_) => Ok(()),
            // For a qdisc that went meanwhile the kernel's error depends on its version.
            Err(error) => match self.clsact(index).await? {
                Some(Clsact::Existed) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// The filters on one side of an interface, in the order in which they see packets; empty
    /// without a qdisc for them.
    ///
    /// # Errors
    /// The kernel's refusal, or no answer.
    pub async fn filters(&self, index: u32, direction: Direction) -> Result<Vec<Filter>, Error> {
        // Asked for the egress side of an `ingress` qdisc, the kernel would list the ingress
        // filters.
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

    /// Puts a program on one side of an interface as our filter: new, or atomically in place of our
    /// previous program.
    ///
    /// # Errors
    /// [`Error::Held`] when somebody else's filter has that priority, [`Error::IngressOnly`] for
    /// egress on an `ingress` qdisc, or the kernel's refusal.
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
        let held = |holder: String| Error::Held {
            interface: interface_name(index),
            direction,
            priority: spec.priority,
            ours: spec.name.clone(),
            holder,
        };
        let filters = self.filters(index, direction).await?;
        if let Some(other) = filters.iter().find(|filter| spec.collides(filter)) {
            return Err(held(other.to_string()));
        }
        let (done, exclusive) = match filters.iter().any(|filter| spec.owns(filter)) {
            true => (Attached::Replaced, 0),
            // Somebody who takes the place after we looked must not be overwritten.
            false => (Attached::Created, NLM_F_EXCL),
        };
        let mut message = filter_message(index, direction, spec);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(spec.name.clone())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        let doing = || format!("put filter {} on {} {direction}", spec.name, interface_name(index));
        match self.request(request, Mode::One(NLM_F_CREATE | exclusive), doing).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                Err(held("a filter that has just appeared".into()))
            }
            other => other.map(|_| done),
        }
    }

    /// Removes our filter, and no other.
    ///
    /// # Errors
    /// The kernel's refusal; a filter, qdisc or interface that is gone already is none.
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

//! The ingress path of an interface: the programs and filters that run before our program.
//!
//! The kernel runs the XDP program first, then TCX programs (Linux 6.6), then the filters of the
//! clsact qdisc by priority. Each of them can end the path of a packet: an XDP program or a TCX
//! program by its verdict, a filter by matching.

use std::fmt;

use aya::programs::tc::{SchedClassifier, TcAttachType};
use serde::{Deserialize, Serialize};

use crate::kernel::bpf::program_name;
use crate::kernel::netlink::{Direction, Error, Interface, Netlink, is_sluice_filter};

/// A hook on the ingress path, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IngressHook {
    /// XDP.
    Xdp,
    /// TCX programs.
    Tcx,
    /// Filters of the clsact qdisc.
    Tc,
}

impl fmt::Display for IngressHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "XDP",
            Self::Tcx => "TCX",
            Self::Tc => "TC",
        })
    }
}

/// A program or filter that runs before our program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its hook.
    pub hook: IngressHook,
    /// The name of the program, or the name or kind of the filter.
    pub name: String,
    /// The ID of a BPF program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_id: Option<u32>,
    /// The priority of a filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
}

impl Predecessor {
    /// Whether it is a filter of another instance, which passes all packets that are not for its
    /// VIPs.
    pub fn is_sluice(&self) -> bool {
        self.hook == IngressHook::Tc && is_sluice_filter(&self.name)
    }
}

impl fmt::Display for Predecessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hook {
            IngressHook::Tc => write!(f, "the TC filter {}", self.name)?,
            hook => write!(f, "the {hook} program {}", self.name)?,
        }
        let id = self.program_id.map(|id| format!("program ID {id}"));
        let priority = self.priority.map(|priority| format!("priority {priority}"));
        let details: Vec<_> = priority.into_iter().chain(id).collect();
        if details.is_empty() { Ok(()) } else { write!(f, " ({})", details.join(", ")) }
    }
}

/// The ingress path of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressPath {
    /// The ID of the program of our filter; `None` if the filter is not attached.
    pub attached: Option<u32>,
    /// Programs and filters that run before our filter, or all of them if it is not attached.
    pub predecessors: Vec<Predecessor>,
}

/// Reads the ingress path of an interface. `filter` is the name of our filter.
pub async fn ingress_path(
    netlink: &Netlink,
    interface: &Interface,
    filter: &str,
) -> Result<IngressPath, Error> {
    let mut predecessors = Vec::new();
    if let Some(id) = interface.xdp_program {
        predecessors.push(Predecessor {
            hook: IngressHook::Xdp,
            // Empty if it has none, or was removed a moment ago.
            name: program_name(id).unwrap_or_default(),
            program_id: Some(id),
            priority: None,
        });
    }
    // Fails on kernels without TCX, and if the interface has just been removed.
    let tcx = SchedClassifier::query_tcx(&interface.name, TcAttachType::Ingress);
    predecessors.extend(tcx.map(|(_, programs)| programs).unwrap_or_default().iter().map(
        |program| Predecessor {
            hook: IngressHook::Tcx,
            name: program.name_as_str().unwrap_or_default().to_owned(),
            program_id: Some(program.id()),
            priority: None,
        },
    ));
    for found in netlink.filters(interface.index, Direction::Ingress).await? {
        if found.bpf_name.as_deref() == Some(filter) {
            // Program IDs start at 1.
            let attached = Some(found.program_id.unwrap_or(0));
            return Ok(IngressPath { attached, predecessors });
        }
        // Other chains run only if a filter of chain 0 goes to them.
        if found.chain == 0 {
            predecessors.push(Predecessor {
                hook: IngressHook::Tc,
                name: found.bpf_name.unwrap_or(found.kind),
                program_id: found.program_id,
                priority: Some(found.priority),
            });
        }
    }
    Ok(IngressPath { attached: None, predecessors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_is_described_by_hook_name_priority_and_program() {
        let xdp = Predecessor {
            hook: IngressHook::Xdp,
            name: "firewall".to_owned(),
            program_id: Some(7),
            priority: None,
        };
        assert_eq!(xdp.to_string(), "the XDP program firewall (program ID 7)");
        let filter = Predecessor {
            hook: IngressHook::Tc,
            name: "flower".to_owned(),
            program_id: None,
            priority: Some(10),
        };
        assert_eq!(filter.to_string(), "the TC filter flower (priority 10)");
        assert!(!filter.is_sluice());
        assert!(Predecessor { name: "sluice_lb:b".to_owned(), ..filter }.is_sluice());
        assert!(!Predecessor { name: "sluice_x".to_owned(), ..xdp }.is_sluice());
    }
}

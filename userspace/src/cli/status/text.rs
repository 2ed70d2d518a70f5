//! The text form of `sluice status`.

use super::model::{BackendStatus, LbStatus, Status};
use crate::cli::table::table;
use crate::clock::unix_seconds;
use crate::notice::Notice;
use crate::read::daemon::{DaemonStatus, FileState};
use crate::read::interfaces::InterfaceStatus;
use crate::read::next_hops::NextHopStatus;

/// The state of an instance as text.
pub(super) fn text(status: &Status) -> String {
    let mut text = format!("instance {}\n", status.instance);
    if let Some(lb) = &status.lb {
        text += &match lb.forwarding {
            true => {
                let problems = with_problems(lb.problems());
                format!("\nbalancer: forwarding {}{problems}\n", attached(&lb.interfaces))
            }
            false => format!("\nbalancer: NOT forwarding{}\n", not_forwarding(lb)),
        };
        text += &format!("  configuration {}, applied {}\n", lb.config_digest, ago(lb.applied_at));
        text += &daemon(lb.daemon.as_ref());
        text += &notices(&lb.notices);
        let rows = lb.services.iter().flat_map(|service| {
            let mut first = true;
            service.slots.iter().map(move |(backend, slots)| {
                let percent = 100.0 * f64::from(*slots) / f64::from(service.table_size.max(1));
                let head = std::mem::take(&mut first);
                let once = |text: String| if head { text } else { String::new() };
                [
                    once(service.name.clone()),
                    once(service.vips.join(" ")),
                    once(if service.tracked { "tracked" } else { "stateless" }.to_owned()),
                    once(service.generation.to_string()),
                    once(service.table_digest.clone()),
                    backend.clone(),
                    slots.to_string(),
                    format!("{percent:.1} %"),
                ]
            })
        });
        text += "\n";
        text += &table(
            ["service", "VIPs", "flows", "generation", "digest", "backend", "slots", "share"],
            &[3, 6, 7],
            rows,
        );
        let rows = lb.services.iter().flat_map(|service| {
            let routes = service.routes.iter();
            routes.map(|(clients, to)| [service.name.clone(), clients.clone(), to.clone()])
        });
        if rows.clone().next().is_some() {
            text += "\n";
            text += &table(["service", "clients", "routed to"], &[], rows);
        }
        let rows = lb.services.iter().flat_map(|service| {
            let ids = service.server_ids.iter();
            ids.map(|(id, backend)| [service.name.clone(), id.clone(), backend.clone()])
        });
        if rows.clone().next().is_some() {
            text += "\n";
            text += &table(["service", "QUIC server ID", "backend"], &[], rows);
        }
        let rows = lb.backends.iter().map(|backend| {
            let hops =
                backend.addresses.iter().map(|address| match backend.next_hops.get(address) {
                    Some(NextHopStatus { interface, gateway, mtu, up }) => {
                        let via =
                            gateway.map_or_else(String::new, |gateway| format!("via {gateway} "));
                        let path_mtu = match backend.path_mtus.get(address) {
                            None => String::new(),
                            Some(left) => format!(" by an ICMP error, for another {left} s"),
                        };
                        let down = if *up { "" } else { ", interface down" };
                        format!("{address} ({via}on {interface}{down}, MTU {mtu}{path_mtu})")
                    }
                    None => format!("{address} (no route)"),
                });
            let state = if backend.draining { "draining" } else { "in use" };
            [backend.name.clone(), state.to_owned(), hops.collect::<Vec<_>>().join(", ")]
        });
        text += "\n";
        text += &table(["backend", "state", "addresses"], &[], rows);
        text += &format!("\n{}", lb.memory.text());
    }
    if let Some(backend) = &status.backend {
        let problems = with_problems(backend.problems());
        text += &match (backend.decapsulating, backend.program) {
            (true, true) => format!(
                "\nbackend: decapsulating, by the program at TC ingress {}{problems}\n",
                attached(&backend.interfaces)
            ),
            (true, false) => {
                let names: Vec<_> =
                    backend.devices.iter().map(|device| device.name.as_str()).collect();
                let names = names.join(", ");
                format!("\nbackend: decapsulating, by the tunnel devices {names}{problems}\n")
            }
            (false, _) => format!("\nbackend: NOT decapsulating{}\n", not_decapsulating(backend)),
        };
        text += &daemon(backend.daemon.as_ref());
        text += &notices(&backend.notices);
        let sizes =
            backend.largest_segments.iter().map(|(family, size)| format!("IP{family}: {size}"));
        let sizes = sizes.collect::<Vec<_>>().join(", ");
        if !sizes.is_empty() {
            text += &format!("  MSS is clamped to: {sizes}\n");
        }
        if let Some(memory) = &backend.memory {
            text += &format!("\n{}", memory.text());
        }
    }
    text
}

/// The lines about a daemon.
fn daemon(daemon: Option<&DaemonStatus>) -> String {
    let Some(daemon) = daemon else {
        return "  daemon: none runs; nothing is repaired or reloaded until one starts\n"
            .to_owned();
    };
    let process = daemon.process;
    let Some(state) = &daemon.state else {
        let error = daemon.error.as_deref().unwrap_or("it does not respond");
        return format!("  daemon: process {process}\n  {}\n", Notice::warning(error));
    };
    let mut text = format!(
        "  daemon: {}, process {process}, started {}, repairs: {}\n",
        state.phase,
        ago(state.started_at),
        state.repairs
    );
    let file = &state.config;
    text += &match &state.config_file {
        None => format!("  file: {file}, not applied yet\n"),
        Some(FileState::InForce) => format!("  file: {file}, in force\n"),
        Some(FileState::Changed) => {
            format!("  file: {file}, changed since it was applied; `sluice reload` applies it\n")
        }
        Some(FileState::Refused) => {
            format!(
                "  file: {file}, changed since it was applied, and refused by the last reload\n"
            )
        }
        Some(FileState::Unreadable(error)) => format!("  {}\n", Notice::warning(error)),
    };
    if let Some(reload) = &state.last_reload {
        text += &format!("  last reload: {}, {}\n", ago(reload.at), reload.outcome);
    }
    let failing: Vec<_> = state.failing.iter().map(Notice::problem).collect();
    text + &notices(&failing) + &notices(&state.notices)
}

/// The lines about notices.
fn notices(notices: &[Notice]) -> String {
    notices.iter().map(|notice| format!("  {notice}\n")).collect()
}

/// The end of the first line about a role that handles packets.
fn with_problems<'a>(mut problems: impl Iterator<Item = &'a str>) -> &'static str {
    if problems.next().is_some() { ", with problems" } else { "" }
}

/// The interfaces with the program, for a role that handles packets.
fn attached(interfaces: &[InterfaceStatus]) -> String {
    let names: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    format!("on {}", names.join(", "))
}

/// Where and why a balancer does not forward, as the end of a line.
pub(super) fn not_forwarding(lb: &LbStatus) -> String {
    if lb.interfaces.is_empty() {
        return NOWHERE.to_owned();
    }
    let defects = defects(&lb.interfaces, InterfaceStatus::defect);
    match (defects.is_empty(), lb.problems().next()) {
        (true, Some(problem)) => format!(": {problem}"),
        _ => format!(" on {defects}"),
    }
}

/// Where and why a backend does not decapsulate, as the end of a line.
pub(super) fn not_decapsulating(backend: &BackendStatus) -> String {
    if backend.program && backend.interfaces.is_empty() {
        return NOWHERE.to_owned();
    }
    let defects = match backend.program {
        true => defects(&backend.interfaces, InterfaceStatus::defect),
        false => {
            defects(&backend.interfaces, |interface| interface.link_defect().map(str::to_owned))
        }
    };
    if !defects.is_empty() {
        return format!(" on {defects}");
    }
    let devices = backend.devices.iter();
    let devices: Vec<_> = devices
        .filter_map(|device| Some(format!("{} {}", device.name, device.defect.as_deref()?)))
        .collect();
    match devices.is_empty() {
        true => ": there is no tunnel device".to_owned(),
        false => format!(": the tunnel device {}", devices.join(", ")),
    }
}

/// The end of a line about a program without an interface.
const NOWHERE: &str = " on any interface: the program is not attached";

/// The interfaces with a defect, and the defects.
fn defects(
    interfaces: &[InterfaceStatus],
    defect: impl Fn(&InterfaceStatus) -> Option<String>,
) -> String {
    let found = interfaces
        .iter()
        .filter_map(|interface| Some(format!("{} ({})", interface.name, defect(interface)?)));
    found.collect::<Vec<_>>().join(", ")
}

/// A time in seconds since 1970 (UTC), relative to now.
fn ago(seconds: u64) -> String {
    let passed = unix_seconds().saturating_sub(seconds);
    match passed {
        0..120 => format!("{passed} s ago"),
        120..7_200 => format!("{} min ago", passed / 60),
        7_200..172_800 => format!("{} h ago", passed / 3_600),
        _ => format!("{} days ago", passed / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::interfaces::LinkState;

    #[test]
    fn times_are_relative() {
        let now = unix_seconds();
        assert_eq!(ago(now - 600), "10 min ago");
        assert_eq!(ago(now - 3 * 86_400), "3 days ago");
        // A clock that was set back.
        assert_eq!(ago(now + 600), "0 s ago");
    }

    #[test]
    fn interfaces_with_defects_are_named_with_the_reason() {
        let interface = |name: &str, state, program_id, foreign_program_id| InterfaceStatus {
            name: name.to_owned(),
            state,
            program_id,
            foreign_program_id,
            predecessors: Vec::new(),
        };
        let interfaces = [
            interface("eth0", LinkState::Up, Some(7), None),
            interface("eth1", LinkState::Up, None, None),
            interface("eth2", LinkState::Missing, None, None),
            interface("eth3", LinkState::Down, Some(7), None),
            interface("eth4", LinkState::NoCarrier, Some(7), None),
            interface("eth5", LinkState::Up, None, Some(8)),
        ];
        assert_eq!(
            defects(&interfaces, InterfaceStatus::defect),
            "eth1 (the program is not attached), eth2 (the interface does not exist), \
             eth3 (the interface is down), eth4 (the interface has no carrier), \
             eth5 (its filter runs another program, ID 8)"
        );
    }
}

//! The text form of `sluice status`.

use super::model::{BackendStatus, Status};
use crate::cli::table::table;
use crate::clock::unix_seconds;
use crate::read::daemon::{DaemonStatus, FileState};
use crate::read::interfaces::InterfaceStatus;
use crate::read::next_hops::NextHopStatus;

/// The state of an instance as text.
pub(super) fn text(status: &Status) -> String {
    let mut text = format!("instance {}\n", status.instance);
    if let Some(lb) = &status.lb {
        text += &match lb.forwarding {
            true => format!("\nbalancer: forwarding {}\n", attached(&lb.interfaces)),
            false => format!("\nbalancer: NOT forwarding {}\n", missing(&lb.interfaces)),
        };
        text += &format!("  configuration {}, applied {}\n", lb.config_digest, ago(lb.applied_at));
        text += &daemon(lb.daemon.as_ref());
        text += &predecessors(&lb.interfaces);
        if lb.changing && lb.daemon.is_none() {
            text += "  problem: a change is incomplete; start the daemon to complete it\n";
        }
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
                    Some(NextHopStatus { interface, gateway, mtu }) => {
                        let via =
                            gateway.map_or_else(String::new, |gateway| format!("via {gateway} "));
                        let path_mtu = match backend.path_mtus.get(address) {
                            None => String::new(),
                            Some(left) => format!(" by an ICMP error, for another {left} s"),
                        };
                        format!("{address} ({via}on {interface}, MTU {mtu}{path_mtu})")
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
        text += &match (backend.decapsulating, backend.program) {
            (true, true) => format!(
                "\nbackend: decapsulating, by the program at TC ingress {}\n",
                attached(&backend.interfaces)
            ),
            (true, false) => {
                let up = backend.devices.iter().filter(|device| device.up);
                let names: Vec<_> = up.map(|device| device.name.as_str()).collect();
                format!("\nbackend: decapsulating, by the tunnel devices {}\n", names.join(", "))
            }
            (false, _) => format!("\nbackend: NOT decapsulating{}\n", not_decapsulating(backend)),
        };
        text += &daemon(backend.daemon.as_ref());
        text += &predecessors(&backend.interfaces);
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
        return format!("  daemon: process {process}\n  problem: {error}\n");
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
        Some(FileState::Unreadable(error)) => format!("  problem: {error}\n"),
    };
    if let Some(reload) = &state.last_reload {
        text += &format!("  last reload: {}, {}\n", ago(reload.at), reload.outcome);
    }
    let problems = state.failing.iter().chain(&state.problems);
    text + &problems.map(|problem| format!("  problem: {problem}\n")).collect::<String>()
}

/// The interfaces with the program, for a role that handles packets.
fn attached(interfaces: &[InterfaceStatus]) -> String {
    let names: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    format!("on {}", names.join(", "))
}

/// Where and why a backend does not decapsulate, as the end of a line.
pub(super) fn not_decapsulating(backend: &BackendStatus) -> String {
    match backend.program {
        true => format!(" {}", missing(&backend.interfaces)),
        false => ": no tunnel device is up".to_owned(),
    }
}

/// The interfaces without the program, for a role that does not handle packets on all.
pub(super) fn missing(interfaces: &[InterfaceStatus]) -> String {
    let without = interfaces.iter().filter(|interface| interface.program_id.is_none());
    let names: Vec<_> = without
        .map(|interface| match interface.present {
            true => format!("{} (the program is not attached)", interface.name),
            false => format!("{} (the interface does not exist)", interface.name),
        })
        .collect();
    if names.is_empty() {
        return "on any interface: the program is not attached".to_owned();
    }
    format!("on {}", names.join(", "))
}

/// The lines about programs and filters that run before ours.
fn predecessors(interfaces: &[InterfaceStatus]) -> String {
    let foreign = interfaces.iter().flat_map(|interface| {
        let foreign = interface.predecessors.iter().filter(|found| !found.is_sluice());
        foreign.map(move |predecessor| (&interface.name, predecessor))
    });
    let lines = foreign.map(|(name, predecessor)| {
        format!("  problem: on {name}, {predecessor} runs first and can end the path of packets\n")
    });
    lines.collect()
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

    #[test]
    fn times_are_relative() {
        let now = unix_seconds();
        assert_eq!(ago(now - 600), "10 min ago");
        assert_eq!(ago(now - 3 * 86_400), "3 days ago");
        // A clock that was set back.
        assert_eq!(ago(now + 600), "0 s ago");
    }

    #[test]
    fn missing_interfaces_are_named_with_the_reason() {
        let interface = |name: &str, present, program_id| InterfaceStatus {
            name: name.to_owned(),
            present,
            program_id,
            predecessors: Vec::new(),
        };
        let interfaces = [
            interface("eth0", true, Some(7)),
            interface("eth1", true, None),
            interface("eth2", false, None),
        ];
        assert_eq!(
            missing(&interfaces),
            "on eth1 (the program is not attached), eth2 (the interface does not exist)"
        );
        assert_eq!(missing(&[]), "on any interface: the program is not attached");
    }
}

//! A host's network state as text lines, for a comparison before and after `sluice`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::namespaces::Namespaces;
use super::topology::{INTERFACE, LabHost};

/// Everything that `sluice` changes on a host, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState(BTreeSet<String>);

impl HostState {
    /// Reads addresses, links, routes, rules, qdiscs, filters, sysctls, pinned objects and files
    /// under `/run`.
    ///
    /// `state` is the lab's own directory, which is excluded.
    pub fn read(namespaces: &Namespaces, host: &LabHost, state: &Path) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let ingress = ["filter", "show", "dev", INTERFACE, "ingress"];
        let egress = ["filter", "show", "dev", INTERFACE, "egress"];
        let commands: [(&str, &[&str]); 9] = [
            ("ip", &["-o", "addr", "show"]),
            ("ip", &["-o", "-br", "link", "show"]),
            ("ip", &["-4", "route", "show", "table", "all"]),
            ("ip", &["-6", "route", "show", "table", "all"]),
            ("ip", &["rule", "show"]),
            ("ip", &["-6", "rule", "show"]),
            ("tc", &["qdisc", "show"]),
            ("tc", &ingress),
            ("tc", &egress),
        ];
        for (program, arguments) in commands {
            let mut command = Command::new(program);
            command.args(arguments);
            // The exit status is ignored: `tc filter show` fails on an interface without a qdisc.
            let output = namespaces.output(host, command, "")?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                // The carrier state changes without any configuration.
                let line = line.replace(" linkdown", "").replace("LOWERLAYERDOWN", "UP");
                lines.insert(format!("{program} {}: {}", arguments.join(" "), line.trim()));
            }
        }
        namespaces.within(host, || {
            for family in ["ipv4", "ipv6"] {
                sysctls(&Path::new("/proc/sys/net").join(family), &mut lines);
            }
            Ok(())
        })?;
        let root = namespaces.root(host);
        for directory in ["sys/fs/bpf", "run"] {
            files(&Path::new("/").join(directory), &root, state, &mut lines);
        }
        Ok(Self(lines))
    }

    /// The differences: `- ` before a removed line, `+ ` before a new one.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let removed = self.0.difference(&later.0).map(|line| format!("- {line}"));
        removed.chain(later.0.difference(&self.0).map(|line| format!("+ {line}"))).collect()
    }
}

fn sysctls(directory: &Path, lines: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sysctls(&path, lines);
        } else if let Ok(value) = std::fs::read_to_string(&path) {
            // Write-only and unset sysctls cannot be read and are skipped.
            lines.insert(format!("{} = {}", path.display(), value.trim()));
        }
    }
}

/// Lists the files below a directory of the host, whose root directory is `root`.
fn files(directory: &Path, root: &Path, state: &Path, lines: &mut BTreeSet<String>) {
    let outside = root.join(directory.strip_prefix("/").unwrap_or(directory));
    for entry in std::fs::read_dir(outside).into_iter().flatten().flatten() {
        let path = directory.join(entry.file_name());
        if path == state {
            continue;
        }
        lines.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, root, state, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_lists_removed_and_new_lines() {
        let state =
            |lines: &[&str]| HostState(lines.iter().map(|line| (*line).to_owned()).collect());
        let before = state(&["file /a", "x = 1"]);
        assert!(before.difference(&before.clone()).is_empty());
        assert_eq!(before.difference(&state(&["file /a", "x = 2"])), ["- x = 1", "+ x = 2"]);
    }
}

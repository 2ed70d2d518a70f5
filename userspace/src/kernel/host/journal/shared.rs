//! Changes that several journals list: of objects that several instances use, or both roles of one.
//!
//! The first one that needs an object makes the change. Another one that needs it records the same
//! change, with the same old value. The last journal that lists the change undoes it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{Change, Journal, Line};
use crate::files::private;
use crate::kernel::namespace::NetworkNamespace;
use crate::role::Role;

/// The suffix of the names of journals.
const SUFFIX: &str = ".journal";

/// The changes in the other journals on this host.
#[derive(Debug, Default)]
pub(in crate::kernel::host) struct OtherJournals {
    /// Each change, and the journal that lists it as "instance (role)", by the change's key.
    changes: HashMap<Change, (Change, String)>,
}

impl OtherJournals {
    /// The changes.
    pub(in crate::kernel::host) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.values().map(|(change, _)| change)
    }

    /// The journal that lists a change of the same object, as "instance (role)".
    pub(in crate::kernel::host) fn holder(&self, change: &Change) -> Option<&str> {
        self.changes.get(&change.key()).map(|(_, holder)| holder.as_str())
    }
}

impl Journal {
    /// The changes in a journal, which its owner may be writing; none if it cannot be read.
    pub fn peek(base: &Path, instance: &str, role: Role) -> Vec<Change> {
        let file = private::open_file(&Self::path_of(base, instance, role));
        let text = file.and_then(|file| file.map(read).transpose());
        listed(&text.ok().flatten().unwrap_or_default(), instance, None).into_values().collect()
    }

    /// The network namespace of the changes in a journal; `None` without a journal. Changes
    /// nothing, and needs no lock.
    pub fn namespace_of(base: &Path, instance: &str, role: Role) -> Option<NetworkNamespace> {
        let file = private::open_file(&Self::path_of(base, instance, role)).ok()??;
        let text = read(file).ok()?;
        // The last one, as for the owner.
        text.split(|byte| *byte == b'\n').rev().find_map(|line| {
            match serde_json::from_slice(line) {
                Ok(Line::NetworkNamespace(namespace)) => Some(namespace),
                _ => None,
            }
        })
    }

    /// Reads the other journals of this network namespace.
    pub(in crate::kernel::host) fn others(&self) -> OtherJournals {
        match self.path.parent().and_then(Path::parent) {
            Some(base) => OtherJournals::read(base, Some(&self.path), self.namespace),
            None => OtherJournals::default(),
        }
    }
}

impl OtherJournals {
    /// Reads all journals of a network namespace but `own`. One that cannot be read is logged and
    /// left out.
    pub(in crate::kernel::host) fn read(
        base: &Path,
        own: Option<&Path>,
        namespace: Option<NetworkNamespace>,
    ) -> Self {
        let mut others = Self::default();
        for instance in entries(base) {
            for path in entries(&instance).into_iter().filter(|path| Some(path.as_path()) != own) {
                let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
                let (Some(instance), Some(file)) = (name(&instance), name(&path)) else { continue };
                let Some(role) = file.strip_suffix(SUFFIX) else { continue };
                match private::open_file(&path).and_then(|file| file.map(read).transpose()) {
                    Ok(text) => {
                        let text = text.unwrap_or_default();
                        let listed = listed(&text, &instance, namespace);
                        let held = listed
                            .into_iter()
                            .map(|(key, change)| (key, (change, format!("{instance} ({role})"))));
                        others.changes.extend(held);
                    }
                    Err(error) => warn!(
                        path = %path.display(), %error,
                        "cannot read the journal of another instance; what it shares with this one \
                         is not known"
                    ),
                }
            }
        }
        others
    }
}

/// The entries of a directory; none if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

fn read(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The changes that a journal lists, by key. Its owner may be writing: a line that is not complete,
/// or of a change that Sluice does not make, is left out. None if the changes were made in another
/// network namespace than `namespace`.
fn listed(
    text: &[u8],
    instance: &str,
    namespace: Option<NetworkNamespace>,
) -> HashMap<Change, Change> {
    let mut changes = HashMap::new();
    let mut found = None;
    for line in text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        match serde_json::from_slice(line) {
            Ok(Line::Did(change)) if change.check(instance).is_ok() => {
                changes.insert(change.key(), change);
            }
            Ok(Line::Undid(change)) => {
                changes.remove(&change.key());
            }
            Ok(Line::NetworkNamespace(other)) => found = Some(other),
            _ => {}
        }
    }
    match found.zip(namespace) {
        Some((found, namespace)) if found != namespace => HashMap::new(),
        _ => changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::sysctl::Sysctl;

    fn sysctl(old: &str) -> Change {
        let key = Sysctl::ipv4_interface("eth0", "rp_filter").unwrap();
        Change::Sysctl { key, old: old.into(), new: "2".into() }
    }

    fn clsact(interface: &str) -> Change {
        Change::Clsact { interface: interface.into(), index: 7 }
    }

    #[test]
    fn the_changes_of_other_roles_and_instances_are_found() {
        let base = tempfile::tempdir().unwrap();
        let open = |instance, role| Journal::open(base.path(), instance, role).unwrap();
        let own = open("edge", Role::Backend);
        assert_eq!(own.others().changes().count(), 0);
        let mut role = open("edge", Role::Lb);
        role.record(clsact("eth0")).unwrap();
        let mut other = open("two", Role::Backend);
        other.record(sysctl("1")).unwrap();
        let others = own.others();
        assert_eq!(others.holder(&clsact("eth0")), Some("edge (lb)"));
        // By interface index, and whatever the values.
        assert_eq!(others.holder(&clsact("lan0")), Some("edge (lb)"));
        assert_eq!(others.holder(&sysctl("0")), Some("two (backend)"));
        other.forget(&sysctl("1")).unwrap();
        assert_eq!(own.others().holder(&sysctl("1")), None);
    }

    #[test]
    fn lines_that_are_not_complete_or_not_ours_are_left_out() {
        let did = |change: &Change| serde_json::to_string(&Line::Did(change.clone())).unwrap();
        let planted = Change::Sysctl {
            key: Sysctl::new(["kernel", "core_pattern"]).unwrap(),
            old: "1".into(),
            new: "2".into(),
        };
        let text = format!("{}\n{}\n{}", did(&planted), did(&clsact("eth0")), did(&sysctl("1")));
        let found: Vec<_> = listed(text.as_bytes(), "edge", None).into_values().collect();
        assert_eq!(found, [clsact("eth0")]);
    }

    #[test]
    fn changes_in_another_network_namespace_are_not_shared() {
        let base = tempfile::tempdir().unwrap();
        let mut own = Journal::open(base.path(), "edge", Role::Lb).unwrap();
        let mut other = Journal::open(base.path(), "two", Role::Lb).unwrap();
        other.record(clsact("eth0")).unwrap();
        assert_eq!(own.others().holder(&clsact("eth0")), Some("two (lb)"));
        let elsewhere: NetworkNamespace = serde_json::from_value(serde_json::json!(1)).unwrap();
        own.namespace = Some(elsewhere);
        assert_eq!(own.others().holder(&clsact("eth0")), None);
    }
}

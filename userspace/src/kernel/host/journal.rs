//! The journal: Sluice's changes to the host, recorded before they are made, so that they can be
//! undone, also after a crash.
//!
//! One file for each instance and role, `<base>/<instance>/<role>.journal`, of JSON lines: a
//! version, the network namespace, then changes made and undone. Each line is synchronised to disk
//! before its change is made. A line without its newline was not completely written and is
//! truncated. The directory is in memory ([`STATE_DIRECTORY`]): a reboot removes both the changes
//! and the journal.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files::private;
use crate::kernel::namespace::NetworkNamespace;
use crate::role::Role;

mod change;
mod error;
mod shared;
mod undo;

use error::VERSION;

pub use change::Change;
pub use error::JournalError;
pub(in crate::kernel::host) use shared::OtherJournals;
pub use undo::UndoReport;

/// The directory of journals and locks, with a directory for each instance.
pub const STATE_DIRECTORY: &str = "/run/sluice";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Version(u32),
    NetworkNamespace(NetworkNamespace),
    Did(Change),
    Undid(Change),
}

/// The open journal of one instance and role. Only the process that holds the instance's lock may
/// open it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The length up to the last complete line, to truncate a partial one.
    len: u64,
    changes: Vec<Change>,
    /// The network namespace of the changes; `None` in a journal of version 1.
    namespace: Option<NetworkNamespace>,
    /// The lines that cannot be used.
    problems: Vec<JournalError>,
}

impl Journal {
    /// The path of the journal of an instance and role.
    pub fn path_of(base: &Path, instance: &str, role: Role) -> PathBuf {
        base.join(instance).join(format!("{role}.journal"))
    }

    /// Opens the journal, creating it (and its directory) if there is none. The changes of a
    /// network namespace that does not exist any more are dropped with a warning.
    ///
    /// # Errors
    /// [`JournalError`], also for a line that cannot be used: without a journal the host must not
    /// be changed.
    pub fn open(base: &Path, instance: &str, role: Role) -> Result<Self, JournalError> {
        let path = Self::path_of(base, instance, role);
        let directory = base.join(instance);
        let creating = |source| JournalError::Io { doing: "create", path: path.clone(), source };
        private::create_directory(base).map_err(creating)?;
        private::create_directory(&directory).map_err(creating)?;
        let file = private::create_file(&path).map_err(creating)?;
        let mut journal = Self::read(path.clone(), instance, file)?;
        if !journal.problems.is_empty() {
            return Err(journal.problems.swap_remove(0));
        }
        match journal.check_namespace(instance) {
            Err(JournalError::Elsewhere { command: None, namespace, .. }) => {
                warn!(
                    path = %journal.path.display(), %namespace, changes = journal.changes.len(),
                    "the network namespace of the journal does not exist any more; its changes are \
                     forgotten"
                );
                journal.forget_all(&journal.changes.clone())?;
                journal.namespace = None;
            }
            checked => checked?,
        }
        if journal.namespace.is_none() {
            let current = journal.current_namespace()?;
            journal.append(&[Line::NetworkNamespace(current)])?;
            journal.namespace = Some(current);
        }
        // A new file survives a crash only once its directories are synchronised.
        for directory in [directory.as_path(), base] {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(creating)?;
        }
        Ok(journal)
    }

    /// Opens the journal if there is one. Lines that cannot be used are left out, and
    /// [`Self::undo_all`] reports them.
    ///
    /// # Errors
    /// [`JournalError`]; [`JournalError::Elsewhere`] if its changes cannot be undone from here.
    pub fn open_existing(
        base: &Path,
        instance: &str,
        role: Role,
    ) -> Result<Option<Self>, JournalError> {
        let path = Self::path_of(base, instance, role);
        match private::open_file(&path) {
            Ok(Some(file)) => {
                let journal = Self::read(path, instance, file)?;
                journal.check_namespace(instance)?;
                Ok(Some(journal))
            }
            Ok(None) => Ok(None),
            Err(source) => Err(JournalError::Io { doing: "read", path, source }),
        }
    }

    /// Checks that the changes were made in the network namespace of this thread.
    fn check_namespace(&self, instance: &str) -> Result<(), JournalError> {
        match self.namespace {
            Some(namespace) if namespace != self.current_namespace()? => {
                let enter = namespace.enter_command();
                Err(JournalError::Elsewhere {
                    path: self.path.clone(),
                    namespace,
                    command: enter
                        .map(|enter| format!("{enter} sluice down --instance {instance}")),
                })
            }
            _ => Ok(()),
        }
    }

    fn current_namespace(&self) -> Result<NetworkNamespace, JournalError> {
        NetworkNamespace::current().map_err(|source| JournalError::Io {
            doing: "read the network namespace for",
            path: self.path.clone(),
            source,
        })
    }

    fn read(path: PathBuf, instance: &str, mut file: File) -> Result<Self, JournalError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| JournalError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut journal = Self {
            path,
            file,
            len: whole as u64,
            changes: Vec::new(),
            namespace: None,
            problems: Vec::new(),
        };
        journal.cut()?;
        // Consecutive lines of one kind, taken at once: each lookup reads the whole list.
        let (mut made, mut undone) = (Vec::new(), Vec::new());
        for (number, text) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line = serde_json::from_slice(text.trim_ascii_end()).map_err(|source| {
                JournalError::Corrupt { path: journal.path.clone(), line: number + 1, source }
            });
            match (number, line) {
                (0, Ok(Line::Version(1..=VERSION))) => {}
                (0, Ok(Line::Version(found))) => {
                    return Err(JournalError::Version { path: journal.path, found });
                }
                (0, Ok(_)) => {
                    return Err(JournalError::Version { path: journal.path, found: 0 });
                }
                (_, line) => match line {
                    Err(problem) => journal.problems.push(problem),
                    Ok(Line::Version(_)) => {}
                    // The last one: changes of an earlier one are gone.
                    Ok(Line::NetworkNamespace(namespace)) => journal.namespace = Some(namespace),
                    Ok(Line::Did(change)) => match change.check(instance) {
                        Ok(()) => {
                            journal.drop_changes(&std::mem::take(&mut undone));
                            made.push(change);
                        }
                        Err(problem) => journal.problems.push(JournalError::Foreign {
                            path: journal.path.clone(),
                            line: number + 1,
                            problem,
                        }),
                    },
                    Ok(Line::Undid(change)) => {
                        journal.merge(std::mem::take(&mut made));
                        undone.push(change);
                    }
                },
            }
        }
        journal.merge(made);
        journal.drop_changes(&undone);
        if journal.len == 0 {
            journal.append(&[Line::Version(VERSION)])?;
        }
        Ok(journal)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The changes that were made and not undone, oldest first.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Whether the change is recorded; for a sysctl, with any value.
    pub fn contains(&self, change: &Change) -> bool {
        self.changes.iter().any(|known| known.same_object(change))
    }

    /// Records a change. On return the record survives a crash, and the change may be made.
    ///
    /// Recording a change again writes nothing. A sysctl recorded again with another new value
    /// keeps its first old value.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the change must not be made then.
    pub fn record(&mut self, change: Change) -> Result<(), JournalError> {
        self.record_all(vec![change])
    }

    /// As [`Self::record`], for many changes: one write and one synchronisation.
    pub fn record_all(&mut self, changes: Vec<Change>) -> Result<(), JournalError> {
        let before = self.changes.clone();
        let lines: Vec<_> = self.merge(changes).into_iter().map(Line::Did).collect();
        self.append(&lines).inspect_err(|_| self.changes = before)
    }

    /// Records that a change was undone, or was not made after all.
    pub fn forget(&mut self, change: &Change) -> Result<(), JournalError> {
        self.forget_all(std::slice::from_ref(change))
    }

    /// As [`Self::forget`], for many changes: one write and one synchronisation.
    pub fn forget_all(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        let known = self.keys();
        let lines = changes.iter().filter(|change| known.contains(&change.key()));
        self.append(&lines.cloned().map(Line::Undid).collect::<Vec<_>>())?;
        self.drop_changes(changes);
        Ok(())
    }

    /// The keys of all recorded changes, for many lookups in a row.
    pub(super) fn keys(&self) -> HashSet<Change> {
        self.changes.iter().map(Change::key).collect()
    }

    /// Removes the file, and its directory if empty.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the file cannot be removed.
    fn remove(self) -> Result<(), JournalError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(JournalError::Io { doing: "remove", path: self.path, source: error })
            }
            _ => {
                // The directory stays if it holds other files: the lock, the other role's journal.
                let _ = self.path.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    /// Adds changes to the list, and returns those that are new or differ, as the list has them. A
    /// recorded sysctl keeps its position and first old value, and takes the new value.
    fn merge(&mut self, changes: Vec<Change>) -> Vec<Change> {
        if changes.is_empty() {
            return Vec::new();
        }
        let keys = self.changes.iter().map(Change::key);
        let mut positions: HashMap<_, _> = keys.zip(0..).collect();
        let mut written = BTreeSet::new();
        for change in changes {
            match positions.entry(change.key()) {
                Entry::Vacant(position) => {
                    written.insert(*position.insert(self.changes.len()));
                    self.changes.push(change);
                }
                Entry::Occupied(position) => {
                    if let (Change::Sysctl { new, .. }, Change::Sysctl { new: newer, .. }) =
                        (&mut self.changes[*position.get()], change)
                        && *new != newer
                    {
                        *new = newer;
                        written.insert(*position.get());
                    }
                }
            }
        }
        written.into_iter().map(|position| self.changes[position].clone()).collect()
    }

    /// Removes changes from the list.
    fn drop_changes(&mut self, changes: &[Change]) {
        if !changes.is_empty() {
            let gone: HashSet<_> = changes.iter().map(Change::key).collect();
            self.changes.retain(|known| !gone.contains(&known.key()));
        }
    }

    fn append(&mut self, lines: &[Line]) -> Result<(), JournalError> {
        if lines.is_empty() {
            return Ok(());
        }
        let write = |file: &mut File| {
            let mut bytes = Vec::new();
            for line in lines {
                serde_json::to_writer(&mut bytes, line)?;
                bytes.push(b'\n');
            }
            file.write_all(&bytes)?;
            file.sync_all()?;
            Ok(bytes.len() as u64)
        };
        match write(&mut self.file) {
            Ok(written) => {
                self.len += written;
                Ok(())
            }
            Err(source) => {
                // A partial line must not become the start of the next one. If this fails too, the
                // next read reports it.
                let _ = self.cut();
                Err(JournalError::Io { doing: "write", path: self.path.clone(), source })
            }
        }
    }

    fn cut(&mut self) -> Result<(), JournalError> {
        let cut =
            self.file.set_len(self.len).and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
        cut.map(|_| ()).map_err(|source| JournalError::Io {
            doing: "write",
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests;

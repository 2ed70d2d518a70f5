//! What a lab leaves on disk while it is up: enough for another process to enter it, and to remove
//! it.

use super::namespaces::{Anchors, Process, end};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where labs keep their state unless told otherwise: one directory for each.
pub const STATE: &str = "/run/sluice-lab";
/// The record inside a lab's directory.
const RECORD: &str = "lab.json";

/// A process the lab started inside a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// What it is, such as `sluice lb`.
    pub what: String,
    /// Which process.
    pub process: Process,
    /// Where it writes.
    pub log: PathBuf,
}

/// The record of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The processes that keep the namespaces.
    pub anchors: Anchors,
    /// Processes by host and kind (`sluice`, `servers`).
    pub started: BTreeMap<String, Started>,
}

/// A lab's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of the lab with that name.
    pub fn new(base: &Path, name: &str) -> Self {
        Self(base.join(name))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where configurations and the hash key lie.
    pub fn config(&self) -> PathBuf {
        self.0.join("config")
    }

    /// Where the processes of the lab write.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Makes the directory; an existing one is an error that says how to get rid of it.
    pub fn create(&self) -> Result<()> {
        if let Some(base) = self.0.parent() {
            std::fs::create_dir_all(base)
                .with_context(|| format!("cannot make {}", base.display()))?;
        }
        std::fs::create_dir(&self.0).with_context(|| {
            format!(
                "cannot make {}: if a lab is up, end it with `sluice-lab down`",
                self.0.display()
            )
        })?;
        for directory in [self.config(), self.logs()] {
            std::fs::create_dir(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(())
    }

    /// Writes the record, at once or not at all.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.0.join(RECORD);
        let beside = path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec_pretty(record)?)
            .and_then(|()| std::fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the record of a lab that is up.
    pub fn load(&self) -> Result<Record> {
        let path = self.0.join(RECORD);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "no lab is up here ({} cannot be read); start one with `sluice-lab up`",
                path.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Ends the lab's processes, if any are recorded, and removes the directory. Nothing there is
    /// no error.
    pub fn remove(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        // Without a record no process outlived its creator: the record is written before a lab is
        // left to itself.
        if let Ok(record) = self.load() {
            end(&record.anchors)?;
        }
        std::fs::remove_dir_all(&self.0)
            .with_context(|| format!("cannot remove {}", self.0.display()))?;
        // The base goes too when this was the last lab in it.
        if let Some(base) = self.0.parent() {
            drop(std::fs::remove_dir(base));
        }
        Ok(())
    }
}

/// Removes what labs of `run` left whose process was killed before it could clean up: `run-PID`
/// with no such process.
pub fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("run-").and_then(|pid| pid.parse::<i32>().ok());
        if owner.is_some_and(|pid| Process::identify(pid).is_err()) {
            // Best effort: a leftover that cannot be removed hinders nobody, since names are
            // unique.
            drop(StateDir::new(base, &name).remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lab_of_the_same_name_is_refused_with_the_way_out() {
        let base = tempfile::tempdir().unwrap();
        let state = StateDir::new(base.path(), "up");
        state.create().unwrap();
        let text = format!("{:#}", state.create().unwrap_err());
        assert!(text.contains("sluice-lab down"), "{text}");
        state.remove().unwrap();
        state.remove().unwrap();
        assert!(!state.path().exists());
    }

    #[test]
    fn the_sweep_removes_labs_of_dead_processes_only() {
        let base = tempfile::tempdir().unwrap();
        // PIDs end at 4,194,304 (proc(5), pid_max).
        let dead = StateDir::new(base.path(), "run-4999999");
        let own = StateDir::new(base.path(), &format!("run-{}", std::process::id()));
        let up = StateDir::new(base.path(), "up");
        for state in [&dead, &own, &up] {
            state.create().unwrap();
        }
        sweep(base.path());
        assert!(!dead.path().exists() && own.path().exists() && up.path().exists());
    }

    #[test]
    fn a_missing_lab_says_how_to_start_one() {
        let base = tempfile::tempdir().unwrap();
        let text = format!("{:#}", StateDir::new(base.path(), "up").load().unwrap_err());
        assert!(text.contains("sluice-lab up"), "{text}");
    }
}

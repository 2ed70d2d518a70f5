//! A lab's state directory, from which another process can enter and remove the lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::namespaces::{LabProcesses, ProcessId, end};
use super::topology::Topology;

/// The default parent of state directories.
pub const DEFAULT_STATE: &str = "/run/sluice-lab";
/// Name of the record in a state directory.
const RECORD: &str = "lab.json";

/// A process that the lab started inside a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartedProcess {
    /// Its function, such as `sluice lb`.
    pub title: String,
    /// The process.
    pub process: ProcessId,
    /// File with its output.
    pub log: PathBuf,
}

/// The record of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabRecord {
    /// The hosts.
    pub topology: Topology,
    /// The processes that keep the namespaces alive.
    pub processes: LabProcesses,
    /// Other processes by `host/kind`; kinds are `sluice` and `servers`.
    pub started: BTreeMap<String, StartedProcess>,
}

/// A lab's state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of the lab with that name.
    pub fn new(base: &Path, name: &str) -> Self {
        Self(base.join(name))
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory with the configurations and the hash key.
    pub fn config(&self) -> PathBuf {
        self.0.join("config")
    }

    /// The directory with the output of the lab's processes.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Creates the directory. The error about an existing one says how to remove it.
    pub fn create(&self) -> Result<()> {
        if let Some(base) = self.0.parent() {
            std::fs::create_dir_all(base)
                .with_context(|| format!("cannot create {}", base.display()))?;
        }
        std::fs::create_dir(&self.0).with_context(|| {
            format!(
                "cannot create {}: if a lab is up, remove it with `sluice-lab down`",
                self.0.display()
            )
        })?;
        for directory in [self.config(), self.logs()] {
            std::fs::create_dir(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        Ok(())
    }

    /// Replaces the record. A reader sees the old or the new one, never a part.
    pub fn save(&self, record: &LabRecord) -> Result<()> {
        let path = self.0.join(RECORD);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(record)?)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the record of a lab that is up.
    pub fn load(&self) -> Result<LabRecord> {
        let path = self.0.join(RECORD);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "no lab is up ({} cannot be read); start one with `sluice-lab up`",
                path.display()
            )
        })?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a valid record", path.display()))
    }

    /// Ends the recorded processes and removes the directory. A missing directory is no error.
    pub fn remove(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        // Without a record no process is left: it is written before the process that creates a
        // detached lab ends.
        if let Ok(record) = self.load() {
            end(&record.processes)?;
        }
        std::fs::remove_dir_all(&self.0)
            .with_context(|| format!("cannot remove {}", self.0.display()))?;
        // Removes the parent if this was the last lab; the error for others is ignored.
        if let Some(base) = self.0.parent() {
            drop(std::fs::remove_dir(base));
        }
        Ok(())
    }
}

/// Removes the state directories of `sluice-lab run` processes that were killed before their
/// clean-up: `run-PID` without such a process.
pub fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("run-").and_then(|pid| pid.parse::<i32>().ok());
        if owner.is_some_and(|pid| ProcessId::identify(pid).is_err()) {
            // Errors are ignored: names are unique, so a leftover does no harm.
            drop(StateDir::new(base, &name).remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_about_an_existing_directory_says_how_to_remove_it() {
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
    fn only_directories_of_dead_processes_are_swept() {
        let base = tempfile::tempdir().unwrap();
        // The maximum PID is 4,194,304 (proc(5), pid_max).
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
    fn the_error_about_a_missing_lab_says_how_to_start_one() {
        let base = tempfile::tempdir().unwrap();
        let text = format!("{:#}", StateDir::new(base.path(), "up").load().unwrap_err());
        assert!(text.contains("sluice-lab up"), "{text}");
    }
}

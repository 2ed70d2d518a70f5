//! The lock of a role of an instance.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::CliError;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::role::Role;

/// Keeps a second daemon away from a role of an instance. The lock ends with the process.
///
/// It belongs to the open file (`F_OFD_SETLK`), so that asking for its holder takes nothing from
/// anybody.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    fn path(instance: &str, role: Role) -> PathBuf {
        Path::new(STATE_DIRECTORY).join(instance).join(format!("{role}.lock"))
    }

    /// Takes the lock.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, CliError> {
        let path = Self::path(instance, role);
        let lock = || -> anyhow::Result<Self> {
            loop {
                if let Some(directory) = path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let opened = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path);
                let mut file = match opened {
                    // Whoever held it last has just removed the directory.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    opened => opened?,
                };
                match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                    Ok(_) => {}
                    Err(Errno::EAGAIN | Errno::EACCES) => {
                        let mut holder = String::new();
                        let _ = file.read_to_string(&mut holder);
                        return Err(anyhow!(
                            "another daemon already runs `sluice {role}` for the instance {instance:?} (process {}); end it \
                             first",
                            holder.trim()
                        ));
                    }
                    Err(errno) => return Err(errno.into()),
                }
                // Whoever held it last may have removed the file between our opening and locking
                // it: then this is nobody's lock.
                let (ours, theirs) = (file.metadata()?, fs::metadata(&path));
                if !theirs
                    .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
                {
                    continue;
                }
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Self { _file: file });
            }
        };
        lock()
            .with_context(|| format!("cannot lock {}", path.display()))
            .map_err(CliError::Operation)
    }

    /// The process that holds the lock of a role, if any.
    pub(crate) fn holder(instance: &str, role: Role) -> Option<u32> {
        let mut file = File::open(Self::path(instance, role)).ok()?;
        let mut asked = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked)).ok()?;
        if asked.l_type == libc::F_UNLCK as libc::c_short {
            return None;
        }
        let mut holder = String::new();
        file.read_to_string(&mut holder).ok()?;
        holder.trim().parse().ok()
    }

    /// Whether a role of an instance has state on this host: a journal of what it changed.
    pub(crate) fn state_exists(instance: &str, role: Role) -> bool {
        Journal::path_of(Path::new(STATE_DIRECTORY), instance, role).exists()
    }

    /// Whether locking left something behind, held or not.
    pub(crate) fn exists(instance: &str, role: Role) -> bool {
        Self::path(instance, role).exists()
    }

    /// Removes what locking left behind. The lock must be held.
    pub(crate) fn remove(self, instance: &str, role: Role) {
        let path = Self::path(instance, role);
        let _ = fs::remove_file(&path);
        if let Some(directory) = path.parent() {
            // Fails when the other role has state there, which is meant.
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_dir(STATE_DIRECTORY);
    }
}

/// An exclusive lock of a file as a whole.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

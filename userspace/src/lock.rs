//! The lock of a role of an instance.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::CliError;
use crate::files::private;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::kernel::namespace::{self, NetworkNamespace};
use crate::role::Role;
use crate::serve;

/// The maximum number of attempts to lock a file that other processes remove.
const ATTEMPTS: usize = 100;

/// The lock of a role of an instance: there is one daemon at a time. It is released when the
/// process ends.
///
/// It is a lock of the open file description (`F_OFD_SETLK`), because `F_OFD_GETLK` finds its
/// holder without taking it.
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    fn path(instance: &str, role: Role) -> PathBuf {
        Path::new(STATE_DIRECTORY).join(instance).join(format!("{role}.lock"))
    }

    /// Checks that the files of the role are still in the state directory. Without them, another
    /// daemon could start, and no command finds this one.
    pub(crate) fn check_files(&self, instance: &str, role: Role) -> Result<(), CliError> {
        let lock = Self::path(instance, role);
        let own = self.file.metadata().map_err(CliError::operation)?;
        let is_own = |found: fs::Metadata| (found.dev(), found.ino()) == (own.dev(), own.ino());
        let journal = Journal::path_of(Path::new(STATE_DIRECTORY), instance, role);
        let socket = serve::socket_path(instance, role);
        let missing = match fs::symlink_metadata(&lock).is_ok_and(is_own) {
            true => [&journal, &socket].into_iter().find(|path| !path.exists()),
            false => Some(&lock),
        };
        missing.map_or(Ok(()), |path| {
            Err(CliError::operation(anyhow!(
                "{} was removed or replaced while the daemon runs; packets are still handled; \
                 start the daemon again",
                path.display()
            )))
        })
    }

    /// Takes the lock.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, CliError> {
        let path = Self::path(instance, role);
        let lock = || -> anyhow::Result<Self> {
            for _ in 0..ATTEMPTS {
                let mut file = match create(&path) {
                    // The last holder has just removed the directory.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    opened => opened?,
                };
                match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                    Ok(_) => {}
                    Err(Errno::EAGAIN | Errno::EACCES) => {
                        if !is_locked_by_daemon(&file)? {
                            return Err(anyhow!(
                                "another process has locked the file for reading, which no daemon \
                                 does; find it with `fuser {}` and end it",
                                path.display()
                            ));
                        }
                        let mut holder = String::new();
                        let _ = file.read_to_string(&mut holder);
                        return Err(held(instance, role, holder.trim()));
                    }
                    Err(errno) => return Err(errno.into()),
                }
                // The last holder may have removed the file after it was opened here. Then the lock
                // is on a deleted file.
                let locked = file.metadata()?;
                let is_same =
                    |at: fs::Metadata| (at.dev(), at.ino()) == (locked.dev(), locked.ino());
                if !fs::metadata(&path).is_ok_and(is_same) {
                    continue;
                }
                if let Some(process) = hidden_holder(&path) {
                    return Err(held(instance, role, &process.to_string()));
                }
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Self { file });
            }
            Err(anyhow!(
                "the file was removed {ATTEMPTS} times while it was being locked; end the program \
                 that removes it"
            ))
        };
        lock()
            .with_context(|| format!("cannot lock {}", path.display()))
            .map_err(CliError::Operation)
    }

    /// The ID of the process that holds the lock of a role, if any, also through a file that was
    /// removed since or is in another mount namespace.
    pub(crate) fn holder(instance: &str, role: Role) -> Option<u32> {
        let path = Self::path(instance, role);
        let file = private::open_file(&path).ok().flatten();
        file.and_then(holder_of).or_else(|| hidden_holder(&path))
    }

    /// Whether a role of an instance has a journal on this host.
    pub(crate) fn state_exists(instance: &str, role: Role) -> bool {
        Journal::path_of(Path::new(STATE_DIRECTORY), instance, role).exists()
    }

    /// Whether the lock's file exists, locked or not.
    pub(crate) fn exists(instance: &str, role: Role) -> bool {
        Self::path(instance, role).exists()
    }

    /// Removes the lock's file, and the state directories if they are empty.
    pub(crate) fn remove(self, instance: &str, role: Role) {
        let path = Self::path(instance, role);
        let _ = fs::remove_file(&path);
        // Left by the daemon.
        let _ = fs::remove_file(serve::socket_path(instance, role));
        if let Some(directory) = path.parent() {
            // Fails if another role has state there.
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_dir(STATE_DIRECTORY);
    }
}

/// The error for a lock that a daemon holds.
fn held(instance: &str, role: Role, process: &str) -> anyhow::Error {
    anyhow!(
        "another daemon already runs `sluice {role}` for the instance {instance:?} (process \
         {process}); end it first"
    )
}

/// Creates the lock's file with its directories, or opens it.
fn create(path: &Path) -> io::Result<File> {
    private::create_directory(Path::new(STATE_DIRECTORY))?;
    path.parent().map_or(Ok(()), private::create_directory)?;
    private::create_file(path)
}

/// Whether a daemon holds the lock. A shared lock is not a daemon's.
fn is_locked_by_daemon(file: &File) -> nix::Result<bool> {
    let mut lock = whole_file(libc::F_RDLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// The ID in a file, if a daemon holds its lock.
fn holder_of(mut file: File) -> Option<u32> {
    if !is_locked_by_daemon(&file).ok()? {
        return None;
    }
    let mut holder = String::new();
    file.read_to_string(&mut holder).ok()?;
    holder.trim().parse().ok()
}

/// Another process of this network namespace that holds the lock of a file that had this path when
/// it was opened. Any user can have a file of this path in a mount namespace, so only private files
/// count, and others are not opened.
fn hidden_holder(path: &Path) -> Option<u32> {
    let own = NetworkNamespace::current().ok();
    let mut inside = namespace::processes().filter(|id| NetworkNamespace::of(*id) == own);
    inside.find(|process| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|descriptor| {
            let opened = fs::read_link(&descriptor).unwrap_or_default();
            let opened = opened.to_string_lossy();
            Path::new(opened.trim_end_matches(" (deleted)")) == path
                && fs::metadata(&descriptor).is_ok_and(|found| private::is_private(&found))
                && File::open(&descriptor).is_ok_and(|file| holder_of(file).is_some())
        })
    })
}

/// A lock of the whole file.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

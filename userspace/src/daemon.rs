//! What both daemons share: the lock, the log, the signals, the way out.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::bpf::{Pins, bpffs, mounted_bpffs};
use crate::failure::Failure;
use crate::journal::Role;

/// Where what was changed on the host is written down, a directory for each instance.
pub(crate) const STATE: &str = "/run/sluice";

/// How long changes of routes and links are gathered before they are looked at.
pub(crate) const SETTLE: Duration = Duration::from_millis(200);

/// How often routes are looked at although nothing was heard.
pub(crate) const REFRESH: Duration = Duration::from_secs(30);

/// Keeps a second daemon away from a role of an instance. The lock ends with the process.
///
/// It belongs to the open file (`F_OFD_SETLK`), so that asking for its holder takes nothing from
/// anybody.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    fn path(instance: &str, role: Role) -> PathBuf {
        Path::new(STATE).join(instance).join(format!("{role}.lock"))
    }

    /// Takes the lock.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, Failure> {
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
            .map_err(Failure::Operation)
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
        crate::journal::Journal::path_of(Path::new(STATE), instance, role).exists()
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
        let _ = fs::remove_dir(STATE);
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

/// The pins of a role of an instance; mounts the BPF file system where it is not.
pub(crate) fn pins(instance: &str, role: Role) -> Result<Pins, Failure> {
    Ok(Pins::new(&bpffs().map_err(Failure::operation)?, instance, role))
}

/// The pins of a role of an instance, for those who only look: `None` where no BPF file system is
/// mounted.
pub(crate) fn mounted_pins(instance: &str, role: Role) -> Result<Option<Pins>, Failure> {
    Ok(mounted_bpffs().map_err(Failure::operation)?.map(|bpffs| Pins::new(&bpffs, instance, role)))
}

/// What a daemon holds before it touches anything: the lock, and whether anything of its role was
/// here before.
pub(crate) struct Entry {
    /// The instance.
    pub(crate) instance: String,
    role: Role,
    /// The lock of the role.
    pub(crate) lock: Lock,
    /// Where its maps are, or will be.
    pub(crate) pins: Pins,
    fresh: bool,
}

impl Entry {
    /// Takes the lock, unless the pins are of a layout that this binary does not know.
    pub(crate) fn take(instance: &str, role: Role) -> Result<Self, Failure> {
        let pins = pins(instance, role)?;
        pins.check_layout().map_err(Failure::operation)?;
        let lock = Lock::take(instance, role)?;
        let fresh = !pins.exist() && !Lock::state_exists(instance, role);
        Ok(Self { instance: instance.to_owned(), role, lock, pins, fresh })
    }

    /// Ends a start that failed. What this start made is undone, so that nothing is half done; what
    /// was there before, and may well forward packets, stays.
    pub(crate) async fn give_up(self, failure: Failure) -> Failure {
        if self.fresh
            && let Err(undo) = crate::down::role(&self.instance, self.role, Some(self.lock)).await
        {
            warn!("{undo}");
        }
        failure
    }
}

/// Starts the log: standard error, one line an event, verbosity by `SLUICE_LOG` (default `info`).
pub(crate) fn log() {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails when a log was started already, as in tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init();
}

/// Runs a daemon's future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::operation)?;
    runtime.block_on(future)
}

/// The signals that a daemon listens to.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SIGTERM or SIGINT: end.
    End,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).context("cannot listen to signals").map_err(Failure::Operation);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

/// Tells the service manager, if there is one, how the daemon fares (`sd_notify`).
pub(crate) fn notify(state: sd_notify::NotifyState<'_>) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[state]);
}

//! Files that users write: configuration, source ACLs, keys.
//!
//! Only regular files are read: a pipe or a device could block for ever, or have no end. A read
//! happens on a thread and has a time limit, because a file of a network file system or of a FUSE
//! server may hang.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::geteuid;
use tracing::warn;

use crate::progress;

/// Limit of the time to read one file, enough for the largest ACL from a slow disk.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A file, read once.
#[derive(Debug)]
pub(crate) struct UserFile {
    /// The content.
    pub(crate) bytes: Vec<u8>,
    /// Its owner and mode.
    pub(crate) metadata: Metadata,
}

/// Reads a regular file of at most `max_bytes`.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if it is not a regular file, [`ErrorKind::FileTooLarge`],
/// [`ErrorKind::TimedOut`]; errors of the file system, and of creating a thread.
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<UserFile> {
    within(path, TIME_LIMIT, move |path| read_regular(path, max_bytes))
}

/// Logs a warning if other users can change a file that the caller has read, or replace it.
pub(crate) fn warn_if_shared(path: &Path) {
    // The file was read a moment ago.
    if let Ok(Some(problem)) = within(path, TIME_LIMIT, |path| Ok(sharing(path))) {
        let file = path.display();
        warn!(%file, "other users can change this file: {problem}");
    }
}

/// Why other users can change a file, or replace it, and the remedy.
fn sharing(path: &Path) -> Option<String> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    [path, directory].into_iter().find_map(|place| {
        let (problem, remedy) = shared(&fs::metadata(place).ok()?)?;
        Some(format!("{problem}; run `{remedy} {}`", place.display()))
    })
}

/// Why users other than root and the user of this process can write a file or in a directory, and
/// the command that prevents it.
fn shared(metadata: &Metadata) -> Option<(String, &'static str)> {
    let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    if is_foreign(owner) {
        return Some((format!("user {owner} owns it"), "chown root"));
    }
    // In a sticky directory, a file can only be replaced by its owner.
    if metadata.is_dir() && mode & 0o1000 != 0 {
        return None;
    }
    if mode & 0o002 != 0 {
        return Some((format!("mode {mode:04o} lets every user write"), "chmod o-w"));
    }
    let is_shared = mode & 0o020 != 0 && group != 0;
    is_shared.then(|| (format!("mode {mode:04o} lets group {group} write"), "chmod g-w"))
}

/// Whether a user is neither root nor the user of this process.
pub(crate) fn is_foreign(user: u32) -> bool {
    user != 0 && user != geteuid().as_raw()
}

fn read_regular(path: &Path, max_bytes: u64) -> io::Result<UserFile> {
    // Before it is opened, because opening a device can have an effect.
    check_regular(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    check_regular(&metadata)?;
    let bytes = read_limited(file, max_bytes)?;
    Ok(UserFile { bytes, metadata })
}

fn check_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))
}

fn read_limited(file: File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let problem = format!("larger than {max_bytes} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}

/// Runs `work` with a file on a thread for at most `limit`. After that the thread is left to
/// itself: the kernel may not let it end. There is at most one such thread for a file; until it
/// ends, further calls fail at once.
fn within<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    static HANGING: Mutex<BTreeMap<PathBuf, JoinHandle<()>>> = Mutex::new(BTreeMap::new());
    let hanging = || HANGING.lock().unwrap_or_else(PoisonError::into_inner);

    hanging().retain(|_, thread| !thread.is_finished());
    if hanging().contains_key(path) {
        let problem = "no answer from the file system since an earlier attempt";
        return Err(io::Error::new(ErrorKind::TimedOut, problem));
    }
    let (sender, result) = mpsc::sync_channel(1);
    let path = path.to_owned();
    let of_thread = path.clone();
    let run = move || {
        // The receiver is gone after the time limit.
        let _ = sender.send(work(&of_thread));
    };
    progress::report();
    let thread = spawn(run).map_err(no_thread)?;
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            hanging().insert(path, thread);
            let problem = format!("no answer from the file system within {} s", limit.as_secs());
            Err(io::Error::new(ErrorKind::TimedOut, problem))
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the reading thread ended")),
    }
}

/// Creates a thread. Tries again where there is none to be had: the kernel counts a thread that has
/// just ended for a moment longer.
fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    const ATTEMPTS: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(10);

    // A failed attempt drops its closure.
    let run = Arc::new(Mutex::new(Some(run)));
    let mut attempts = 0..ATTEMPTS;
    loop {
        let run = Arc::clone(&run);
        let take = move || run.lock().ok().and_then(|mut run| run.take());
        let spawned = thread::Builder::new().name("read".to_owned()).spawn(move || {
            if let Some(run) = take() {
                run();
            }
        });
        match spawned {
            Err(error) if error.kind() == ErrorKind::WouldBlock && attempts.next().is_some() => {
                thread::sleep(PAUSE);
            }
            spawned => return spawned,
        }
    }
}

/// The error of a thread that cannot be created.
pub(crate) fn no_thread(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot create a thread: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_pipe_a_device_and_a_directory_are_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [&pipe, directory.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            let error = read(path, 64).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}: {error}", path.display());
            assert_eq!(error.to_string(), "not a regular file");
        }
    }

    #[test]
    fn a_file_has_at_most_the_wanted_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345678").unwrap();
        assert_eq!(read(&path, 8).unwrap().bytes, b"12345678");
        assert_eq!(read(&path, 7).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(
            read(&directory.path().join("none"), 7).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn a_read_that_hangs_is_given_up() {
        let (keep, never) = mpsc::channel::<()>();
        let (limit, path) = (Duration::from_millis(50), Path::new("/hanging"));
        let begin = Instant::now();
        let hang = move |_: &Path| never.recv_timeout(TIME_LIMIT).map_err(io::Error::other);
        let assert_given_up = |error: io::Error| {
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(error.to_string().starts_with("no answer from the file system"), "{error}");
        };
        assert_given_up(within(path, limit, hang).unwrap_err());
        // Another attempt creates no other thread while the first one hangs.
        let unreachable = |_: &Path| -> io::Result<()> { unreachable!("not called") };
        assert_given_up(within(path, limit, unreachable).unwrap_err());
        within(Path::new("/other"), TIME_LIMIT, |_| Ok(())).unwrap();
        drop(keep);
        while within(path, TIME_LIMIT, |_| Ok(())).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_other_users_can_change_is_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        let problem = |mode, user, group| {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            shared(&fs::metadata(&path).unwrap())
        };
        if !geteuid().is_root() {
            return;
        }
        for mode in [0o600, 0o640, 0o644, 0o664] {
            assert_eq!(problem(mode, 0, 0), None, "{mode:o}");
        }
        assert_eq!(problem(0o644, 0, 65_534), None);
        let text = |problem: Option<(String, &str)>| {
            problem.map(|(problem, remedy)| format!("{problem}: {remedy}")).unwrap_or_default()
        };
        assert_eq!(text(problem(0o666, 0, 0)), "mode 0666 lets every user write: chmod o-w");
        assert_eq!(text(problem(0o664, 0, 65_534)), "mode 0664 lets group 65534 write: chmod g-w");
        assert_eq!(text(problem(0o600, 65_534, 0)), "user 65534 owns it: chown root");
    }
}

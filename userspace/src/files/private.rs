//! Directories and files of Sluice's own: pins, journals, locks.
//!
//! Sluice runs as root, trusts the content of these files, and removes the directories at the end.
//! A place that another user could have planted or can replace is therefore refused: a link, a
//! foreign owner, or write access for group or others. Paths are walked by descriptor from `/`,
//! without following links. Above Sluice's own directories a directory with the sticky bit may be
//! writable by others (`/tmp`, a BPF file system with mode 1777), because they cannot rename or
//! remove entries of other users there. After a check, no other user can change the path, so that
//! it can be used as a path.
//!
//! Directories are created with mode 0700 and files with mode 0600, whatever the umask: a user who
//! can open a file can lock it.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_path, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::geteuid;

use super::input::is_foreign;

/// The mode of directories.
const DIRECTORY_MODE: u32 = 0o700;

/// The mode of files.
const FILE_MODE: u32 = 0o600;

/// Write access for group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The maximum number of attempts to create a directory.
const ATTEMPTS: usize = 20;

/// A place that another user could have planted or can change.
#[derive(Debug, thiserror::Error)]
#[error("{} {problem}", path.display())]
struct UnsafePlace {
    path: PathBuf,
    problem: String,
}

/// The kinds of places, and what is required of each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A directory above Sluice's own ones.
    Ancestor,
    Directory,
    File,
}

/// Checks a directory and the path to it; returns whether it exists.
pub(crate) fn check_directory(path: &Path) -> io::Result<bool> {
    Ok(walk(path, false)?.is_some())
}

/// Checks a directory, the path to it, and everything in it; returns whether it exists.
pub(crate) fn check_tree(path: &Path) -> io::Result<bool> {
    if !check_directory(path)? {
        return Ok(false);
    }
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        // Another command may remove entries at the same time.
        let Some(entries) = found(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let path = entry?.path();
            let Some(metadata) = found(fs::symlink_metadata(&path))? else { continue };
            let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
            check(&path, metadata.mode(), metadata.uid(), kind)?;
            if kind == Kind::Directory {
                directories.push(path);
            }
        }
    }
    Ok(true)
}

/// Creates a directory and its missing parents, and removes the access of others to an existing
/// one.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        // Another command may remove an empty parent at the same time.
        if found(try_create_directory(path))?.is_some() {
            return Ok(());
        }
    }
    try_create_directory(path)
}

fn try_create_directory(path: &Path) -> io::Result<()> {
    let directory = walk(path, true)?.ok_or(ErrorKind::NotFound)?;
    restrict(path, fstat(&directory)?.st_mode, DIRECTORY_MODE)
}

/// Opens a file for reading and writing, or creates it, and removes the access of others to an
/// existing one. Its directory must exist.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    let file = open(path, true)?.ok_or(ErrorKind::NotFound)?;
    restrict(path, file.metadata()?.mode(), FILE_MODE)?;
    Ok(file)
}

/// Whether this is a regular file that no other user can change.
pub(crate) fn is_private(found: &Metadata) -> bool {
    check(Path::new(""), found.mode(), found.uid(), Kind::File).is_ok()
}

/// Opens a file for reading and writing; `None` if it does not exist.
pub(crate) fn open_file(path: &Path) -> io::Result<Option<File>> {
    open(path, false)
}

fn open(path: &Path, create: bool) -> io::Result<Option<File>> {
    if !path.parent().map_or(Ok(false), check_directory)? {
        return Ok(None);
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match found(opened) {
        Ok(None) => Ok(None),
        Ok(Some(file)) => {
            let metadata = file.metadata()?;
            check(path, metadata.mode(), metadata.uid(), Kind::File)?;
            Ok(Some(file))
        }
        Err(error) => {
            // A link, or a directory.
            if let Ok(metadata) = fs::symlink_metadata(path) {
                check(path, metadata.mode(), metadata.uid(), Kind::File)?;
            }
            Err(error)
        }
    }
}

/// The result of an operation on a file; `None` if it does not exist.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Opens and checks each component of a path to a directory, and creates missing ones if wanted;
/// `None` if one does not exist.
fn walk(path: &Path, create: bool) -> io::Result<Option<OwnedFd>> {
    let path = std::path::absolute(path)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut directory = open_path(&at, flags, Mode::empty())?;
    let mut names = path.components().skip(1).peekable();
    while let Some(component) = names.next() {
        let Component::Normal(name) = component else {
            return Err(unsafe_place(&path, "contains `..`; give the path without it"));
        };
        at.push(name);
        if create {
            match mkdirat(&directory, name, Mode::from_bits_truncate(DIRECTORY_MODE)) {
                Ok(()) => fs::set_permissions(&at, Permissions::from_mode(DIRECTORY_MODE))?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        directory = match openat(&directory, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        let status = fstat(&directory)?;
        let kind = if names.peek().is_some() { Kind::Ancestor } else { Kind::Directory };
        check(&at, status.st_mode, status.st_uid, kind)?;
    }
    Ok(Some(directory))
}

/// Sets the mode of a file or directory that was checked, if it gives access to others.
fn restrict(path: &Path, present: u32, mode: u32) -> io::Result<()> {
    if present & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Checks the type, the owner and the permissions of a place.
fn check(path: &Path, mode: u32, owner: u32, kind: Kind) -> io::Result<()> {
    let own = geteuid().as_raw();
    let (expected, name) = match kind {
        Kind::Ancestor | Kind::Directory => (libc::S_IFDIR, "a directory"),
        Kind::File => (libc::S_IFREG, "a regular file"),
    };
    let file_type = mode & libc::S_IFMT;
    let permissions = mode & 0o7777;
    if file_type == libc::S_IFLNK {
        return Err(unsafe_place(path, "is a symbolic link, which is not followed; remove it"));
    }
    if file_type != expected {
        return Err(unsafe_place(path, &format!("is not {name}; remove it")));
    }
    if is_foreign(owner) {
        let expected = if own == 0 { "root".to_owned() } else { format!("root or user {own}") };
        return Err(unsafe_place(
            path,
            &format!("belongs to user {owner}, not to {expected}; look at it and remove it"),
        ));
    }
    let is_sticky = kind == Kind::Ancestor && permissions & 0o1000 != 0;
    if permissions & WRITABLE_BY_OTHERS != 0 && !is_sticky {
        let path_text = path.display();
        let problem = format!(
            "has mode {permissions:04o}, so that other users can change it; look at it and run \
             `chmod go-w {path_text}`"
        );
        return Err(unsafe_place(path, &problem));
    }
    Ok(())
}

fn unsafe_place(path: &Path, problem: &str) -> io::Error {
    let place = UnsafePlace { path: path.to_owned(), problem: problem.to_owned() };
    io::Error::new(ErrorKind::PermissionDenied, place)
}

#[cfg(test)]
mod tests;

//! The directories of pinned maps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sluice_datapath::LAYOUT_VERSION;

use super::Error;
use super::bpffs::{bpffs, bpffs_of, is_private, mounted_bpffs};
use crate::files::private;
use crate::role::Role;

/// Suffixes of the directories of a role, see [`Pins`].
const SUFFIXES: [&str; 3] = ["", "-next", "-new"];

/// The subdirectory for the counts of earlier maps: arrays under the names of the counter maps.
pub(super) const COUNTED_BEFORE: &str = "counted_before";

/// The maximum number of attempts to open a set of maps that is being replaced.
const ATTEMPTS: usize = 20;

/// The pins of one role of one instance, under `<bpffs>/sluice/<instance>/<layout version>/`.
///
/// They are in the directory `<role>`. A resize creates a new set in `<role>-new`, which no reader
/// opens, and renames it to `<role>-next` once it is complete. From then on it is the set in force.
/// The old set stays until no running program uses it. Then it is removed, and the new set takes
/// its name.
#[derive(Debug, Clone)]
pub struct Pins {
    instance: String,
    role: Role,
    /// `<bpffs>/sluice`.
    root: PathBuf,
    /// `<bpffs>/sluice/<instance>`.
    home: PathBuf,
}

/// A set of maps, and the directories of earlier counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// The directory of the maps' pins.
    pub(super) directory: PathBuf,
    /// Directories with counters to be added to those of the maps.
    pub(super) earlier: Vec<PathBuf>,
}

impl Pins {
    /// The pins of `role` of `instance` under a BPF file system's mount point.
    pub fn new(bpffs: &Path, instance: &str, role: Role) -> Self {
        let root = bpffs.join("sluice");
        Self { instance: instance.to_owned(), role, home: root.join(instance), root }
    }

    /// The pins of the same role of another instance.
    pub fn of_instance(&self, instance: &str) -> Self {
        let home = self.root.join(instance);
        Self { instance: instance.to_owned(), home, ..self.clone() }
    }

    /// The other instances with pins of this role.
    pub fn other_instances(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| *name != self.instance && self.of_instance(name).exist()).collect()
    }

    /// All pins of this role, of all layout versions.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        let paths = |directory: &Path| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let directories =
            paths(&self.home).into_iter().flat_map(|version| self.of_version(&version));
        directories.flat_map(|directory| paths(&directory)).collect()
    }

    /// The pins of a role of an instance. Mounts the BPF file system if it is not mounted.
    ///
    /// # Errors
    ///
    /// [`Error::System`], also if another user can change the pins.
    pub fn mount(instance: &str, role: Role) -> Result<Self, Error> {
        let pins = Self::new(&bpffs()?, instance, role);
        pins.check_access()?;
        Ok(pins)
    }

    /// The pins of a role of an instance, for reading; `None` if no BPF file system is mounted.
    ///
    /// # Errors
    ///
    /// [`Error::System`], also if another user can change the pins.
    pub fn find(instance: &str, role: Role) -> Result<Option<Self>, Error> {
        let Some(bpffs) = mounted_bpffs()? else { return Ok(None) };
        let pins = Self::new(&bpffs, instance, role);
        pins.check_access()?;
        Ok(Some(pins))
    }

    /// The pins of the same role and instance in the mount namespace of another process, by paths
    /// of this one; `None` if that has no BPF file system.
    pub fn in_mounts_of(instance: &str, role: Role, process: u32) -> Option<Self> {
        bpffs_of(process).map(|bpffs| Self::new(&bpffs, instance, role))
    }

    /// Whether the BPF file system is mounted in this mount namespace only.
    pub fn are_private(&self) -> bool {
        self.root.parent().is_some_and(is_private)
    }

    /// Checks that no other user has planted the pins or can change them. Where the BPF file system
    /// is writable by everyone, another user may have created their directory first.
    fn check_access(&self) -> Result<(), Error> {
        match private::check_tree(&self.home) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::System {
                what: format!("use the pins in {}", self.home.display()),
                source,
            }),
        }
    }

    /// The directory of the set of maps in force.
    pub fn directory(&self) -> PathBuf {
        let next = self.next();
        if next.is_dir() { next } else { self.settled() }
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The directory of a set while it is the only one.
    pub(super) fn settled(&self) -> PathBuf {
        self.named(SUFFIXES[0])
    }

    /// The directory of a set that is in force while its predecessor exists.
    pub(super) fn next(&self) -> PathBuf {
        self.named(SUFFIXES[1])
    }

    /// The directory of an incomplete set.
    pub(super) fn new_set(&self) -> PathBuf {
        self.named(SUFFIXES[2])
    }

    fn named(&self, suffix: &str) -> PathBuf {
        self.home.join(LAYOUT_VERSION.to_string()).join(format!("{}{suffix}", self.role.as_str()))
    }

    /// The directories of this role that exist, of one layout version.
    fn of_version(&self, version: &Path) -> Vec<PathBuf> {
        let named =
            SUFFIXES.iter().map(|suffix| version.join(format!("{}{suffix}", self.role.as_str())));
        named.filter(|directory| directory.is_dir()).collect()
    }

    /// Opens the set of maps in force. Repeated if the set was replaced in the meantime, so that
    /// all maps belong to one set.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Layout`], or the error of `open`.
    pub(super) fn open<T>(&self, open: impl Fn(&Set) -> Result<T, Error>) -> Result<T, Error> {
        let mut attempts = 0..ATTEMPTS;
        loop {
            let before = self.identity();
            let opened = self.require().and_then(|()| open(&self.set()));
            if before == self.identity() || attempts.next().is_none() {
                return opened;
            }
        }
    }

    fn set(&self) -> Set {
        let directory = self.directory();
        let kept =
            |directory: &Path| Some(directory.join(COUNTED_BEFORE)).filter(|kept| kept.is_dir());
        let earlier = match kept(&directory) {
            Some(kept) => vec![kept],
            // The previous set still exists and has its own counts.
            None if directory != self.settled() => {
                [Some(self.settled()), kept(&self.settled())].into_iter().flatten().collect()
            }
            None => Vec::new(),
        };
        Set { directory, earlier }
    }

    /// The inodes of the directories, which change during and after a replacement.
    fn identity(&self) -> Vec<(PathBuf, Option<u64>)> {
        use std::os::unix::fs::MetadataExt as _;
        let directories = [self.next(), self.next().join(COUNTED_BEFORE), self.settled()];
        let number = |path: &PathBuf| fs::metadata(path).map(|data| data.ino()).ok();
        directories
            .into_iter()
            .map(|path| (number(&path), path))
            .map(|(number, path)| (path, number))
            .collect()
    }

    /// Whether there are pins of this role, of any layout version.
    pub fn exist(&self) -> bool {
        let entries = fs::read_dir(&self.home).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| !self.of_version(&entry.path()).is_empty())
    }

    /// Creates the directory, and removes an incomplete set.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`] if pins of this role have another layout version; [`Error::System`].
    pub fn create(&self) -> Result<(), Error> {
        for directory in [&self.root, &self.home] {
            make(directory)?;
        }
        self.check_layout()?;
        remove(&self.new_set())?;
        let directory = self.directory();
        directory.parent().map_or(Ok(()), make)?;
        make(&directory)
    }

    /// Checks that there are pins of this layout version.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`]; [`Error::Layout`] if they have another layout version.
    pub fn require(&self) -> Result<(), Error> {
        self.check_layout()?;
        let directory = self.directory();
        if directory.is_dir() {
            return Ok(());
        }
        Err(Error::Absent {
            role: self.role.as_str(),
            instance: self.instance.clone(),
            path: directory,
        })
    }

    /// Fails with [`Error::Layout`] if pins of this role have another layout version.
    pub fn check_layout(&self) -> Result<(), Error> {
        self.check_access()?;
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            if found != LAYOUT_VERSION.to_string() && !self.of_version(&entry.path()).is_empty() {
                return Err(Error::Layout {
                    instance: self.instance.clone(),
                    found,
                    known: LAYOUT_VERSION,
                });
            }
        }
        Ok(())
    }

    /// Removes this role's pins of all layout versions, and directories that are empty afterwards.
    /// Returns whether there were any pins.
    pub fn remove(&self) -> Result<bool, Error> {
        self.check_access()?;
        let mut removed = false;
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            for directory in self.of_version(&entry.path()) {
                remove(&directory)?;
                removed = true;
            }
            // Fails if the directory has pins of another role, which must stay.
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.home);
        let _ = fs::remove_dir(&self.root);
        Ok(removed)
    }
}

/// Creates a directory of pins, or removes the access of others to an existing one.
pub(super) fn make(directory: &Path) -> Result<(), Error> {
    private::create_directory(directory).map_err(|source| Error::System {
        what: format!("create the directory {}", directory.display()),
        source,
    })
}

/// Removes a directory of pins, if it exists.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::System { what: format!("remove {}", directory.display()), source })
        }
        _ => Ok(()),
    }
}

/// Renames a directory of pins atomically.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::System {
        what: format!("rename {} to {}", from.display(), to.display()),
        source,
    })
}

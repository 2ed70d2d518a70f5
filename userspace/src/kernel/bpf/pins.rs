//! Where maps are pinned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use sluice_datapath::LAYOUT_VERSION;

use super::Error;
use crate::role::Role;

/// Where the BPF file system is mounted: the first mount of it, mounted at `/sys/fs/bpf` when there
/// is none.
///
/// # Errors
///
/// [`Error::System`] when it cannot be mounted.
pub fn bpffs() -> Result<PathBuf, Error> {
    let system = |source| Error::System {
        what: "mount the BPF file system at /sys/fs/bpf".to_owned(),
        source,
    };
    if let Some(path) = mounted_bpffs()? {
        return Ok(path);
    }
    let path = PathBuf::from("/sys/fs/bpf");
    mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| system(io::Error::from(errno)))?;
    Ok(path)
}

/// Where the BPF file system is mounted, if it is: for those who only look.
///
/// # Errors
///
/// [`Error::System`] when the mounts cannot be read.
pub fn mounted_bpffs() -> Result<Option<PathBuf>, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|source| Error::System { what: "read /proc/self/mounts".to_owned(), source })?;
    Ok(mounted(&mounts))
}

/// The mount point of a BPF file system in the text of `/proc/self/mounts`, the usual place first.
fn mounted(mounts: &str) -> Option<PathBuf> {
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(point.replace("\\040", " ")))
    });
    let points: Vec<_> = points.collect();
    let usual = Path::new("/sys/fs/bpf");
    points.iter().find(|point| *point == usual).or(points.first()).cloned()
}

/// Suffixes of the directories of one role: see [`Pins`].
const SUFFIXES: [&str; 3] = ["", "-next", "-new"];

/// In a directory of maps: arrays of what maps counted that were there before them, by the
/// counters' names.
pub(super) const COUNTED_BEFORE: &str = "counted_before";

/// How often a set of maps is looked for that is replaced while it is being opened.
const ATTEMPTS: usize = 20;

/// The pins of one role of one instance, under `<bpffs>/sluice/<instance>/<layout version>/`.
///
/// They are in the directory `<role>`. While the maps are replaced by larger ones, a new set is
/// made in `<role>-new`, which nobody looks into, and becomes `<role>-next` by one rename when it
/// is whole. From then on it is the set in force, and the one before it stays until no packet reads
/// it; then it is removed, and the new one takes its name.
#[derive(Debug, Clone)]
pub struct Pins {
    instance: String,
    role: Role,
    /// `<bpffs>/sluice/<instance>`.
    home: PathBuf,
}

/// A set of maps, and where what was counted before them is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// The directory of the maps' pins.
    pub(super) directory: PathBuf,
    /// Directories with counters that count beside those of the maps.
    pub(super) earlier: Vec<PathBuf>,
}

impl Pins {
    /// The pins of `role` of `instance` under a BPF file system's mount point.
    pub fn new(bpffs: &Path, instance: &str, role: Role) -> Self {
        Self { instance: instance.to_owned(), role, home: bpffs.join("sluice").join(instance) }
    }

    /// The pins of a role of an instance; mounts the BPF file system where it is not mounted.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn mount(instance: &str, role: Role) -> Result<Self, Error> {
        Ok(Self::new(&bpffs()?, instance, role))
    }

    /// The pins of a role of an instance, for reading: `None` where no BPF file system is mounted.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn find(instance: &str, role: Role) -> Result<Option<Self>, Error> {
        Ok(mounted_bpffs()?.map(|bpffs| Self::new(&bpffs, instance, role)))
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

    /// Where a set is while it is the only one.
    pub(super) fn settled(&self) -> PathBuf {
        self.named(SUFFIXES[0])
    }

    /// Where a set is that is in force, and whose predecessor still counts.
    pub(super) fn next(&self) -> PathBuf {
        self.named(SUFFIXES[1])
    }

    /// Where a set is that is not whole yet.
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

    /// Opens the set of maps in force; once more when it was replaced meanwhile, so that what is
    /// opened belongs together.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Layout`], or what `open` says.
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
            // The set before this one is still there, and counts for itself.
            None if directory != self.settled() => {
                [Some(self.settled()), kept(&self.settled())].into_iter().flatten().collect()
            }
            None => Vec::new(),
        };
        Set { directory, earlier }
    }

    /// Which directories there are: not the same after a replacement, nor in the midst of one.
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

    /// Whether there are pins of this role, of whatever layout version.
    pub fn exist(&self) -> bool {
        let entries = fs::read_dir(&self.home).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| !self.of_version(&entry.path()).is_empty())
    }

    /// Makes the directory, and removes a set that was not completed.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`] when pins of this role exist in a layout that this binary does not know,
    /// [`Error::System`].
    pub fn create(&self) -> Result<(), Error> {
        self.check_layout()?;
        remove(&self.new_set())?;
        make(&self.directory())
    }

    /// Checks that there are pins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], or [`Error::Layout`] when they are in a layout that this binary does not
    /// know.
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

    /// Checks that no pins of this role are there in a layout that this binary does not know.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`].
    pub fn check_layout(&self) -> Result<(), Error> {
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

    /// Removes this role's pins, of every layout version, and the directories that this leaves
    /// empty. Whether there were any.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove(&self) -> Result<bool, Error> {
        let mut removed = false;
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            for directory in self.of_version(&entry.path()) {
                remove(&directory)?;
                removed = true;
            }
            // Fails when the other role's pins are there, which is meant.
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.home);
        if let Some(parent) = self.home.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(removed)
    }
}

/// Makes a directory of pins.
pub(super) fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(|source| Error::System {
        what: format!("create the directory {}", directory.display()),
        source,
    })
}

/// Removes a directory of pins, if it is there.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::System { what: format!("remove {}", directory.display()), source })
        }
        _ => Ok(()),
    }
}

/// Gives a directory of pins its place, at once.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::System {
        what: format!("rename {} to {}", from.display(), to.display()),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_mount_point_is_preferred() {
        let mounts = "bpf /run/other/bpf bpf rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/bpf".into()));
        assert_eq!(
            mounted("tmpfs /run tmpfs rw 0 0\nnone /with\\040space bpf rw 0 0\n"),
            Some("/with space".into())
        );
        assert_eq!(mounted("tmpfs /run tmpfs rw 0 0\n"), None);
    }
}

//! Where maps are pinned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use sluice_datapath::LAYOUT_VERSION;

use super::Error;
use crate::journal::Role;

/// Where the BPF file system is mounted: the first mount of it, mounted at `/sys/fs/bpf` when there is none.
///
/// # Errors
///
/// [`Error::System`] when it cannot be mounted.
pub fn bpffs() -> Result<PathBuf, Error> {
    let system = |source| Error::System { what: "mount the BPF file system at /sys/fs/bpf".to_owned(), source };
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

/// The directory that holds the pins of one role of one instance.
#[derive(Debug, Clone)]
pub struct Pins {
    instance: String,
    role: Role,
    /// `<bpffs>/sluice/<instance>`.
    home: PathBuf,
}

impl Pins {
    /// The pins of `role` of `instance` under a BPF file system's mount point.
    pub fn new(bpffs: &Path, instance: &str, role: Role) -> Self {
        Self { instance: instance.to_owned(), role, home: bpffs.join("sluice").join(instance) }
    }

    /// The directory itself.
    pub fn directory(&self) -> PathBuf {
        self.home.join(LAYOUT_VERSION.to_string()).join(self.role.as_str())
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Whether there are pins of this role, of whatever layout version.
    pub fn exist(&self) -> bool {
        let entries = fs::read_dir(&self.home).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.path().join(self.role.as_str()).is_dir())
    }

    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`] when pins of this role exist in a layout that this binary does not know, [`Error::System`].
    pub fn create(&self) -> Result<(), Error> {
        self.check_layout()?;
        let directory = self.directory();
        fs::create_dir_all(&directory)
            .map_err(|source| Error::System { what: format!("create the directory {}", directory.display()), source })
    }

    /// Checks that there are pins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], or [`Error::Layout`] when they are in a layout that this binary does not know.
    pub fn require(&self) -> Result<(), Error> {
        self.check_layout()?;
        let directory = self.directory();
        if directory.is_dir() {
            return Ok(());
        }
        Err(Error::Absent { role: self.role.as_str(), instance: self.instance.clone(), path: directory })
    }

    /// Checks that no pins of this role are there in a layout that this binary does not know.
    ///
    /// # Errors
    ///
    /// [`Error::Layout`].
    pub fn check_layout(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            if found != LAYOUT_VERSION.to_string() && entry.path().join(self.role.as_str()).is_dir() {
                return Err(Error::Layout { instance: self.instance.clone(), found, known: LAYOUT_VERSION });
            }
        }
        Ok(())
    }

    /// Removes this role's pins, of every layout version, and the directories that this leaves empty. Whether there were any.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn remove(&self) -> Result<bool, Error> {
        let mut removed = false;
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            let directory = entry.path().join(self.role.as_str());
            if directory.is_dir() {
                fs::remove_dir_all(&directory)
                    .map_err(|source| Error::System { what: format!("remove {}", directory.display()), source })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_mount_point_is_preferred() {
        let mounts = "bpf /run/other/bpf bpf rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/bpf".into()));
        assert_eq!(mounted("tmpfs /run tmpfs rw 0 0\nnone /with\\040space bpf rw 0 0\n"), Some("/with space".into()));
        assert_eq!(mounted("tmpfs /run tmpfs rw 0 0\n"), None);
    }
}

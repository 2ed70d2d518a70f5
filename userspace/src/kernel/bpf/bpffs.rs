//! The mount of the BPF file system.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::Error;

/// The mount point of the BPF file system. Mounts it at `/sys/fs/bpf`, for root only, if it is not
/// mounted.
pub fn bpffs() -> Result<PathBuf, Error> {
    let system = |source| Error::System {
        what: "mount the BPF file system at /sys/fs/bpf".to_owned(),
        source,
    };
    if let Some(path) = mounted_bpffs()? {
        return Ok(path);
    }
    let path = PathBuf::from("/sys/fs/bpf");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Without a mode it would be 1777.
    mount(Some("bpf"), &path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| system(io::Error::from(errno)))?;
    Ok(path)
}

/// The mount point of the BPF file system, if it is mounted. Changes nothing.
pub(super) fn mounted_bpffs() -> Result<Option<PathBuf>, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|source| Error::System { what: "read /proc/self/mounts".to_owned(), source })?;
    Ok(mounted(&mounts))
}

/// The path by which the BPF file system of another process's mount namespace is reached; `None` if
/// it has none, or the process has ended.
pub(super) fn bpffs_of(process: u32) -> Option<PathBuf> {
    let mounts = fs::read_to_string(format!("/proc/{process}/mounts")).ok()?;
    Some(within(process, &mounted(&mounts)?))
}

/// Whether the first process sees another file system, or none, at the mount point of the BPF file
/// system: then it is mounted in this mount namespace only. `ip netns exec` makes such a namespace.
/// If that process's mounts cannot be read, those of the parent count.
pub(super) fn is_private(bpffs: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    let mut others = [1, std::os::unix::process::parent_id()].into_iter();
    let readable = others.find(|process| device(&within(*process, Path::new("/"))).is_some());
    readable.is_some_and(|process| device(&within(process, bpffs)) != device(bpffs))
}

/// A path in another process's mount namespace.
fn within(process: u32, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{process}/root"));
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The mount point of a BPF file system in the text of `/proc/PID/mounts`, preferably
/// `/sys/fs/bpf`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_fs_bpf_is_the_preferred_mount_point() {
        let mounts = "bpf /run/other/bpf bpf rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/bpf".into()));
        assert_eq!(
            mounted("tmpfs /run tmpfs rw 0 0\nnone /with\\040space bpf rw 0 0\n"),
            Some("/with space".into())
        );
        assert_eq!(mounted("tmpfs /run tmpfs rw 0 0\n"), None);
    }
}

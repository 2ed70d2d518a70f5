//! The network namespace that changes of the host belong to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fmt, process};

use serde::{Deserialize, Serialize};

/// The directory of namespaces with names, as `ip netns` makes them.
const NAMES: &str = "/run/netns";

/// A network namespace, by the inode of `/proc/PID/ns/net`. The kernel uses the number again after
/// the namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkNamespace(u64);

impl NetworkNamespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        fs::metadata("/proc/thread-self/ns/net").map(|data| Self(data.ino()))
    }

    /// The namespace of a process; `None` if it has ended.
    pub(crate) fn of(process: u32) -> Option<Self> {
        Self::at(Path::new(&format!("/proc/{process}/ns/net")))
    }

    fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|data| Self(data.ino()))
    }

    /// The command that runs another command in the namespace; `None` if neither a name nor a
    /// process has it. It keeps the mounts, unlike `ip netns exec`, so that the pins stay visible.
    pub fn enter_command(self) -> Option<String> {
        let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
        let mut named = names.map(|entry| entry.path()).filter(|path| Self::at(path) == Some(self));
        if let Some(path) = named.next() {
            return Some(format!("nsenter --net={}", path.display()));
        }
        let mut inside = processes().filter(|process| Self::of(*process) == Some(self));
        inside.next().map(|process| format!("nsenter --target {process} --net"))
    }
}

impl fmt::Display for NetworkNamespace {
    /// As `readlink /proc/PID/ns/net` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.0)
    }
}

/// The IDs of all other processes that are visible here.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| *id != process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_can_be_entered_through_a_process() {
        let own = NetworkNamespace::current().unwrap();
        assert_eq!(NetworkNamespace::of(process::id()), Some(own));
        assert_eq!(NetworkNamespace(1).enter_command(), None);
        let text = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(own.to_string(), text.to_str().unwrap());
    }
}

//! Sysctls under `/proc/sys`.
//!
//! Sysctls are named by path (`net/ipv4/conf/eth0.100/arp_ignore`), never by dotted key, because
//! interface names may contain dots. Network sysctls are those of the calling thread's namespace.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

const ROOT: &str = "/proc/sys";

/// The sysctls of an interface that a backend sets, with the values that differ from the kernel's
/// defaults.
pub(super) const BACKEND_SETTINGS: [(&str, &str); 3] =
    [("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2")];

/// The name of a sysctl: its path below `/proc/sys`, every component validated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sysctl(String);

/// Why a sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysctlError {
    /// The name is not a path below `/proc/sys`.
    #[error(
        "{0:?} is not a sysctl; give its path below {ROOT}, such as net/ipv4/conf/eth0/rp_filter"
    )]
    Name(String),
    /// The sysctl does not exist: the kernel lacks the feature, or the interface was removed.
    #[error(
        "the sysctl {ROOT}/{0} does not exist: the interface was removed, or this kernel lacks the feature"
    )]
    Missing(Sysctl),
    /// The sysctl cannot be read.
    #[error("cannot read {ROOT}/{key}: {source}")]
    Read {
        /// The sysctl.
        key: Sysctl,
        /// Why not.
        source: io::Error,
    },
    /// The sysctl cannot be written.
    #[error("cannot set {ROOT}/{key} to {value}: {source}; run as root with a writable {ROOT}")]
    Write {
        /// The sysctl.
        key: Sysctl,
        /// The value that was refused.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The value is not a number.
    #[error("{ROOT}/{key} is {value:?}, which is not a number")]
    NotANumber {
        /// The sysctl.
        key: Sysctl,
        /// The value.
        value: String,
    },
}

impl Sysctl {
    /// The sysctl with these path components.
    ///
    /// # Errors
    /// [`SysctlError::Name`] if a component is empty, `.` or `..`, or contains `/` or NUL, so that
    /// no name points outside `/proc/sys`.
    pub fn new<'a>(components: impl IntoIterator<Item = &'a str>) -> Result<Self, SysctlError> {
        let components: Vec<_> = components.into_iter().collect();
        let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['/', '\0']);
        match !components.is_empty() && components.iter().all(|part| good(part)) {
            true => Ok(Self(components.join("/"))),
            false => Err(SysctlError::Name(components.join("/"))),
        }
    }

    /// An IPv4 sysctl of one interface (or of `all` or `default`), such as `arp_ignore`.
    ///
    /// # Errors
    /// [`SysctlError::Name`] if no interface can have that name.
    pub fn ipv4_interface(interface: &str, setting: &str) -> Result<Self, SysctlError> {
        Self::new(["net", "ipv4", "conf", interface, setting])
    }

    /// The interface of an IPv4 sysctl of one interface.
    pub(crate) fn interface(&self) -> Option<&str> {
        let (interface, _) = self.0.strip_prefix("net/ipv4/conf/")?.split_once('/')?;
        Some(interface)
    }

    /// The name: the path below `/proc/sys`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(ROOT).join(&self.0)
    }

    /// The value, without surrounding white space.
    pub fn read(&self) -> Result<String, SysctlError> {
        match fs::read_to_string(self.path()) {
            Ok(value) => Ok(value.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SysctlError::Missing(self.clone()))
            }
            Err(source) => Err(SysctlError::Read { key: self.clone(), source }),
        }
    }

    /// The value as a number.
    pub fn read_number(&self) -> Result<i64, SysctlError> {
        let value = self.read()?;
        value.parse().map_err(|_| SysctlError::NotANumber { key: self.clone(), value })
    }

    /// Writes a value.
    pub fn write(&self, value: &str) -> Result<(), SysctlError> {
        // Without O_CREAT, because the resulting error would hide that the sysctl does not exist.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(self.path())
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SysctlError::Missing(self.clone()),
            _ => SysctlError::Write { key: self.clone(), value: value.to_owned(), source },
        })
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Sysctl {
    type Error = SysctlError;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        Self::new(path.split('/'))
    }
}

impl From<Sysctl> for String {
    fn from(sysctl: Sysctl) -> Self {
        sysctl.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_with_dots_keeps_its_name() {
        let key = Sysctl::ipv4_interface("eth0.100", "arp_ignore").unwrap();
        assert_eq!(key.path(), PathBuf::from("/proc/sys/net/ipv4/conf/eth0.100/arp_ignore"));
    }

    #[test]
    fn no_name_points_outside_proc_sys() {
        for interface in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(
                matches!(Sysctl::ipv4_interface(interface, "x"), Err(SysctlError::Name(_))),
                "{interface:?}"
            );
        }
        for path in ["\"\"", "\"/etc/passwd\"", "\"net/../../etc/passwd\"", "\"net//ipv4\""] {
            assert!(serde_json::from_str::<Sysctl>(path).is_err(), "{path}");
        }
        assert!(Sysctl::new([]).is_err());
    }

    #[test]
    fn a_name_survives_json() {
        let key = Sysctl::ipv4_interface("eth0.100", "rp_filter").unwrap();
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(text, "\"net/ipv4/conf/eth0.100/rp_filter\"");
        assert_eq!(serde_json::from_str::<Sysctl>(&text).unwrap(), key);
    }

    #[test]
    fn values_are_read_without_their_newline() {
        let key = Sysctl::new(["kernel", "ostype"]).unwrap();
        assert_eq!(key.read().unwrap(), "Linux");
        assert!(matches!(key.read_number(), Err(SysctlError::NotANumber { .. })));
    }

    #[test]
    fn a_missing_sysctl_is_reported_as_missing() {
        let key = Sysctl::ipv4_interface("no-such-if", "rp_filter").unwrap();
        assert!(matches!(key.read(), Err(SysctlError::Missing(_))));
        assert!(matches!(key.write("1"), Err(SysctlError::Missing(_))));
    }
}

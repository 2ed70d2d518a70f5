//! Values of the maps that only userspace reads: state that a daemon keeps for the next daemon.
//!
//! They are pinned with the maps of the packet path, so that the daemon's state and the kernel's
//! cannot diverge.

use crate::abi::pod::pod;

/// Longest name of a service or backend, in bytes.
pub const MAX_NAME_LEN: usize = 63;

/// The name of a service or backend: UTF-8, padded with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Name([u8; 64]);
pod!(Name, 64);

impl Name {
    /// No name: the index is free.
    pub const NONE: Self = Self([0; 64]);

    /// A name of 1 to [`MAX_NAME_LEN`] bytes without zeros; `None` otherwise.
    pub fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_NAME_LEN || bytes.contains(&0) {
            return None;
        }
        let mut padded = [0; 64];
        padded[..bytes.len()].copy_from_slice(bytes);
        Some(Self(padded))
    }

    /// The name; empty for [`Name::NONE`] and for bytes that are not UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        core::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

/// Value of the array `BACKEND_RECORDS`, at the backend's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BackendRecord {
    /// Name in the configuration; [`Name::NONE`] if the index is free or in quarantine.
    pub name: Name,
    /// End of the index's quarantine, nanoseconds of `CLOCK_BOOTTIME`.
    pub reusable_after: u64,
    /// The last epoch of the index.
    pub epoch: u32,
    /// 1 while the backend is draining.
    pub draining: u32,
}
pod!(BackendRecord, 80);

/// Value of the array `SERVICE_RECORDS`, at the service's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRecord {
    /// Name in the configuration; [`Name::NONE`] if the index is free or in quarantine.
    pub name: Name,
    /// End of the index's quarantine, nanoseconds of `CLOCK_BOOTTIME`.
    pub reusable_after: u64,
}
pod!(ServiceRecord, 72);

/// A path MTU that a router reported: value of the array `PATH_MTUS` at
/// [`NextHop::index`](crate::abi::backend::NextHop::index).
///
/// It limits the MTU in `NEXT_HOPS` until it expires. All zero if no router reported a path MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PathMtuRecord {
    /// Expiry, nanoseconds of `CLOCK_BOOTTIME`.
    pub until: u64,
    /// Path MTU in bytes, outer header included.
    pub mtu: u32,
    /// Epoch of the backend at the time of the report. If it differs from the backend's, the index
    /// was reused.
    pub epoch: u32,
}
pod!(PathMtuRecord, 16);

impl PathMtuRecord {
    /// No reported path MTU.
    pub const NONE: Self = Self { until: 0, mtu: 0, epoch: 0 };
}

/// Elements of the array `PATH_MTU_ERRORS`, which counts ICMP errors about encapsulated packets by
/// outcome. The daemon defines the outcomes.
pub const PATH_MTU_ERRORS: u32 = 32;

/// The configuration that was applied last: value of the one-entry array `INSTANCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct InstanceRecord {
    /// [`crate::LAYOUT_VERSION`]; 0 before the first configuration was applied.
    pub layout: u32,
    /// 1 while a change is being applied, 0 after it completed.
    pub changing: u32,
    /// Fingerprint of the hash key, to detect a daemon with another key.
    pub key_fingerprint: u64,
    /// Digest of the applied configuration's text.
    pub config_digest: u64,
    /// Time of application, Unix time in seconds.
    pub applied_at: u64,
}
pod!(InstanceRecord, 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_round_trip_and_invalid_names_are_rejected() {
        for name in ["web", "a", &"x".repeat(63)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
        for name in ["", &"x".repeat(64), "a\0b"] {
            assert_eq!(Name::new(name), None);
        }
        assert_eq!(Name::NONE.as_str(), "");
    }
}

//! Keys and values of the maps that only userspace reads: what a new daemon must know about what an
//! earlier one did.
//!
//! They are pinned beside the maps that packets read, so that what the kernel does and what the
//! daemon believes cannot part.

use crate::abi::pod::pod;

/// Longest name of a service or backend, in bytes.
pub const MAX_NAME_LEN: usize = 63;

/// The name of a service or backend: UTF-8, padded with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Name([u8; 64]);
pod!(Name, 64);

impl Name {
    /// No name: the record's index is free.
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

    /// The name; empty when there is none, or when the bytes are not UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        core::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

/// Value of the array `BACKEND_RECORDS`, at the backend's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BackendRecord {
    /// Name in the configuration; none when the index is free or rests.
    pub name: Name,
    /// Until when the index rests before it may be used again: nanoseconds of `CLOCK_BOOTTIME`.
    pub reusable_after: u64,
    /// The epoch that the index had last.
    pub epoch: u32,
    /// 1 while the backend is draining.
    pub draining: u32,
}
pod!(BackendRecord, 80);

/// Value of the array `SERVICE_RECORDS`, at the service's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRecord {
    /// Name in the configuration; none when the index is free or rests.
    pub name: Name,
    /// Until when the index rests before it may be used again: nanoseconds of `CLOCK_BOOTTIME`.
    pub reusable_after: u64,
}
pod!(ServiceRecord, 72);

/// Value of the array `PATH_MTUS`, at [`NextHop::index`](crate::abi::backend::NextHop::index): an
/// MTU that a router on the way to a backend has told.
///
/// It counts in `NEXT_HOPS` until it expires. Zeros where no router has told any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PathMtuRecord {
    /// When it expires: nanoseconds of `CLOCK_BOOTTIME`.
    pub until: u64,
    /// Largest IP packet, outer header included, in bytes.
    pub mtu: u32,
    /// The backend's epoch then: another one means that the index was reused.
    pub epoch: u32,
}
pod!(PathMtuRecord, 16);

impl PathMtuRecord {
    /// No router has told any.
    pub const NONE: Self = Self { until: 0, mtu: 0, epoch: 0 };
}

/// Elements of the array `PATH_MTU_ERRORS`, which counts what became of errors about encapsulated
/// packets; the daemon gives them their meaning.
pub const PATH_MTU_ERRORS: u32 = 32;

/// Value of the one-entry array `INSTANCE`: what was applied last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct InstanceRecord {
    /// [`crate::LAYOUT_VERSION`]; 0 before anything was applied.
    pub layout: u32,
    /// 1 while a change is being made, 0 when the last change was completed.
    pub changing: u32,
    /// Fingerprint of the hash key, so that a daemon with another key is noticed.
    pub key_fingerprint: u64,
    /// Digest of the configuration's text that was applied last.
    pub config_digest: u64,
    /// When it was applied: seconds since 1970, UTC.
    pub applied_at: u64,
}
pod!(InstanceRecord, 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_round_trip_and_a_bad_one_is_refused() {
        for name in ["web", "a", &"x".repeat(63)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
        for name in ["", &"x".repeat(64), "a\0b"] {
            assert_eq!(Name::new(name), None);
        }
        assert_eq!(Name::NONE.as_str(), "");
    }
}

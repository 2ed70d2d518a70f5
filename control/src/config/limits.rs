//! Limits of a configuration.

/// Maximum of `limits.services`.
pub const MAX_SERVICES: u32 = 4_096;
/// Maximum of `limits.backends`: a slot has a 16-bit index of its backend, and index 0 means none.
pub const MAX_BACKENDS: u32 = 65_535;
/// Maximum of `limits.vips`.
pub const MAX_VIPS: u32 = 65_536;
/// Minimum of `limits.connections`.
pub const MIN_CONNECTIONS: u32 = 1_024;
/// Maximum of `limits.connections` (about 115 bytes of kernel memory each).
pub const MAX_CONNECTIONS: u32 = 16 << 20;
/// Maximum number of prefixes in the routes of all services (about 100 bytes of kernel memory
/// each).
pub const MAX_ROUTES: u32 = 65_536;
/// Maximum weight of a backend in a service.
pub const MAX_WEIGHT: u32 = 65_535;
/// Default weight of a backend in a service.
pub const DEFAULT_WEIGHT: u32 = 100;
/// Maximum number of backends of one service.
pub const MAX_SERVICE_BACKENDS: usize = 1_024;
/// Maximum rate, in packets or new connections per second.
pub const MAX_RATE: u32 = sluice_datapath::abi::Rate::MAX;
/// Maximum burst of a rate, in packets or new connections.
pub const MAX_BURST: u32 = sluice_datapath::abi::Rate::MAX_BURST;
/// Maximum number of prefixes in the deny and allow file of one source ACL (about 125 bytes of
/// kernel memory each).
pub const MAX_ACL_PREFIXES: usize = 4 << 20;
/// Maximum size of a deny or allow file, in bytes: enough for [`MAX_ACL_PREFIXES`] prefixes, and
/// small enough that a wrong path does not exhaust memory.
pub const MAX_ACL_BYTES: u64 = 256 << 20;

/// Maximum length of an instance name, in bytes.
pub const MAX_INSTANCE_NAME: usize = 32;
/// Maximum length of the name of a backend or service, in bytes: the size in their records.
pub const MAX_NAME: usize = sluice_datapath::abi::MAX_NAME_LEN;
/// Maximum length of an interface name, in bytes (the kernel's `IFNAMSIZ` without the final zero).
pub const MAX_INTERFACE_NAME: usize = 15;
/// Maximum size of a configuration file, in bytes: far more than 4,096 services and 65,535 backends
/// need, and small enough that a wrong path (a disk, a log) does not exhaust memory.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Default priority of the balancer's filter.
pub const DEFAULT_PRIORITY: u16 = 100;
/// Maximum priority of a filter at TC, which has 16 bits. Priority 0 lets the kernel choose one.
pub const MAX_PRIORITY: u32 = 65_535;

/// Default UDP port of GUE (IANA).
pub const DEFAULT_GUE_PORT: u16 = 6_080;
/// Minimum MTU of an underlay: that of IPv6 (RFC 8200 section 5).
pub const MIN_MTU: u32 = 1_280;
/// Maximum number of prefixes in `underlay.balancers`: half of the size of the backend's map.
pub const MAX_BALANCERS: usize = 1_024;
/// Minimum of `underlay.min_path_mtu`: the IPv4 packet that every host must accept (RFC 791 section
/// 3.2), and an outer header.
pub const MIN_PATH_MTU: u32 = 596;
/// Maximum MTU of an underlay: the largest total length of an IPv4 packet.
pub const MAX_MTU: u32 = 65_535;

/// Minimum MTU of an underlay for `"too_big": "jumbo"`: the packet of a full Ethernet frame and an
/// IPv6 outer header.
pub const MIN_JUMBO_MTU: u32 = 1_540;

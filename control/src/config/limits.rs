//! How much a configuration may hold.

/// The most services an instance can be sized for.
pub const MAX_SERVICES: u32 = 4_096;
/// The most backends an instance can be sized for: a slot names its backend by a 16-bit map index,
/// and index 0 means nothing.
pub const MAX_BACKENDS: u32 = 65_535;
/// The most VIPs an instance can be sized for.
pub const MAX_VIPS: u32 = 65_536;
/// The fewest entries of the connection table.
pub const MIN_CONNECTIONS: u32 = 1_024;
/// The most entries of the connection table (about 115 bytes each).
pub const MAX_CONNECTIONS: u32 = 16 << 20;
/// The most prefixes in the routes of all services together (about 100 bytes of kernel memory
/// each).
pub const MAX_ROUTES: u32 = 65_536;
/// The largest weight of a backend in a service.
pub const MAX_WEIGHT: u32 = 65_535;
/// The weight of a backend in a service whose configuration names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The most backends of one service.
pub const MAX_SERVICE_BACKENDS: usize = 1_024;
/// The largest rate of a service or a source, packets or new flows a second.
pub const MAX_RATE: u32 = sluice_datapath::abi::Rate::MAX;
/// The most packets or new flows that a rate lets through at once.
pub const MAX_BURST: u32 = sluice_datapath::abi::Rate::MAX_BURST;
/// The most prefixes of one scope's deny- and allow-list together (about 125 bytes of kernel memory
/// each).
pub const MAX_LIST_PREFIXES: usize = 4 << 20;
/// The largest file of a list, in bytes: what [`MAX_LIST_PREFIXES`] prefixes take, and little
/// enough that a wrong path does not fill the memory.
pub const MAX_LIST_BYTES: u64 = 256 << 20;

/// The longest instance name, in bytes.
pub const MAX_INSTANCE_NAME: usize = 32;
/// The longest name of a backend or service, in bytes: what their records in the maps hold.
pub const MAX_NAME: usize = sluice_datapath::abi::MAX_NAME_LEN;
/// The longest interface name, in bytes (the kernel's `IFNAMSIZ` less the final zero).
pub const MAX_INTERFACE_NAME: usize = 15;
/// The largest configuration file that is read, in bytes: far more than 4,096 services and 65,535
/// backends take, and little enough that a wrong path (a disk, a log) does not fill the memory.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// The port of GUE in an underlay whose configuration names none (IANA).
pub const DEFAULT_GUE_PORT: u16 = 6_080;
/// The smallest MTU of an underlay: the smallest that IPv6 has (RFC 8200 section 5).
pub const MIN_MTU: u32 = 1_280;
/// The largest MTU of an underlay: the largest packet that an IPv4 header can tell of.
pub const MAX_MTU: u32 = 65_535;

/// The smallest MTU of an underlay that is called larger than what clients send: a full Ethernet
/// frame's packet and the largest outer header.
pub const MIN_JUMBO_MTU: u32 = 1_540;

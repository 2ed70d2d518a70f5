//! The in-memory binding, for tests and tools: packets in byte buffers, maps in plain memory.

mod backend;
mod balancer;
mod hook;
mod maps;
mod packet;
mod table;

pub use backend::MemoryBackend;
pub use balancer::MemoryBalancer;
pub use hook::balance;
pub use maps::{InMemory, MemoryBackendMaps, MemoryBalancerMaps};
pub use packet::{PacketBuffer, bytes_of};
pub use table::TableWords;

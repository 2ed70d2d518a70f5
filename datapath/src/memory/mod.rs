//! The in-memory binding, for tests and tools: packets in byte buffers, maps in plain memory.

mod backend;
mod balancer;
mod hook;
mod packet;

pub use backend::MemoryBackend;
pub use balancer::{MemoryBalancer, TableWords};
pub use hook::balance;
pub use packet::{PacketBuffer, bytes_of};

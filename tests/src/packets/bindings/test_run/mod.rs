//! The packet path in the kernel: the programs, loaded like the daemon loads them and run by
//! `BPF_PROG_TEST_RUN`.

mod backend;
mod balancer;
mod hook;
mod pins;
pub mod pool;
mod sk_buff;

pub use backend::TestRunBackend;
pub use balancer::{CONNECTIONS, TestRunBalancer};
pub use hook::{BalancerHook, accepts_at_tc, accepts_at_xdp};

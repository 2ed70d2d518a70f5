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
pub use hook::{BalancerHook, takes, takes_at_xdp};

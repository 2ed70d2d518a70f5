//! The balancer's object: the programs `sluice_tc` (TC ingress) and `sluice_xdp`, and their maps.
#![no_std]
#![no_main]
// For the atomic addition, which `core` does not offer on this target.
#![feature(asm_experimental_arch)]

mod maps;
mod stages;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use sluice_probes::tc::TcHook;
use sluice_probes::xdp::XdpHook;

/// Balances at TC ingress.
#[classifier]
pub fn sluice_tc(context: TcContext) -> i32 {
    stages::run(TcHook(context.skb.skb)) as i32
}

/// Balances at XDP.
#[xdp]
pub fn sluice_xdp(context: XdpContext) -> u32 {
    stages::run(XdpHook(context.ctx))
}

sluice_probes::license!();

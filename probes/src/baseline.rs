//! Programs that measurements compare with: those that do nothing, and those that encapsulate and do nothing else.
//!
//! They share the bindings with the balancer's programs, so what differs is what the balancer decides: which packets, to whom, whether
//! they fit, and what is counted.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use sluice_datapath::{Family, Forward, Packet, parse};
use sluice_probes::tc::{self, TcPacket};
use sluice_probes::xdp::{self, XdpPacket};

// Fixed when the programs are loaded, by whoever knows the one backend and the length of the packets.

/// Interface towards the backend.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);
/// The outer header in front of IPv4 packets.
#[unsafe(no_mangle)]
static OUTER_V4: Global<[u32; 5]> = Global::new([0; 5]);
/// The outer header in front of IPv6 packets.
#[unsafe(no_mangle)]
static OUTER_V6: Global<[u32; 10]> = Global::new([0; 10]);

/// Lets every packet pass, at TC.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    tc::PASS
}

/// Drops every packet, at TC: the end of a path that is measured.
#[classifier]
pub fn drop_tc(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// Encapsulates every IP packet, at TC.
#[classifier]
pub fn encapsulate_tc(context: TcContext) -> i32 {
    match encapsulate(TcPacket::new(&context)) {
        Some(forward) => tc::redirect(&forward),
        None => tc::PASS,
    }
}

/// Lets every packet pass, at XDP.
#[xdp]
pub fn empty_xdp(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Encapsulates every IP packet, at XDP, and finds the next hop's link address as the balancer does.
#[xdp]
pub fn encapsulate_xdp(context: XdpContext) -> u32 {
    match encapsulate(XdpPacket::new(&context)) {
        Some(forward) => xdp::redirect(&context, &forward),
        None => XDP_PASS,
    }
}

#[inline(always)]
fn encapsulate<P: Packet>(packet: P) -> Option<Forward> {
    let family = parse::family(&packet).ok()?;
    match family {
        Family::V4 => packet.encapsulate(family, &OUTER_V4.load()).ok()?,
        Family::V6 => packet.encapsulate(family, &OUTER_V6.load()).ok()?,
    }
    Some(Forward { interface: INTERFACE.load(), family })
}

sluice_probes::license!();

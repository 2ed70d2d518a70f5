//! Programs that measurements compare with: those that do nothing, and those that encapsulate and
//! do nothing else; and one that sends.
//!
//! They share the bindings with the balancer's programs, so what differs is what the balancer
//! decides: which packets, to whom, whether they fit, and what is counted.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "exported constants, and calls of kernel helpers")]

use aya_ebpf::Global;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use sluice_datapath::balance::{Forward, GueMeta};
use sluice_datapath::wire::parse;
use sluice_datapath::{Family, Packet};
use sluice_probes::tc::{self, TcPacket};
use sluice_probes::xdp::{self, XdpPacket};

// Fixed when the programs are loaded, by whoever knows the one backend and the length of the
// packets.

/// Interface through which packets leave.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);
/// The outer header in front of IPv4 packets.
#[unsafe(no_mangle)]
static OUTER_V4: Global<[u32; 5]> = Global::new([0; 5]);
/// The outer header in front of IPv6 packets.
#[unsafe(no_mangle)]
static OUTER_V6: Global<[u32; 10]> = Global::new([0; 10]);
/// The headers of what is sent: Ethernet, IPv4, UDP.
#[unsafe(no_mangle)]
static HEADERS: Global<[u16; 21]> = Global::new([0; 21]);
/// How many source ports take turns, from [`FIRST_PORT`].
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Source port of the first flow.
const FIRST_PORT: u16 = 10_000;
/// Where the source port is in a frame that is sent.
const SOURCE_PORT: usize = 14 + 20;

/// The flow that comes next.
#[btf_map]
static NEXT: Array<u32, 1> = Array::new();

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
    match encapsulate(TcPacket::new(context.skb.skb)) {
        Some(forward) => tc::redirect(&forward),
        None => tc::PASS,
    }
}

/// Lets every packet pass, at XDP.
#[xdp]
pub fn empty_xdp(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Encapsulates every IP packet, at XDP, and finds the next hop's link address as the balancer
/// does.
#[xdp]
pub fn encapsulate_xdp(context: XdpContext) -> u32 {
    match encapsulate(XdpPacket::new(context.ctx)) {
        Some(forward) => xdp::redirect(context.ctx, &forward),
        None => XDP_PASS,
    }
}

/// Sends what it is run on, after writing its headers anew: the kernel's live runs hand out frames
/// as their last receiver left them.
#[xdp]
pub fn send_xdp(context: XdpContext) -> u32 {
    match send(&XdpPacket::new(context.ctx)) {
        // SAFETY: the helper only takes numbers.
        Some(()) => unsafe { bpf_redirect(INTERFACE.load(), 0) as u32 },
        None => XDP_DROP,
    }
}

#[inline(always)]
fn send(packet: &XdpPacket) -> Option<()> {
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: the map's only entry; one CPU at a time runs the program.
    let flow = unsafe { *next };
    let following = flow.wrapping_add(1);
    // SAFETY: as above.
    unsafe { *next = if following < FLOWS.load() { following } else { 0 } };
    packet.put(0, &HEADERS.load()).ok()?;
    packet.put(SOURCE_PORT, &FIRST_PORT.wrapping_add(flow as u16).to_be()).ok()
}

#[inline(always)]
fn encapsulate<P: Packet>(packet: P) -> Option<Forward> {
    let family = parse::family(&packet).ok()??;
    let _ = match family {
        Family::V4 => packet.encapsulate(family, family, &OUTER_V4.load(), false, 0).ok()?,
        Family::V6 => packet.encapsulate(family, family, &OUTER_V6.load(), false, 0).ok()?,
    };
    Some(Forward { interface: INTERFACE.load(), family, neighbour: 0, gue: GueMeta::NONE })
}

sluice_probes::license!();

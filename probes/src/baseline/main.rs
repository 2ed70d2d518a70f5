//! Reference programs for measurements: programs that do nothing, programs that only encapsulate,
//! and one that sends.
//!
//! They share the bindings with the balancer's programs. The difference in cost is that of the
//! balancer's decisions and counters.
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
use sluice_datapath::balance::{Egress, GueMeta};
use sluice_datapath::wire::parse;
use sluice_datapath::{Family, Packet};
use sluice_probes::tc::{self, TcPacket};
use sluice_probes::xdp::{self, XdpPacket};

// Load-time constants: one backend, one packet length.

/// Index of the egress interface.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);
/// The outer header in front of IPv4 packets.
#[unsafe(no_mangle)]
static OUTER_V4: Global<[u32; 5]> = Global::new([0; 5]);
/// The outer header in front of IPv6 packets.
#[unsafe(no_mangle)]
static OUTER_V6: Global<[u32; 10]> = Global::new([0; 10]);
/// The headers of sent packets: Ethernet, IPv4, UDP.
#[unsafe(no_mangle)]
static HEADERS: Global<[u16; 21]> = Global::new([0; 21]);
/// Number of source ports, from [`FIRST_PORT`], used in turn.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Source port of the first flow.
const FIRST_PORT: u16 = 10_000;
/// Offset of the source port in a sent frame.
const SOURCE_PORT: usize = 14 + 20;

/// The next flow.
#[btf_map]
static NEXT: Array<u32, 1> = Array::new();

/// Passes every packet, at TC.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    tc::PASS
}

/// Drops every packet, at TC: the end of a measured path.
#[classifier]
pub fn drop_tc(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// Encapsulates every IP packet, at TC.
#[classifier]
pub fn encapsulate_tc(context: TcContext) -> i32 {
    match encapsulate(TcPacket::new(context.skb.skb)) {
        Some(egress) => tc::redirect(&egress),
        None => tc::PASS,
    }
}

/// Passes every packet, at XDP.
#[xdp]
pub fn empty_xdp(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Encapsulates every IP packet, at XDP, and looks up the link address of the next hop like the
/// balancer.
#[xdp]
pub fn encapsulate_xdp(context: XdpContext) -> u32 {
    match encapsulate(XdpPacket::new(context.ctx)) {
        Some(egress) => xdp::redirect(context.ctx, &egress),
        None => XDP_PASS,
    }
}

/// Sends its input frame, with new headers: the kernel's live test runs reuse frames as their last
/// receiver left them.
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
fn encapsulate<P: Packet>(packet: P) -> Option<Egress> {
    let family = parse::family(&packet).ok()??;
    let _ = match family {
        Family::V4 => packet.encapsulate(family, family, &OUTER_V4.load(), false, 0).ok()?,
        Family::V6 => packet.encapsulate(family, family, &OUTER_V6.load(), false, 0).ok()?,
    };
    Some(Egress { interface: INTERFACE.load(), family, neighbour: 0, gue: GueMeta::NONE })
}

sluice_probes::license!();

//! The backend's object: the program `sluice_clamp` (TC egress), and for kernels without a tunnel
//! device the program `sluice_decap` (TC ingress), with common maps.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "raw pointers to map values, and exported constants")]

use aya_ebpf::Global;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use sluice_datapath::abi::*;
use sluice_datapath::backend::{BackendMaps, clamp_mss, decapsulate};
use sluice_probes::statics;
use sluice_probes::tc::{self, TcPacket};

/// Not 0 if the kernel can decapsulate across address families; a load-time constant.
#[unsafe(no_mangle)]
static CROSS_FAMILY: Global<u32> = Global::new(0);

/// The port of GUE, wire order; 0 without GUE.
#[unsafe(no_mangle)]
static GUE_PORT: Global<Port> = Global::new(Port::new(0));

sluice_datapath::backend_maps!(statics);

/// Decapsulates at TC ingress.
#[classifier]
pub fn sluice_decap(context: TcContext) -> i32 {
    match decapsulate(TcPacket::new(context.skb.skb), &Maps) {
        Ok(()) => tc::PASS,
        Err(reason) => tc::refuse(reason),
    }
}

/// Clamps the maximum segment size at TC egress.
#[classifier]
pub fn sluice_clamp(context: TcContext) -> i32 {
    // Nothing is pulled into the linear part: in packets that the host sends, the headers are there
    // already.
    clamp_mss(TcPacket::of(context.skb.skb), &Maps);
    tc::PASS
}

/// The maps above.
struct Maps;

impl BackendMaps for Maps {
    #[inline(always)]
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        // SAFETY: the value is copied before any other use of the map.
        unsafe { LOCAL_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn is_balancer(&self, key: &PrefixKey) -> bool {
        BALANCERS.get(&Key::new(key.length, key.words())).is_some()
    }

    #[inline(always)]
    fn cross_family(&self) -> bool {
        CROSS_FAMILY.load() != 0
    }

    #[inline(always)]
    fn gue_port(&self) -> Port {
        GUE_PORT.load()
    }

    #[inline(always)]
    fn is_vip(&self, key: &PrefixKey) -> bool {
        VIP_PREFIXES.get(&Key::new(key.length, key.words())).is_some()
    }

    #[inline(always)]
    fn count_decapsulated(&self, packets: u64, bytes: u64) {
        if let Some(counters) = DECAPSULATED.get_ptr_mut(0) {
            // SAFETY: the pointer is to this CPU's own copy, and nothing interrupts the program on
            // it.
            let counters = unsafe { &mut *counters };
            counters.packets = counters.packets.wrapping_add(packets);
            counters.bytes = counters.bytes.wrapping_add(bytes);
        }
    }

    #[inline(always)]
    fn max_segment_size(&self, family: Family) -> u32 {
        MAX_SEGMENT_SIZES.get(family.index()).map_or(0, |size| *size)
    }

    #[inline(always)]
    fn count_clamped(&self) {
        if let Some(counter) = MSS_CLAMPED.get_ptr_mut(0) {
            // SAFETY: as above.
            let counter = unsafe { &mut *counter };
            *counter = counter.wrapping_add(1);
        }
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        if let Some(counter) = REASONS.get_ptr_mut(reason.index()) {
            // SAFETY: as above.
            let counter = unsafe { &mut *counter };
            *counter = counter.wrapping_add(1);
        }
    }
}

sluice_probes::license!();

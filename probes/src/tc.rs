//! The TC binding: a packet is a `__sk_buff` at the clsact hook.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{
    bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_vlan_pop,
};
use sluice_datapath::header::Ipv6;
use sluice_datapath::packet::{ETHERNET, MAX_VARIABLE_OFFSET, ether_type};
use sluice_datapath::parse::is_tag;
use sluice_datapath::{Family, Forward, Packet, Plain, Reason, Verdict};

use crate::access;

/// Bytes that are made linear before a packet is read: the headers that are read at constant offsets, on the balancer (Ethernet,
/// IPv6, TCP) as on the backend (Ethernet, two IPv6 headers).
const HEADERS: u32 = (ETHERNET + 2 * Ipv6::SIZE) as u32;

/// A packet at a TC hook.
pub struct TcPacket {
    skb: *mut __sk_buff,
}

impl TcPacket {
    /// The packet of a context, its headers readable.
    ///
    /// A packet may hold its headers outside the linear part of its buffer; they are pulled in, which changes no byte of it.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let packet = Self::of(skb);
        let wanted = if packet.bytes() < HEADERS { packet.bytes() } else { HEADERS };
        let (start, end) = packet.bounds();
        if start.wrapping_add(wanted as usize) > end {
            // SAFETY: `skb` is the context that the kernel gave. On failure the headers stay unreadable and the packet passes.
            unsafe { bpf_skb_pull_data(packet.skb, wanted) };
        }
        packet
    }

    /// The packet of a context that [`TcPacket::new`] has seen.
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) }
    }

    #[inline(always)]
    fn write<T: Plain>(&self, offset: usize, header: &T) -> Result<(), Reason> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now, and no reference into the packet exists.
        unsafe { access::write(start, end, offset, header) }.ok_or(Reason::NoRoom)
    }
}

impl Packet for TcPacket {
    #[inline(always)]
    fn length(&self) -> usize {
        self.bytes() as usize
    }

    #[inline(always)]
    fn has_vlan(&self) -> bool {
        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        /// `PACKET_HOST` of the kernel's `uapi/linux/if_packet.h`.
        const HOST: u32 = 0;

        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { (*self.skb).pkt_type == HOST }
    }

    #[inline(always)]
    fn segment_size(&self) -> usize {
        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { (*self.skb).gso_size as usize }
    }

    #[inline(always)]
    fn segments(&self) -> u64 {
        // SAFETY: `skb` is the context that the kernel gave.
        let segments = unsafe { (*self.skb).gso_segs };
        if segments == 0 { 1 } else { u64::from(segments) }
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now.
        unsafe { access::read(start, end, offset) }
    }

    #[inline(always)]
    fn load_variable<T: Plain>(&self, offset: usize) -> Option<T> {
        if offset > MAX_VARIABLE_OFFSET {
            return None;
        }
        let mut header = MaybeUninit::<T>::uninit();
        let size = size_of::<T>() as u32;
        // SAFETY: the helper checks the offset and writes `size` bytes, zeros when it fails.
        let failed = unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, header.as_mut_ptr().cast(), size) };
        // SAFETY: the helper has written the whole header.
        if failed == 0 { Some(unsafe { header.assume_init() }) } else { None }
    }

    #[inline(always)]
    fn untag(self, _: usize) -> Result<Self, Reason> {
        /// One beside the bytes and two in them.
        const MOST: usize = 3;

        for _ in 0..MOST {
            let in_bytes = matches!(self.load::<u16>(ETHERNET - 2), Some(ether_type) if is_tag(ether_type));
            if !self.has_vlan() && !in_bytes {
                break;
            }
            // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing read from it is used again.
            if unsafe { bpf_skb_vlan_pop(self.skb) } != 0 {
                return Err(Reason::NoRoom);
            }
        }
        Ok(self)
    }

    /// The kernel is told that this is an encapsulation (`ENCAP_L3`), so that it can still cut merged packets, and not to change
    /// the size of their segments (`FIXED_GSO`), since that was judged before.
    #[inline(always)]
    fn encapsulate<T: Plain>(self, family: Family, inner: Family, outer: &T) -> Result<(), Reason> {
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO
            | match family {
                Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
                Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            };
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing read from it is used again.
        if unsafe { bpf_skb_adjust_room(self.skb, size_of::<T>() as i32, BPF_ADJ_ROOM_MAC, u64::from(flags)) } != 0 {
            return Err(Reason::NoRoom);
        }
        if family != inner {
            self.write(ETHERNET - 2, &ether_type(family))?;
        }
        self.write(ETHERNET, outer)
    }

    #[inline(always)]
    fn decapsulate<T: Plain, H: Plain>(self, outer: Family, inner: Family, head: &H) -> Result<(), Reason> {
        // Within a family no kernel needs the flags, and old ones do not know them.
        let flags = u64::from(match (outer, inner) {
            (Family::V6, Family::V4) => BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            (Family::V4, Family::V6) => BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            _ => BPF_F_ADJ_ROOM_FIXED_GSO,
        });
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing read from it is used again.
        if unsafe { bpf_skb_adjust_room(self.skb, (size_of::<T>() as i32).wrapping_neg(), BPF_ADJ_ROOM_MAC, flags) }
            != 0
        {
            return Err(Reason::NoRoom);
        }
        if outer != inner {
            self.write(ETHERNET - 2, &ether_type(inner))?;
        }
        self.write(ETHERNET, head)
    }
}

/// The TC action for an encapsulated packet: out of its interface, the next hop resolved by the kernel's own neighbour table.
#[inline(always)]
pub fn redirect(forward: &Forward) -> i32 {
    // SAFETY: without parameters the helper reads nothing but the packet.
    unsafe { bpf_redirect_neigh(forward.interface, core::ptr::null_mut(), 0, 0) as i32 }
}

/// No action of TC's: the packet is unchanged, and a matter for the next stage.
pub const UNUSUAL: i32 = -2;

/// The TC action that lets a packet go on: to the next filter, and to the stack behind the last one.
pub const PASS: i32 = TC_ACT_UNSPEC;

/// The TC action for a packet that is not forwarded.
#[inline(always)]
pub fn refuse(reason: Reason) -> i32 {
    match reason.verdict() {
        Verdict::Pass => PASS,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

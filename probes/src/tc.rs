//! The TC binding: a packet is a `__sk_buff` at the clsact hook.
#![expect(unsafe_code, reason = "raw access to the context, and calls of kernel helpers")]

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    bpf_skb_vlan_pop,
};
use sluice_datapath::abi::{CAPTURE_LEN, Neighbour};
use sluice_datapath::balance::{BalancerMaps, Egress, Hook};
use sluice_datapath::wire::header::{Ipv6, Udp};
use sluice_datapath::wire::packet::{ETH_HLEN, MAX_LOAD_OFFSET, ether_type, is_group};
use sluice_datapath::wire::parse::is_vlan_tag;
use sluice_datapath::{Family, Packet, Pod, Reason, Verdict};

use crate::access;

/// Bytes that are pulled into the linear part before a packet is read: the headers at constant
/// offsets, on the balancer (Ethernet, IPv6, TCP) and on the backend (Ethernet, IPv6, UDP, IPv6).
const HEADERS: u32 = (ETH_HLEN + 2 * Ipv6::SIZE + Udp::SIZE) as u32;

/// A packet at a TC hook.
pub struct TcPacket {
    skb: *mut __sk_buff,
}

impl TcPacket {
    /// The packet of a context, with its headers in the linear part.
    ///
    /// Headers outside the linear part are pulled in, which changes no byte of the packet.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let packet = Self::of(skb);
        let wanted = if packet.bytes() < HEADERS { packet.bytes() } else { HEADERS };
        let (start, end) = packet.bounds();
        if start.wrapping_add(wanted as usize) > end {
            // SAFETY: `skb` is the context that the kernel gave. On failure, the headers stay
            // unreadable and the packet passes.
            unsafe { bpf_skb_pull_data(packet.skb, wanted) };
        }
        packet
    }

    /// The packet of a context, after [`TcPacket::new`].
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
    fn store_bytes<T: Pod>(&self, offset: usize, value: &T, flags: u64) -> Result<(), Reason> {
        if offset > MAX_LOAD_OFFSET {
            return Err(Reason::AdjustRoomFailed);
        }
        let (value, size) = (core::ptr::from_ref(value).cast(), size_of::<T>() as u32);
        // SAFETY: `skb` is the context that the kernel gave, `value` holds `size` bytes; no
        // reference into the packet exists.
        match unsafe { bpf_skb_store_bytes(self.skb, offset as u32, value, size, flags) } {
            0 => Ok(()),
            _ => Err(Reason::AdjustRoomFailed),
        }
    }

    /// The 32-bit field of the context at an offset.
    ///
    /// By inline assembly, because the compiler may keep the field's address in a register, and the
    /// verifier requires the offset in the load.
    #[inline(always)]
    fn field<const OFFSET: usize>(&self) -> u32 {
        let value: u32;
        // SAFETY: `skb` is the context that the kernel gave; the instruction reads one of its
        // fields.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({skb} + {offset})",
                value = out(reg) value,
                skb = in(reg) self.skb,
                offset = const OFFSET,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        value
    }

    /// Discards the sum over the packet in its metadata (CHECKSUM_COMPLETE), if there is one, as
    /// the kernel does when it forwards (`skb_forward_csum`). `bpf_redirect_neigh` keeps the sum
    /// but replaces the Ethernet header, so that a virtual Ethernet device subtracts another one
    /// than was added, and its receiver drops the packet.
    ///
    /// No helper discards a sum by itself: growing a packet does. A merged packet never has a sum,
    /// and would lose its segments. Kernels before 5.12 grow no packet beyond the MTU: one of that
    /// size keeps its sum, of which only virtual Ethernet devices take notice.
    #[inline(always)]
    fn discard_sum(&self) -> Result<(), Reason> {
        // SAFETY: `skb` is the context that the kernel gave. The helper fails without a sum.
        if self.segment_size() != 0 || (unsafe { bpf_csum_update(self.skb, 0) } as i64) < 0 {
            return Ok(());
        }
        let bytes = self.bytes();
        // SAFETY: as above; no reference into the packet exists.
        let grown = unsafe { bpf_skb_change_tail(self.skb, bytes.wrapping_add(1), 0) };
        // SAFETY: as above.
        if grown == 0 && unsafe { bpf_skb_change_tail(self.skb, bytes, 0) } != 0 {
            return Err(Reason::AdjustRoomFailed);
        }
        Ok(())
    }

    #[inline(always)]
    fn put<T: Pod>(&self, offset: usize, header: &T) -> Result<(), Reason> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now, and no reference into the packet exists.
        unsafe { access::write(start, end, offset, header) }.ok_or(Reason::AdjustRoomFailed)
    }
}

impl Packet for TcPacket {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.bytes() as usize
    }

    #[inline(always)]
    fn has_vlan(&self) -> bool {
        self.field::<{ core::mem::offset_of!(__sk_buff, vlan_present) }>() != 0
    }

    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        /// The bits of the VLAN ID in a tag's control information.
        const ID: u32 = 0xfff;

        // Old kernels leave the tag's content behind when they remove the tag.
        self.has_vlan() && self.field::<{ core::mem::offset_of!(__sk_buff, vlan_tci) }>() & ID != 0
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
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now.
        unsafe { access::read(start, end, offset) }
    }

    #[inline(always)]
    fn load_at<T: Pod>(&self, offset: usize) -> Option<T> {
        if offset > MAX_LOAD_OFFSET {
            return None;
        }
        let mut header = MaybeUninit::<T>::uninit();
        let size = size_of::<T>() as u32;
        // SAFETY: the helper checks the offset and writes `size` bytes, zeros when it fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), offset as u32, header.as_mut_ptr().cast(), size)
        };
        // SAFETY: the helper has written the whole header.
        if failed == 0 { Some(unsafe { header.assume_init() }) } else { None }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: `skb` is the context that the kernel gave.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn copy_head(&self, head: &mut [u8; CAPTURE_LEN]) -> u32 {
        /// The mask of numbers below [`CAPTURE_LEN`].
        const BELOW: u32 = CAPTURE_LEN as u32 - 1;

        let bytes = self.bytes();
        let last = if bytes > CAPTURE_LEN as u32 { BELOW } else { bytes.wrapping_sub(1) };
        // A packet has at least one byte. Written like this because old verifiers derive both
        // bounds from arithmetic only.
        let wanted = (core::hint::black_box(last) & BELOW).wrapping_add(1);
        // SAFETY: the helper checks what it reads, and writes no more than `wanted` bytes, which
        // `head` has.
        let failed =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, head.as_mut_ptr().cast(), wanted) };
        if failed == 0 { wanted } else { 0 }
    }

    #[inline(always)]
    fn vlan_pop(self, _: usize) -> Result<Self, Reason> {
        /// One in the metadata and two in the bytes.
        const MOST: usize = 3;

        for _ in 0..MOST {
            let in_bytes = matches!(self.load::<u16>(ETH_HLEN - 2), Some(ether_type) if is_vlan_tag(ether_type));
            if !self.has_vlan() && !in_bytes {
                break;
            }
            // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
            // read from it is used again.
            if unsafe { bpf_skb_vlan_pop(self.skb) } != 0 {
                return Err(Reason::AdjustRoomFailed);
            }
        }
        Ok(self)
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        // The kernel may have a sum over the packet in its metadata (CHECKSUM_COMPLETE).
        self.store_bytes(offset, header, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    /// The helper leaves the field unchanged if a device has yet to complete the checksum
    /// (CHECKSUM_PARTIAL). The word and the checksum change by the same amount, so a sum in the
    /// metadata (CHECKSUM_COMPLETE) stays valid.
    #[inline(always)]
    fn csum_replace2(
        &mut self,
        offset: usize,
        old: u16,
        new: u16,
        checksum: usize,
    ) -> Result<(), Reason> {
        if checksum > MAX_LOAD_OFFSET {
            return Err(Reason::AdjustRoomFailed);
        }
        let before: u16 = self.load_at(checksum).ok_or(Reason::AdjustRoomFailed)?;
        // SAFETY: `skb` is the context that the kernel gave; no reference into the packet exists.
        if unsafe {
            bpf_l4_csum_replace(self.skb, checksum as u32, u64::from(old), u64::from(new), 2)
        } != 0
        {
            return Err(Reason::AdjustRoomFailed);
        }
        let after: u16 = self.load_at(checksum).ok_or(Reason::AdjustRoomFailed)?;
        if after == 0 && before != 0 {
            self.store_bytes(checksum, &u16::MAX, 0)?;
        }
        self.store_bytes(offset, &new, 0)
    }

    /// A sum in the metadata does not cover the MAC addresses.
    #[inline(always)]
    fn swap_macs(&mut self) -> Result<(), Reason> {
        let [to, from]: [[u16; 3]; 2] = self.load(0).ok_or(Reason::AdjustRoomFailed)?;
        if is_group(to) {
            return Err(Reason::OtherHost);
        }
        self.store_bytes(0, &[from, to], 0)
    }

    #[inline(always)]
    fn trim(self, length: usize) -> Result<Self, Reason> {
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again. The helper makes the packet linear and no longer merged.
        match unsafe { bpf_skb_change_tail(self.skb, length as u32, 0) } {
            0 => Ok(self),
            _ => Err(Reason::AdjustRoomFailed),
        }
    }

    #[inline(always)]
    fn csum_partial<const N: usize>(&self, offset: usize) -> Option<u32> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now.
        unsafe { access::csum_partial::<N>(start, end, offset) }
    }

    #[inline(always)]
    fn push_headers<T: Pod>(self, headers: &T) -> Result<(), Reason> {
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        if unsafe { bpf_skb_adjust_room(self.skb, size_of::<T>() as i32, BPF_ADJ_ROOM_MAC, 0) } != 0
        {
            return Err(Reason::AdjustRoomFailed);
        }
        self.store_bytes(ETH_HLEN, headers, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    /// The flags mark an encapsulation (`ENCAP_L3`), so that the kernel can still segment merged
    /// packets, and keep the size of their segments (`FIXED_GSO`), which was checked before.
    /// Without `FIXED_GSO`, the kernel makes the segments smaller by the outer header.
    ///
    /// A packet that was merged as a list of packets (`frag_list`) cannot be segmented after that:
    /// kernels without the fix of CVE-2024-42281 panic (`BUG_ON` in `skb_segment`). A program
    /// cannot recognise such packets, so each is made linear before.
    #[inline(always)]
    fn encapsulate<T: Pod>(
        self,
        family: Family,
        inner: Family,
        outer: &T,
        resegment: bool,
        udp_len: u32,
    ) -> Result<Self, Reason> {
        /// [`BPF_F_ADJ_ROOM_ENCAP_L4_UDP`] divided by the length of a UDP header.
        const FLAG_PER_BYTE: u32 = BPF_F_ADJ_ROOM_ENCAP_L4_UDP / Udp::SIZE as u32;

        self.discard_sum()?;
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        if resegment && unsafe { bpf_skb_pull_data(self.skb, self.bytes()) } != 0 {
            return Err(Reason::AdjustRoomFailed);
        }
        let flags = if resegment { 0 } else { BPF_F_ADJ_ROOM_FIXED_GSO }
            | match family {
                Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
                Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            };
        // `udp_len` is zero or the length of a UDP header, so the multiplication gives zero or the
        // flag without a branch.
        let udp = udp_len.wrapping_mul(FLAG_PER_BYTE);
        let (bytes, flags) =
            ((size_of::<T>() as i32).wrapping_add(udp_len as i32), u64::from(flags | udp));
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        if unsafe { bpf_skb_adjust_room(self.skb, bytes, BPF_ADJ_ROOM_MAC, flags) } != 0 {
            return Err(Reason::AdjustRoomFailed);
        }
        if family != inner {
            self.put(ETH_HLEN - 2, &ether_type(family))?;
        }
        self.put(ETH_HLEN, outer)?;
        Ok(self)
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        self.put(offset, header)
    }

    #[inline(always)]
    fn decapsulate<T: Pod, H: Pod>(
        self,
        outer: Family,
        inner: Family,
        head: &H,
    ) -> Result<(), Reason> {
        // Within a family, no kernel needs the flags, and old kernels reject them.
        let flags = u64::from(match (outer, inner) {
            (Family::V6, Family::V4) => BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            (Family::V4, Family::V6) => BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            _ => BPF_F_ADJ_ROOM_FIXED_GSO,
        });
        // SAFETY: `skb` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        if unsafe {
            bpf_skb_adjust_room(
                self.skb,
                (size_of::<T>() as i32).wrapping_neg(),
                BPF_ADJ_ROOM_MAC,
                flags,
            )
        } != 0
        {
            return Err(Reason::AdjustRoomFailed);
        }
        if outer != inner {
            self.put(ETH_HLEN - 2, &ether_type(inner))?;
        }
        match inner {
            // The checksum of the header keeps a sum in the metadata (CHECKSUM_COMPLETE) true.
            Family::V4 => self.put(ETH_HLEN, head),
            Family::V6 => self.store_bytes(ETH_HLEN, head, u64::from(BPF_F_RECOMPUTE_CSUM)),
        }
    }
}

/// The TC action for an encapsulated packet: redirect to its interface and next hop. The kernel
/// looks up the link address in its neighbour table.
#[inline(always)]
fn redirect_to(egress: &Egress, neighbour: &Neighbour) -> i32 {
    let bytes = size_of::<Neighbour>() as i32;
    let neighbour = core::ptr::from_ref(neighbour).cast::<bpf_redir_neigh>().cast_mut();
    // SAFETY: the helper reads `bytes` bytes of the neighbour, which has the members of a
    // `bpf_redir_neigh`, and writes none.
    unsafe { bpf_redirect_neigh(egress.interface, neighbour, bytes, 0) as i32 }
}

/// The TC action for an encapsulated packet: redirect to its interface. The kernel looks up the
/// next hop in its routing table.
#[inline(always)]
pub fn redirect(egress: &Egress) -> i32 {
    // SAFETY: without parameters the helper reads nothing but the packet.
    unsafe { bpf_redirect_neigh(egress.interface, core::ptr::null_mut(), 0, 0) as i32 }
}

/// The TC action for a packet that passes: it continues to the next filter, and after the last
/// filter to the stack.
pub const PASS: i32 = TC_ACT_UNSPEC;

/// The TC action for a packet that is not forwarded.
#[inline(always)]
pub fn refuse(reason: Reason) -> i32 {
    match reason.verdict() {
        Verdict::Pass => PASS,
        Verdict::Drop | Verdict::Answer => TC_ACT_SHOT,
    }
}

/// The TC hook.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TcHook(pub *mut __sk_buff);

impl Hook for TcHook {
    type Packet<'a> = TcPacket;

    #[inline(always)]
    fn pull_and_wrap(&mut self) -> TcPacket {
        TcPacket::new(self.0)
    }

    #[inline(always)]
    fn packet(&mut self) -> TcPacket {
        TcPacket::of(self.0)
    }

    #[inline(always)]
    fn redirect<M: BalancerMaps>(&mut self, egress: &Egress, maps: &M) -> u32 {
        if egress.neighbour != 0
            && let Some(neighbour) = maps.neighbour(egress.neighbour)
        {
            return redirect_to(egress, neighbour) as u32;
        }
        redirect(egress) as u32
    }

    #[inline(always)]
    fn apply_verdict(&mut self, reason: Reason) -> u32 {
        match reason.verdict() {
            // SAFETY: the helper takes numbers only.
            Verdict::Answer => unsafe { bpf_redirect(self.packet().interface(), 0) as u32 },
            _ => refuse(reason) as u32,
        }
    }
}

//! The XDP binding: a packet is an `xdp_md`, before the kernel allocates a socket buffer.
#![expect(unsafe_code, reason = "raw access to the context, and calls of kernel helpers")]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibParameters, xdp_md,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use sluice_datapath::abi::CAPTURE_LEN;
use sluice_datapath::balance::{BalancerMaps, Egress, Hook};
use sluice_datapath::wire::checksum;
use sluice_datapath::wire::packet::{ETH_HLEN, MAX_LOAD_OFFSET, ether_type, is_group};
use sluice_datapath::{Family, Packet, Pod, Reason, Verdict};

use crate::access;

/// A packet at an XDP hook. It is never merged, and its VLAN tag is in its bytes.
pub struct XdpPacket {
    xdp: *mut xdp_md,
}

impl XdpPacket {
    /// The packet of a context.
    #[inline(always)]
    pub fn new(xdp: *mut xdp_md) -> Self {
        Self { xdp }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: `xdp` is the context that the kernel gave.
        unsafe { ((*self.xdp).data as usize, (*self.xdp).data_end as usize) }
    }

    /// The bounds for comparisons at variable offsets. Without this, LLVM removes comparisons that
    /// earlier ones imply, and the verifier does not accept the access.
    #[inline(always)]
    fn checked_bounds(&self) -> (usize, usize) {
        let (start, end) = self.bounds();
        (start, core::hint::black_box(end))
    }

    /// Writes a header at an offset.
    #[inline(always)]
    pub fn put<T: Pod>(&self, offset: usize, header: &T) -> Result<(), Reason> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now, and no reference into the packet exists.
        unsafe { access::write(start, end, offset, header) }.ok_or(Reason::AdjustRoomFailed)
    }

    /// Moves the start of the packet by `delta` bytes, and the Ethernet header with it.
    #[inline(always)]
    fn move_head(&self, delta: i32) -> Result<(), Reason> {
        // Whole words where possible.
        let addresses: [u32; 3] = self.load(0).ok_or(Reason::AdjustRoomFailed)?;
        let ether_type: u16 = self.load(ETH_HLEN - 2).ok_or(Reason::AdjustRoomFailed)?;
        // SAFETY: `xdp` is the context that the kernel gave; both callers consume the packet.
        if unsafe { bpf_xdp_adjust_head(self.xdp, delta) } != 0 {
            return Err(Reason::AdjustRoomFailed);
        }
        self.put(0, &addresses)?;
        self.put(ETH_HLEN - 2, &ether_type)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        let (start, end) = self.bounds();
        // Without this, LLVM subtracts the start from the next operand, and the verifier rejects
        // the subtraction of a pointer from a number.
        core::hint::black_box(end.wrapping_sub(start))
    }

    #[inline(always)]
    fn has_vlan(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_in_vlan(&self) -> bool {
        false
    }

    /// The kernel has not checked the destination MAC address yet, and the program does not know
    /// the MAC address of its interface.
    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        true
    }

    #[inline(always)]
    fn segment_size(&self) -> usize {
        0
    }

    #[inline(always)]
    fn segments(&self) -> u64 {
        1
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        // SAFETY: the bounds were read just now.
        unsafe { access::read(start, end, offset) }
    }

    #[inline(always)]
    fn load_at<T: Pod>(&self, offset: usize) -> Option<T> {
        // Without this, LLVM computes the address differently for the comparison and for the
        // access, and the verifier does not accept the access.
        let offset = core::hint::black_box(offset);
        // The verifier requires an upper bound of the number that is added to a packet pointer; old
        // verifiers require it of this very copy of the number.
        if offset > MAX_LOAD_OFFSET {
            return None;
        }
        self.load(offset)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: `xdp` is the context that the kernel gave.
        unsafe { (*self.xdp).ingress_ifindex }
    }

    /// Eight bytes at a time, then single bytes. (A helper for this exists since Linux 5.18.)
    #[inline(always)]
    fn copy_head(&self, head: &mut [u8; CAPTURE_LEN]) -> u32 {
        let (first, rest) = head.split_at_mut(size_of::<u64>());
        // A frame has an Ethernet header. The verifier would not derive that from a read of the
        // first byte.
        let Some(word) = self.load::<u64>(0) else { return 0 };
        first.copy_from_slice(&word.to_ne_bytes());
        let mut taken = size_of::<u64>();
        for chunk in rest.as_chunks_mut().0 {
            if let Some(word) = self.load::<u64>(taken) {
                *chunk = word.to_ne_bytes();
                taken = taken.wrapping_add(size_of::<u64>());
                continue;
            }
            for byte in chunk {
                match self.load(taken) {
                    Some(last) => *byte = last,
                    None => return taken as u32,
                }
                taken = taken.wrapping_add(1);
            }
        }
        taken as u32
    }

    #[inline(always)]
    fn vlan_pop(self, bytes: usize) -> Result<Self, Reason> {
        /// The words of two MAC addresses.
        const ADDRESSES: usize = (ETH_HLEN - 2) / 2;

        if bytes == 0 {
            return Ok(self);
        }
        let addresses: [u16; ADDRESSES] = self.load(0).ok_or(Reason::AdjustRoomFailed)?;
        // SAFETY: `xdp` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        if unsafe { bpf_xdp_adjust_head(self.xdp, bytes as i32) } != 0 {
            return Err(Reason::AdjustRoomFailed);
        }
        self.put(0, &addresses)?;
        Ok(self)
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, header: &T) -> Result<(), Reason> {
        // The verifier requires an upper bound of the number that is added to a packet pointer.
        if offset > MAX_LOAD_OFFSET {
            return Err(Reason::AdjustRoomFailed);
        }
        let (start, end) = self.checked_bounds();
        // SAFETY: the bounds were read just now, and no reference into the packet exists.
        unsafe { access::write(start, end, offset, header) }.ok_or(Reason::AdjustRoomFailed)
    }

    #[inline(always)]
    fn csum_replace2(
        &mut self,
        offset: usize,
        old: u16,
        new: u16,
        at: usize,
    ) -> Result<(), Reason> {
        let checksum =
            checksum::replaced(self.load_at(at).ok_or(Reason::AdjustRoomFailed)?, old, new);
        self.store(offset, &new)?;
        self.store(at, &checksum)
    }

    #[inline(always)]
    fn swap_macs(&mut self) -> Result<(), Reason> {
        let (start, end) = self.checked_bounds();
        // SAFETY: the bounds were read just now.
        let [to, from]: [[u16; 3]; 2] =
            unsafe { access::read(start, end, 0) }.ok_or(Reason::AdjustRoomFailed)?;
        if is_group(to) {
            return Err(Reason::OtherHost);
        }
        // SAFETY: as above, and no reference into the packet exists.
        unsafe { access::write(start, end, 0, &[from, to]) }.ok_or(Reason::AdjustRoomFailed)
    }

    #[inline(always)]
    fn trim(self, length: usize) -> Result<Self, Reason> {
        let by = (length as i32).wrapping_sub(self.frame_len() as i32);
        // SAFETY: `xdp` is the context that the kernel gave; the packet is consumed, so nothing
        // read from it is used again.
        match unsafe { bpf_xdp_adjust_tail(self.xdp, by) } {
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
        self.move_head((size_of::<T>() as i32).wrapping_neg())?;
        self.put(ETH_HLEN, headers)
    }

    #[inline(always)]
    fn encapsulate<T: Pod>(
        self,
        family: Family,
        inner: Family,
        outer: &T,
        _: bool,
        udp_len: u32,
    ) -> Result<Self, Reason> {
        self.move_head((size_of::<T>() as i32).wrapping_add(udp_len as i32).wrapping_neg())?;
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
        self.move_head(size_of::<T>() as i32)?;
        if outer != inner {
            self.put(ETH_HLEN - 2, &ether_type(inner))?;
        }
        self.put(ETH_HLEN, head)
    }
}

/// The XDP action for an encapsulated packet: redirect to its interface if the kernel has the link
/// address of the next hop, else pass to the stack, which resolves the address and forwards the
/// packet.
#[inline(always)]
pub fn redirect(context: *mut xdp_md, egress: &Egress) -> u32 {
    match resolve(context, egress) {
        // SAFETY: the helper only takes numbers.
        Some(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
        None => XDP_PASS,
    }
}

/// Writes the MAC addresses of the route to the outer destination. Returns the egress interface.
#[inline(always)]
fn resolve(context: *mut xdp_md, egress: &Egress) -> Option<u32> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;

    let packet = XdpPacket::new(context);
    // An opaque zero: with a constant zero, the compiler calls `memset`, a loop with a stack frame
    // of its own.
    let mut words = [core::hint::black_box(0_u64); size_of::<FibParameters>() / size_of::<u64>()];
    // SAFETY: the words have the size of this C struct and a higher alignment, and all zeros is a
    // valid value.
    let route = unsafe { &mut *words.as_mut_ptr().cast::<FibParameters>() };
    route.ifindex = egress.interface;
    match egress.family {
        Family::V4 => {
            route.family = AF_INET;
            route.__bindgen_anon_3.ipv4_src = packet.load(ETH_HLEN.wrapping_add(12))?;
            route.__bindgen_anon_4.ipv4_dst = packet.load(ETH_HLEN.wrapping_add(16))?;
        }
        Family::V6 => {
            route.family = AF_INET6;
            route.__bindgen_anon_3.ipv6_src = packet.load(ETH_HLEN.wrapping_add(8))?;
            route.__bindgen_anon_4.ipv6_dst = packet.load(ETH_HLEN.wrapping_add(24))?;
        }
    }
    // SAFETY: the parameters are a whole struct of the size given.
    let outcome = unsafe {
        bpf_fib_lookup(
            context.cast(),
            &raw mut *route,
            size_of::<FibParameters>() as i32,
            BPF_FIB_LOOKUP_OUTPUT,
        )
    };
    if outcome != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return None;
    }
    // MAC addresses as words: single bytes would be copied one by one.
    let words = |octets: *const [u8; 6]| octets.cast::<[u16; 3]>();
    // SAFETY: the kernel's struct is aligned, and has both addresses at even offsets.
    let (to, from) =
        unsafe { (words(&raw const route.dmac).read(), words(&raw const route.smac).read()) };
    packet.put(0, &[to, from]).ok()?;
    Some(route.ifindex)
}

/// The XDP hook.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct XdpHook(pub *mut xdp_md);

impl Hook for XdpHook {
    type Packet<'a> = XdpPacket;

    #[inline(always)]
    fn pull_and_wrap(&mut self) -> XdpPacket {
        self.packet()
    }

    #[inline(always)]
    fn packet(&mut self) -> XdpPacket {
        XdpPacket::new(self.0)
    }

    /// The lookup of the route returns the link address, too.
    #[inline(always)]
    fn redirect<M: BalancerMaps>(&mut self, egress: &Egress, _: &M) -> u32 {
        redirect(self.0, egress)
    }

    #[inline(always)]
    fn apply_verdict(&mut self, reason: Reason) -> u32 {
        match reason.verdict() {
            Verdict::Pass => XDP_PASS,
            Verdict::Drop => XDP_DROP,
            Verdict::Answer => XDP_TX,
        }
    }
}

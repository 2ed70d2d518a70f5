//! Access to packet bytes between two pointers. No other code accesses packet memory.
#![expect(unsafe_code, reason = "raw access to packets, after a bounds check")]

use aya_ebpf::helpers::bpf_csum_diff;
use sluice_datapath::Pod;

/// Reads the header at `start + offset`; `None` if it does not end at or before `end`.
///
/// # Safety
///
/// `start` and `end` are the `data` and `data_end` of a context, read after the last call that may
/// have moved the packet. The comparison is directly before the access and on the same pointers,
/// the form that the verifier recognises.
#[inline(always)]
pub unsafe fn read<T: Pod>(start: usize, end: usize, offset: usize) -> Option<T> {
    if start.wrapping_add(offset).wrapping_add(size_of::<T>()) > end {
        return None;
    }
    // SAFETY: the bytes lie within the packet, by the comparison above. They are read as if
    // aligned, because LLVM would otherwise read single bytes. BPF allows unaligned words in
    // packets where the processor does, and the verifier rejects the program elsewhere.
    Some(unsafe { (start.wrapping_add(offset) as *const T).read() })
}

/// Writes a header at `start + offset`; `None` if it would not end at or before `end`.
///
/// # Safety
///
/// As for [`read`]; no reference to these bytes is held.
#[inline(always)]
pub unsafe fn write<T: Pod>(start: usize, end: usize, offset: usize, header: &T) -> Option<()> {
    if start.wrapping_add(offset).wrapping_add(size_of::<T>()) > end {
        return None;
    }
    // SAFETY: as in `read`.
    unsafe { (start.wrapping_add(offset) as *mut T).write(*header) };
    Some(())
}

/// The one's complement sum of the 16-bit words of `N` bytes at `start + offset`; `None` if they do
/// not end at or before `end`.
///
/// # Safety
///
/// As for [`read`].
#[inline(always)]
pub unsafe fn csum_partial<const N: usize>(start: usize, end: usize, offset: usize) -> Option<u32> {
    // Without this, LLVM removes comparisons that earlier ones imply, and the verifier does not
    // accept the access.
    let end = core::hint::black_box(end);
    if start.wrapping_add(offset).wrapping_add(N) > end {
        return None;
    }
    let bytes = start.wrapping_add(offset) as *mut u32;
    // SAFETY: the bytes lie within the packet, by the comparison above; the helper only reads them.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, N as u32, 0) };
    if sum < 0 { None } else { Some(sum as u32) }
}

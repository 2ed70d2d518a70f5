//! Reads and writes packet bytes between two pointers, the one place where packet memory is
//! touched.
#![expect(unsafe_code, reason = "raw access to packets, after a bounds check")]

use aya_ebpf::helpers::bpf_csum_diff;
use sluice_datapath::Pod;

/// The header at `start + offset`, if it ends at or before `end`.
///
/// # Safety
///
/// `start` and `end` are the `data` and `data_end` of a context, read after the last call that may
/// have moved the packet. The comparison stands directly before the access and on the same
/// pointers: that is the form the verifier recognises.
#[inline(always)]
pub unsafe fn read<T: Pod>(start: usize, end: usize, offset: usize) -> Option<T> {
    if start.wrapping_add(offset).wrapping_add(size_of::<T>()) > end {
        return None;
    }
    // SAFETY: the bytes lie within the packet, by the comparison above. They are read as if
    // aligned, since LLVM would else make single bytes of them: the BPF machine allows words at any
    // packet address where the processor does, and the verifier refuses the program elsewhere.
    Some(unsafe { (start.wrapping_add(offset) as *const T).read() })
}

/// Writes a header at `start + offset`; `None` when it would not end at or before `end`.
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

/// The sum of the 16-bit words of `N` bytes at `start + offset`, if they end at or before `end`.
///
/// # Safety
///
/// As for [`read`].
#[inline(always)]
pub unsafe fn csum_partial<const N: usize>(start: usize, end: usize, offset: usize) -> Option<u32> {
    // Else LLVM leaves out comparisons that earlier ones imply, and the verifier does not follow it
    // there.
    let end = core::hint::black_box(end);
    if start.wrapping_add(offset).wrapping_add(N) > end {
        return None;
    }
    let bytes = start.wrapping_add(offset) as *mut u32;
    // SAFETY: the bytes lie within the packet, by the comparison above; the helper only reads them.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, N as u32, 0) };
    if sum < 0 { None } else { Some(sum as u32) }
}

//! Support for the kernel's verifier.
#![expect(unsafe_code, reason = "hides a value from the verifier by volatile accesses")]

/// Returns the same number, with unknown bounds for the verifier.
///
/// The verifier explores every path of a program, and prunes a path only if its state matches an
/// earlier one. Values whose bounds differ between paths therefore multiply the states of all later
/// instructions. This function makes the bounds equal: a one-byte store to a stack slot discards
/// the bounds of the slot, in all kernels from Linux 5.10 on.
#[inline(always)]
pub fn widen_for_verifier(number: u32) -> u32 {
    /// Index of the most significant byte of the word, which is zero for every `u32`.
    const MOST_SIGNIFICANT: usize = if cfg!(target_endian = "big") { 0 } else { 7 };

    let mut word = u64::from(number);
    let pointer = &raw mut word;
    // SAFETY: the pointers are to `word` and to one of its bytes, and `word` is initialized.
    unsafe {
        pointer.write_volatile(word);
        pointer.cast::<u8>().add(MOST_SIGNIFICANT).write_volatile(0);
        pointer.read_volatile() as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_unchanged(number: u32) {
            prop_assert_eq!(super::widen_for_verifier(number), number);
        }
    }
}

//! What only the kernel's verifier has to do with.
#![expect(unsafe_code, reason = "hides a value from the verifier by volatile accesses")]

/// The same number, of which the verifier knows nothing any more.
///
/// It follows a program along every path, and ends one only where it knows as much as on an earlier
/// one: numbers whose bounds differ by the path multiply all that comes behind. After this they are
/// alike. (A byte written into a word on the stack makes it forget the word, in all versions from
/// Linux 5.10 on.)
#[inline(always)]
pub fn widen_for_verifier(number: u32) -> u32 {
    /// The byte of a word on the stack that is zero in any number.
    const HIGHEST: usize = if cfg!(target_endian = "big") { 0 } else { 7 };

    let mut word = u64::from(number);
    let place = &raw mut word;
    // SAFETY: the pointers are to `word` and to one of its bytes.
    unsafe {
        place.write_volatile(word);
        place.cast::<u8>().add(HIGHEST).write_volatile(0);
        place.read_volatile() as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_stays_what_it_is(number: u32) {
            prop_assert_eq!(super::widen_for_verifier(number), number);
        }
    }
}

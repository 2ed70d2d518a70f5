//! The Internet checksum (RFC 1071) of headers, and its incremental update (RFC 1624).

/// Folds a sum of 16-bit words to 16 bits, one's complement.
///
/// Two folds, because the first end-around carry may produce another carry.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    sum as u16
}

/// Folds a sum of at most 2^16 32-bit words to 16 bits, one's complement.
#[inline(always)]
pub const fn fold_wide(sum: u64) -> u16 {
    // The sum is below 2^48, so its three 16-bit parts sum to less than 2^18.
    fold((sum & 0xffff).wrapping_add((sum >> 16) & 0xffff).wrapping_add(sum >> 32) as u32)
}

/// The sum of 32-bit words. The sum is independent of byte order (RFC 1071 section 2B): words in
/// wire order result in a folded sum in wire order, without a byte swap.
#[inline(always)]
pub const fn sum<const N: usize>(words: [u32; N]) -> u64 {
    let mut sum = 0_u64;
    let mut i = 0;
    while i < N {
        sum = sum.wrapping_add(words[i] as u64);
        i = i.wrapping_add(1);
    }
    sum
}

/// The checksum of an IPv4 header without options, as five 32-bit words in wire order. The checksum
/// field is zero.
#[inline(always)]
pub const fn header_checksum(words: [u32; 5]) -> u16 {
    !fold_wide(sum(words))
}

/// Updates a checksum for a 16-bit word that changes from `old` to `new`, all in the same byte
/// order (RFC 1624, equation 3).
#[inline(always)]
pub const fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum as u32).wrapping_add(!old as u32).wrapping_add(new as u32))
}

/// As [`updated`], with a checksum of zero replaced by all ones, the other form of zero (RFC 1624
/// section 3). It is also correct if all covered words are zero afterwards.
#[inline(always)]
pub const fn replaced(checksum: u16, old: u16, new: u16) -> u16 {
    match updated(checksum, old, new) {
        0 => u16::MAX,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sum_needs_two_folds() {
        // 0xffff + 0xffff + 1: the first fold gives 0x10000.
        assert_eq!(fold(0x1_ffff), 1);
    }

    #[test]
    fn the_example_of_rfc_1071_sums_correctly() {
        // Section 3: 0001 f203 f4f5 f6f7 sums to ddf2.
        assert_eq!(fold(0x0001 + 0xf203 + 0xf4f5 + 0xf6f7), 0xddf2);
    }

    /// The checksum by the definition of RFC 1071: ten 16-bit words in wire order.
    fn reference(header: &[u8; 20]) -> u16 {
        let sum: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        !fold(sum)
    }

    fn as_words(header: &[u8; 20]) -> [u32; 5] {
        core::array::from_fn(|i| u32::from_ne_bytes(header[4 * i..][..4].try_into().unwrap()))
    }

    proptest! {
        #[test]
        fn summing_32_bit_words_equals_summing_16_bit_words(header: [u8; 20]) {
            prop_assert_eq!(u16::from_be(header_checksum(as_words(&header))), reference(&header));
        }

        #[test]
        fn a_header_with_its_checksum_sums_to_all_ones(mut header: [u8; 20]) {
            header[10..12].fill(0);
            let checksum = header_checksum(as_words(&header));
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            prop_assert_eq!(reference(&header), 0);
        }

        #[test]
        fn an_incremental_update_equals_a_new_checksum(mut header: [u8; 20], new: [u8; 2]) {
            // An IPv4 header is never all zero, the only case in which the two forms of zero
            // differ.
            header[0] = 0x45;
            header[10..12].fill(0);
            let before = header_checksum(as_words(&header));
            let old = u16::from_ne_bytes([header[2], header[3]]);
            header[2..4].copy_from_slice(&new);
            prop_assert_eq!(updated(before, old, u16::from_ne_bytes(new)), header_checksum(as_words(&header)));
        }
    }
}

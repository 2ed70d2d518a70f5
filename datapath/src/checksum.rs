//! The Internet checksum (RFC 1071) of headers, and its incremental update (RFC 1624).

/// Folds a sum of 16-bit words to 16 bits, one's complement.
///
/// Two folds: after one, the end-around carry may carry again.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    sum as u16
}

/// The checksum of an option-less IPv4 header whose checksum field is zero.
#[inline(always)]
pub fn ipv4_header(header: &[u8; 20]) -> u16 {
    let mut sum = 0u32;
    let mut i = 0;
    while i < 20 {
        sum = sum.wrapping_add(u32::from(header[i]) << 8 | u32::from(header[i | 1]));
        i += 2;
    }
    !fold(sum)
}

/// The checksum after one 16-bit word under it changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum as u32).wrapping_add(!old as u32).wrapping_add(new as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_fold_is_not_enough() {
        // 0xffff + 0xffff + 1: the first fold gives 0x10000.
        assert_eq!(fold(0x1_ffff), 1);
    }

    #[test]
    fn the_example_of_rfc_1071_holds() {
        // Section 3: 0001 f203 f4f5 f6f7 sums to ddf2.
        assert_eq!(fold(0x0001 + 0xf203 + 0xf4f5 + 0xf6f7), 0xddf2);
    }

    proptest! {
        #[test]
        fn a_header_with_its_checksum_sums_to_all_ones(mut header: [u8; 20]) {
            header[10..12].fill(0);
            let checksum = ipv4_header(&header);
            let sum: u32 = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
            prop_assert_eq!(fold(sum + u32::from(checksum)), 0xffff);
        }

        #[test]
        fn an_update_equals_a_new_sum(mut header: [u8; 20], new: [u8; 2]) {
            // An IPv4 header is never all zero, the one case in which the two forms of zero differ.
            header[0] = 0x45;
            header[10..12].fill(0);
            let before = ipv4_header(&header);
            let old = u16::from_be_bytes([header[2], header[3]]);
            header[2..4].copy_from_slice(&new);
            prop_assert_eq!(updated(before, old, u16::from_be_bytes(new)), ipv4_header(&header));
        }
    }
}

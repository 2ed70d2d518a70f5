//! The number of slots of each member.

use alloc::vec::Vec;
use core::cmp::Reverse;

/// Divides `slots` in proportion to `weights` by the largest remainder method, exact to within one
/// slot. `weights` are positive, at least one, and in the members' canonical order, which also
/// breaks ties between equal remainders.
///
/// Of the slots that remain after rounding down, members without a slot get one first. A member is
/// left without a slot only if otherwise another member would be more than one slot away from its
/// share.
pub(crate) fn shares(weights: &[u32], slots: u32) -> Vec<u32> {
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    let mut left = slots;
    let mut shares = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    for (member, &weight) in weights.iter().enumerate() {
        // Below 2^32 * 2^23, and the share is at most `slots`.
        let product = u64::from(weight) * u64::from(slots);
        let share = (product / total) as u32;
        left -= share;
        shares.push(share);
        remainders.push((share > 0, Reverse(product % total), member));
    }
    // The sum of the remainders is `left` times the total, and each is below the total, so `left`
    // is less than the number of members.
    let left = left as usize;
    if left > 0 {
        remainders.select_nth_unstable(left - 1);
    }
    for &(_, _, member) in &remainders[..left] {
        shares[member] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn weights_1_to_2_and_1_to_10_get_their_exact_shares() {
        assert_eq!(shares(&[1, 2], 1021), [340, 681]);
        assert_eq!(shares(&[1, 10], 65_537), [5958, 59_579]);
    }

    #[test]
    fn equal_weights_differ_by_at_most_one_slot() {
        for members in 1..=251 {
            let shares = shares(&vec![7; members], 251);
            assert_eq!(shares.iter().sum::<u32>(), 251);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn a_small_weight_gets_a_slot_before_a_large_one_is_rounded_up() {
        assert_eq!(shares(&[1, u32::MAX], 251), [1, 250]);
    }

    #[test]
    fn small_weights_change_no_share_by_more_than_one_slot() {
        let mut weights = vec![1; 200];
        weights.push(1_000_000);
        let shares = shares(&weights, 251);
        assert_eq!(shares[200], 250);
        assert_eq!(shares[..200].iter().sum::<u32>(), 1);
    }

    #[test]
    fn the_largest_possible_sum_of_weights_does_not_overflow() {
        let shares = shares(&vec![u32::MAX; 65_535], 5_000_011);
        assert_eq!(shares.iter().sum::<u32>(), 5_000_011);
        assert!(shares.iter().all(|share| [76, 77].contains(share)));
    }
}

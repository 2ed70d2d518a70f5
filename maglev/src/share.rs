//! How many slots each weight is worth.

use alloc::vec::Vec;
use core::cmp::Reverse;

/// Divides `slots` among `weights` (all positive, at least one, in the members' canonical order) in
/// proportion, each to within one slot, by the largest remainder; equal remainders are settled by
/// the canonical order.
///
/// Of the slots that are left after rounding down, those who would have none get one first. A
/// member goes without only where another would otherwise be more than one slot away from its
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
    // The remainders add up to `left` times the total, and each is below it: fewer slots are left
    // than there are members.
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
    fn weights_that_other_balancers_round_badly_come_out_right() {
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
    fn no_share_is_bent_by_more_than_a_slot_for_the_sake_of_small_weights() {
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

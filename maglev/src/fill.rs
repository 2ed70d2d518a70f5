//! Members take turns at choosing slots until all are taken.

use alloc::vec;
use alloc::vec::Vec;

use crate::permutation::Permutation;

/// Fills a table of `slots` slots, and returns the owner of each as an index into `permutations`.
///
/// In each round every member, in order, takes as many turns as its share asks for; in each turn it takes the first slot
/// of its permutation that is still free. With equal shares that is the loop of the paper's section 3.4.
///
/// `shares` are the slots each member is to get, and add up to `slots`.
pub(crate) fn fill(slots: u32, permutations: &[Permutation], shares: &[u32]) -> Vec<u16> {
    let mut owners = vec![0u16; slots as usize];
    let mut taken = vec![0u64; slots.div_ceil(64) as usize];
    let rounds = slots.div_ceil(permutations.len() as u32);
    let mut members: Vec<_> = permutations
        .iter()
        .zip(shares)
        .map(|(permutation, &share)| (permutation.offset, permutation.skip, share, rounds - 1))
        .collect();
    for _ in 0..rounds {
        for (member, (slot, skip, share, credit)) in members.iter_mut().enumerate() {
            *credit += *share;
            while *credit >= rounds {
                *credit -= rounds;
                while taken[(*slot / 64) as usize] >> (*slot % 64) & 1 == 1 {
                    *slot += *skip;
                    if *slot >= slots {
                        *slot -= slots;
                    }
                }
                taken[(*slot / 64) as usize] |= 1 << (*slot % 64);
                owners[*slot as usize] = member as u16;
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_1_of_the_paper() {
        let permutation = |offset, skip| Permutation { offset, skip };
        let [zero, one, two] = [permutation(3, 4), permutation(0, 2), permutation(3, 1)];
        assert_eq!(
            fill(7, &[zero, one, two], &[3, 2, 2]),
            [1, 0, 1, 0, 2, 2, 0]
        );
        // Without member 1, so that 1 stands for member 2.
        assert_eq!(fill(7, &[zero, two], &[4, 3]), [0, 0, 0, 0, 1, 1, 1]);
    }
}

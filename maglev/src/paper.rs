//! The pseudo-code of the Maglev paper's section 3.4, line by line: the reference of unit tests and
//! benches. It supports no weights and is not compiled into the library.

use alloc::vec;
use alloc::vec::Vec;

/// `permutation[i][j]`, the j-th preference of backend i: the matrix of the paper, N x M numbers of
/// 4 bytes.
pub(crate) fn permutations(offset_skip: &[(u32, u32)], m: u32) -> Vec<Vec<u32>> {
    let element = |offset, skip, j| {
        ((u64::from(offset) + u64::from(j) * u64::from(skip)) % u64::from(m)) as u32
    };
    offset_skip
        .iter()
        .map(|&(offset, skip)| (0..m).map(|j| element(offset, skip, j)).collect())
        .collect()
}

/// Pseudocode 1 of the paper, "Populate Maglev hashing lookup table".
pub(crate) fn populate(permutation: &[Vec<u32>], m: u32) -> Vec<i32> {
    populate_from(permutation.len(), m, |i, j| permutation[i][j as usize])
}

/// Like [`populate`], but computes each element of the matrix on access, because the matrix of a
/// large table does not fit into memory.
pub(crate) fn populate_without_matrix(offset_skip: &[(u32, u32)], m: u32) -> Vec<i32> {
    populate_from(offset_skip.len(), m, |i, j| {
        let (offset, skip) = offset_skip[i];
        ((u64::from(offset) + u64::from(j) * u64::from(skip)) % u64::from(m)) as u32
    })
}

fn populate_from(backends: usize, m: u32, permutation: impl Fn(usize, u32) -> u32) -> Vec<i32> {
    let mut next = vec![0; backends];
    let mut entry = vec![-1; m as usize];
    let mut n = 0;
    loop {
        for (i, next) in next.iter_mut().enumerate() {
            let mut c = permutation(i, *next);
            while entry[c as usize] >= 0 {
                *next += 1;
                c = permutation(i, *next);
            }
            entry[c as usize] = i as i32;
            *next += 1;
            n += 1;
            if n == m {
                return entry;
            }
        }
    }
}

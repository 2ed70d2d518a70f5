//! SipHash over 64-bit words, for the eBPF programs and for userspace.
//!
//! SipHash is a keyed pseudo-random function for hash tables with untrusted input (Aumasson and
//! Bernstein, "SipHash: a fast short-input PRF", 2012): without the key, an attacker cannot
//! construct flows that collide in one slot. Flows are hashed with SipHash-1-3, the variant that
//! hash tables use. The rounds are parameters because the published test vectors are for
//! SipHash-2-4.

/// SipHash-`C`-`D` of a message of `N` little-endian 64-bit words under `key`.
///
/// `key` holds the two halves of the 128-bit key as little-endian words, as in the paper. `rest`
/// holds the last `bytes` bytes of the message after whole words, fewer than eight, zero-extended.
/// The paper's final block contains them and the length, so that they need no block of their own.
#[inline(always)]
pub fn siphash<const C: usize, const D: usize, const N: usize>(
    key: [u64; 2],
    words: [u64; N],
    rest: u64,
    bytes: u64,
) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        absorb::<C>(&mut v, word);
    }
    absorb::<C>(&mut v, rest | ((N as u64).wrapping_mul(8).wrapping_add(bytes) << 56));
    v[2] ^= 0xff;
    for _ in 0..D {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn absorb<const C: usize>(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    for _ in 0..C {
        round(v);
    }
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use proptest::prelude::*;
    use siphasher::sip::{SipHasher13, SipHasher24};

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_siphasher_crate(key: [u64; 2], words: [u64; 5], rest: u64, bytes in 0..8_usize) {
            let mut oracle = SipHasher13::new_with_keys(key[0], key[1]);
            words.iter().for_each(|word| oracle.write(&word.to_le_bytes()));
            oracle.write(&rest.to_le_bytes()[..bytes]);
            let rest = rest & ((1 << (8 * bytes)) - 1);
            prop_assert_eq!(siphash::<1, 3, 5>(key, words, rest, bytes as u64), oracle.finish());

            let mut oracle = SipHasher24::new_with_keys(key[0], key[1]);
            words[..2].iter().for_each(|word| oracle.write(&word.to_le_bytes()));
            prop_assert_eq!(siphash::<2, 4, 2>(key, [words[0], words[1]], 0, 0), oracle.finish());
        }
    }

    /// The reference implementation's vectors for messages `00 01 .. (n-1)` under the key
    /// `00 .. 0f`, n = 0, 8, 15 and 16.
    #[test]
    fn agrees_with_the_published_vectors() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash::<2, 4, 0>(key, [], 0, 0), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash::<2, 4, 1>(key, [key[0]], 0, 0), 0x93f5_f579_9a93_2462);
        assert_eq!(
            siphash::<2, 4, 1>(key, [key[0]], key[1] & (u64::MAX >> 8), 7),
            0xa129_ca61_49be_45e5
        );
        assert_eq!(siphash::<2, 4, 2>(key, key, 0, 0), 0x3f2a_cc7f_57c2_9bdb);
    }
}

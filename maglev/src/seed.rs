//! The key of all hashes of a table.

use core::fmt;
use core::hash::Hasher as _;

use siphasher::sip128::{Hash128, Hasher128 as _, SipHasher24};

/// The purpose of a hash. Each purpose has its own key, so that no member's name can collide with
/// the input of another purpose.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// A member's permutation of the slots.
    Permutation,
    /// The jump from a slot to the slot whose owner is the next candidate.
    Jump,
    /// The draw among the members that a list still lacks after its jumps.
    Draw,
}

/// A 128-bit key for the permutations and the preference lists.
///
/// Balancers with the same seed, members, weights and size compute the same table. The slots of a
/// member cannot be predicted without the seed, so derive it from a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seed([u8; 16]);

impl Seed {
    /// A seed from the 16 bytes of a SipHash key, which are its two words in little-endian order.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// SipHash-2-4-128 of `message`, with the key of `purpose`.
    pub(crate) fn hash(&self, purpose: Purpose, message: &[u8]) -> (u64, u64) {
        let mut key = self.0;
        key[15] ^= purpose as u8;
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(message);
        let Hash128 { h1, h2 } = hasher.finish128();
        (h1, h2)
    }
}

/// Omits the bytes, because a seed is often derived from a secret and must not appear in logs.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

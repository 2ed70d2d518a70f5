//! The key that makes one fleet's tables differ from another's.

use core::fmt;
use core::hash::Hasher as _;

use siphasher::sip128::{Hash128, Hasher128 as _, SipHasher24};

/// What a hash is for. Each purpose has a key of its own, so that no name a member may have can
/// meet another purpose's input.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// A member's permutation of the slots.
    Permutation,
    /// The jump from a slot to the slot that names its next candidate.
    Jump,
    /// The draw among the remaining members when jumping found none.
    Draw,
}

/// A 128-bit key for the permutations and the preference lists.
///
/// Balancers that share a seed (and members, weights and size) compute the same table. Somebody who
/// does not know it cannot tell which slot a member will own, so derive it from a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seed([u8; 16]);

impl Seed {
    /// A seed from 16 bytes, used as a SipHash key: the first eight are its first word,
    /// little-endian.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// SipHash-2-4 with 128 bits of output, of `message`, for `purpose`.
    pub(crate) fn hash(&self, purpose: Purpose, message: &[u8]) -> (u64, u64) {
        let mut key = self.0;
        key[15] ^= purpose as u8;
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(message);
        let Hash128 { h1, h2 } = hasher.finish128();
        (h1, h2)
    }
}

/// Hides the bytes: a seed is often derived from a secret, and logs are not.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

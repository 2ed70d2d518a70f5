//! Source ACLs.

use crate::abi::pod::pod;
use crate::abi::reason::Reason;

/// Verdict of a source ACL on the sources of a prefix: value of an inner map of `ACLS`, an LPM trie
/// keyed by [`PrefixKey`](crate::abi::prefix::PrefixKey).
///
/// One trie holds the deny list, the allow list and the default verdict, so that one swap replaces
/// all three atomically. The prefix `::/0` holds the default verdict of IPv6, and `::ffff:0:0/96`
/// that of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct AclVerdict(u32);
pod!(AclVerdict, 4);

impl AclVerdict {
    /// Allowed. Also the verdict on a source that matches no prefix of the trie.
    pub const ALLOWED: Self = Self(0);
    /// The deny list has a matching prefix.
    pub const DENIED: Self = Self(1);
    /// The ACL has an allow list, without a matching prefix.
    pub const NOT_ALLOWED: Self = Self(2);

    /// Index of the global ACL in `ACLS`. A service's ACL is at the service's index, which is
    /// never 0.
    pub const GLOBAL: u32 = 0;

    /// Decodes a value of the trie. Unknown values deny.
    #[inline(always)]
    pub const fn from_bits(word: u32) -> Self {
        Self(word)
    }

    /// Returns `Ok` if the sources are allowed.
    ///
    /// # Errors
    ///
    /// [`Reason::AclDenied`], [`Reason::AclNotAllowed`].
    #[inline(always)]
    pub const fn check(self) -> Result<(), Reason> {
        match self {
            Self::ALLOWED => Ok(()),
            Self::DENIED => Err(Reason::AclDenied),
            _ => Err(Reason::AclNotAllowed),
        }
    }
}

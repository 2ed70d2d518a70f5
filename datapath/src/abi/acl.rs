//! Source ACLs.

use crate::abi::pod::pod;
use crate::abi::reason::Reason;

/// What a list of sources says of a prefix: value of an inner map of `ACLS`, a
/// longest-prefix-match trie keyed by [`PrefixKey`].
///
/// The trie holds deny-list, allow-list and what counts for sources in neither, so that one swap
/// changes all of it. Its prefixes of no bits are the latter; IPv4 has one of its own whenever a
/// prefix of IPv6 would otherwise hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct AclVerdict(u32);
pod!(AclVerdict, 4);

impl AclVerdict {
    /// The sources may come; what is in no prefix of the trie may, too.
    pub const ALLOWED: Self = Self(0);
    /// The deny-list holds them.
    pub const DENIED: Self = Self(1);
    /// There is an allow-list, and it does not hold them.
    pub const NOT_ALLOWED: Self = Self(2);

    /// Index in `ACLS` of the list that counts for all VIPs; a service's list is at the service's
    /// index, which is never 0.
    pub const GLOBAL: u32 = 0;

    /// What a number in a trie says.
    #[inline(always)]
    pub const fn from_bits(word: u32) -> Self {
        Self(word)
    }

    /// Whether the sources may come.
    ///
    /// # Errors
    ///
    /// Why not.
    #[inline(always)]
    pub const fn check(self) -> Result<(), Reason> {
        match self {
            Self::ALLOWED => Ok(()),
            Self::DENIED => Err(Reason::AclDenied),
            _ => Err(Reason::AclNotAllowed),
        }
    }
}

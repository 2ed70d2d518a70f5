//! Access to files: those of Sluice's own, which no other user may be able to change.

pub(crate) mod private;

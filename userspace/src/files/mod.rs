//! Access to files: those of Sluice's own, which no other user may be able to change, and those
//! that users write, which may hang or be something else than a file.

pub(crate) mod input;
pub(crate) mod private;

//! Attaches programs.

pub(crate) mod tc;

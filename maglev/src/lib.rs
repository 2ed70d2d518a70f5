//! Maglev lookup tables.
#![forbid(unsafe_code)]

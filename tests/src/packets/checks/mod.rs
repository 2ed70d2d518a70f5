//! Checks beyond the table of cases. Their errors are the first difference.

pub mod capture;
pub mod echo_checksums;
pub mod regressions;
pub mod source_spreading;

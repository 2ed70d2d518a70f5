//! Checks that need more than a row of the table of cases.

pub mod capture;
pub mod echo_checksums;
pub mod regressions;
pub mod source_spreading;

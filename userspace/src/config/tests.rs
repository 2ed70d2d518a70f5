//! Every way to be wrong.

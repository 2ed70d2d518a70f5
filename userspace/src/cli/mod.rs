//! The commands, one module each.

mod capture;
mod check;
pub mod counters;
mod down;
mod key;
mod output;
mod reload;
pub mod status;
mod table;

pub use output::report;

use crate::args::{KeySubcommand, Subcommand};
use crate::daemon::preflight;
use crate::daemon::{self, log};
use crate::error::CliError;

/// Runs a command to its end.
pub fn run(command: &Subcommand) -> Result<(), CliError> {
    // A daemon fails later if the limit is too low.
    let _ = preflight::raise_descriptor_limit();
    let result = match command {
        Subcommand::Lb(args) => daemon::lb::run(args),
        Subcommand::Backend(args) => daemon::backend::run(args),
        Subcommand::Reload(args) => reload::run(args),
        Subcommand::Check(args) => check::run(args),
        Subcommand::Status(args) => status::run(args),
        Subcommand::Counters(args) => counters::run(args),
        Subcommand::Capture(args) => capture::run(args),
        Subcommand::Down(args) => down::run(args),
        Subcommand::Key(KeySubcommand::New(args)) => key::create(args),
    };
    log::flush();
    result
}

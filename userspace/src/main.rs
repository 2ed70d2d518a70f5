//! The `sluice` binary: parses the command line, runs the command, prints its error.

use std::process::ExitCode;

use clap::Parser as _;
use sluice::args::Cli;
use sluice::{cli, journald};

fn main() -> ExitCode {
    let command_line = match Cli::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // clap also returns help and version as errors. If the terminal is gone, the message is
            // lost.
            if error.use_stderr() {
                cli::report(format!("sluice: {error}").trim_end());
                return ExitCode::from(2);
            }
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli::run(&command_line.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::report(&format!("{}sluice: error: {error}", journald::error_prefix()));
            ExitCode::from(error.exit_code())
        }
    }
}

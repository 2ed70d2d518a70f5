//! The `sluice` binary: reads the command line, runs the command, reports the failure.

use std::process::ExitCode;

use clap::Parser as _;
use sluice::args::Cli;
use sluice::cli;

fn main() -> ExitCode {
    let command_line = match Cli::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nothing is left to try when the terminal is gone. Help and version are clap "errors",
            // too.
            if error.use_stderr() {
                eprint!("sluice: {error}");
                return ExitCode::from(2);
            }
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli::run(&command_line.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

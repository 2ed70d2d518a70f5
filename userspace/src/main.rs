//! The `sluice` binary: reads the command line, runs the command, reports the failure.

use std::process::ExitCode;

use clap::Parser as _;
use sluice::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
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
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sluice: error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

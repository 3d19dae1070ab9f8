//! `kms`: parses the command line, runs the verb, prints the error, exits with its code. Nothing else lives here.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use kms_cli::args::Cli;
use kms_cli::context::Overrides;
use kms_cli::exit::Exit;
use kms_cli::output::Format;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) => {
            let _ = help.print();
            let exit = if help.use_stderr() { Exit::Usage } else { Exit::Success };
            return ExitCode::from(exit.code());
        }
    };
    let as_json = cli.global.output == Format::Json;
    let exit = match kms_cli::verbs::run(cli, Overrides::from_environment()) {
        Ok(()) => Exit::Success,
        Err(error) => {
            // A reader that went away is no news to tell.
            if error.exit() != Exit::BrokenPipe {
                let _ = std::io::stderr().write_all(error.text(as_json).as_bytes());
            }
            error.exit()
        }
    };
    ExitCode::from(exit.code())
}

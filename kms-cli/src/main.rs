//! `kms`: parses the command line, runs the verb, prints the error, exits with its code. Nothing else lives here.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use kms_cli::args::Cli;
use kms_cli::context::Overrides;
use kms_cli::error::CliError;
use kms_cli::exit::Exit;
use kms_cli::output::Format;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if help.use_stderr() && json_is_asked_for(std::env::args_os()) => {
            let error = CliError::Usage(match help.kind() {
                // What clap renders then is the help, which says nothing of a mistake.
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    "a command is missing: see `--help`".to_owned()
                }
                _ => first_paragraph(&help.render().to_string()),
            });
            let _ = std::io::stderr().write_all(error.text(true).as_bytes());
            return ExitCode::from(error.exit().code());
        }
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

/// Looks for `--output json` in a command line that clap does not take.
fn json_is_asked_for(args: impl Iterator<Item = OsString>) -> bool {
    let args: Vec<_> = args.collect();
    let apart =
        |pair: &[OsString]| matches!(pair, [flag, value] if flag == "--output" && value == "json");
    args.iter().any(|arg| arg == OsStr::new("--output=json")) || args.windows(2).any(apart)
}

/// Takes from clap's text what is wrong, on one line, without the usage that follows.
fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let paragraph = paragraph.strip_prefix("error: ").unwrap_or(paragraph);
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! `kms completions` and `kms man`: made from the same declarations as the help texts.

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::args::tools::{Completions, Man};
use crate::error::CliError;
use crate::output::print;

/// Writes a completion script to stdout.
pub fn completions(args: &Completions) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kms", &mut script);
    print(&script)
}

/// Writes one man page a command into a directory.
pub fn man(args: &Man) -> Result<(), CliError> {
    let directory = &args.directory;
    let failed = |cause| CliError::File { action: "write", path: directory.clone(), cause };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)
}

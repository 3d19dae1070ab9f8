//! `kms completions`, `kms man`.

use std::path::PathBuf;

use clap::Args;

/// `kms completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `kms man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Directory to write into; it is made when it is not there
    pub directory: PathBuf,
}

//! `kms hsm`, `kms completions`, `kms man`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The verbs of `kms hsm`.
#[derive(Debug, Subcommand)]
pub enum HsmCommand {
    /// Try what a token can do, with throw-away objects, and say what that means for Holdfast
    Doctor(Doctor),
}

/// `kms hsm doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The PKCS#11 module
    #[arg(long, value_name = "FILE")]
    pub module: PathBuf,
    /// Label of the token [default: the only one there is]
    #[arg(long, value_name = "LABEL")]
    pub token: Option<String>,
    /// Serial number of the token, instead of its label
    #[arg(long, value_name = "SERIAL", conflicts_with = "token")]
    pub serial: Option<String>,
    /// File that holds the user PIN, mode 0600; `-` is stdin
    #[arg(long, value_name = "FILE")]
    pub pin_file: PathBuf,
}

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

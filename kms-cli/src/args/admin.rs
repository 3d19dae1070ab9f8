//! `kms admin ...`: what operators do to a server, over its admin listener.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The verbs of `kms admin`.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Take a backup of a server's store while it serves, encrypted to an age recipient
    ///
    /// Asks the admin listener: name it with --server, or in a context. `kms-server restore` puts the backup back; `age -d` opens
    /// it, and shows rows that are sealed under the token's roots.
    Backup(Backup),
}

/// `kms admin backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// To whom it is encrypted: an X25519 recipient of `age-keygen`, never a key of the server
    #[arg(long, value_name = "age1...")]
    pub recipient: String,
    /// File to write, mode 0600; there only when it is whole
    #[arg(long = "out", id = "out", value_name = "FILE")]
    pub path: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// Show no progress
    #[arg(long)]
    pub quiet: bool,
}

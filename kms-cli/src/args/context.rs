//! `kms context ...`.

use clap::{Args, Subcommand};

/// The verbs of `kms context`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the contexts
    List,
    /// Make a context the current one
    Use(Named),
    /// Show what commands would use now
    Show,
    /// Add a context made of --server, --ca, --cert, --key-file and --tenant
    Add(Named),
}

/// A verb that takes the name of a context.
#[derive(Debug, Args)]
pub struct Named {
    /// Name of the context
    pub name: String,
}

//! `kms inventory ...`.

use clap::{Args, Subcommand};

use super::data::Output;
use crate::inventory::Form;

/// The verbs of `kms inventory`.
#[derive(Debug, Subcommand)]
pub enum InventoryCommand {
    /// Write all keys and versions of the tenant, without their material
    Export(Export),
}

/// `kms inventory export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The form
    #[arg(long, value_enum)]
    pub format: Form,
    /// Only keys that pass, as of `kms key list --filter`
    #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Where to.
    #[command(flatten)]
    pub output: Output,
}

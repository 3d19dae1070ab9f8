//! `kms alias ...`.

use clap::{Args, Subcommand};

use super::key::{List, RequestIdArg};

/// The verbs of `kms alias`.
#[derive(Debug, Subcommand)]
pub enum AliasCommand {
    /// Make an alias of a key: `kms wrap` and `kms datakey` take it in the key's place
    Create(CreateAlias),
    /// Move an alias to another key; what was wrapped before unwraps as before
    Update(UpdateAlias),
    /// Delete an alias
    Delete(DeleteAlias),
    /// Describe an alias
    Describe(DescribeAlias),
    /// List the aliases of the tenant, or those of one key
    List(ListAliases),
}

/// `kms alias create`.
#[derive(Debug, Args)]
pub struct CreateAlias {
    /// Id of the alias: a-z, 0-9, `-`, `_`, `.`
    pub alias: String,
    /// Id or name of the key that it is to point to
    #[arg(long)]
    pub key: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms alias update`.
#[derive(Debug, Args)]
pub struct UpdateAlias {
    /// Id or name of the alias
    pub alias: String,
    /// Id or name of the key that it is to point to
    #[arg(long)]
    pub key: String,
    /// Revision that the change is based on [default: the alias's present one]
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms alias delete`.
#[derive(Debug, Args)]
pub struct DeleteAlias {
    /// Id or name of the alias
    pub alias: String,
    /// Revision that the change is based on [default: the alias's present one]
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms alias describe`.
#[derive(Debug, Args)]
pub struct DescribeAlias {
    /// Id or name of the alias
    pub alias: String,
}

/// `kms alias list`.
#[derive(Debug, Args)]
pub struct ListAliases {
    /// Only those that point to this key, by id or name
    #[arg(long)]
    pub key: Option<String>,
    /// How many, and from where.
    #[command(flatten)]
    pub list: List,
}

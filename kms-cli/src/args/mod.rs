//! The command line: nouns, then verbs. Secrets never stand in argv.
//!
//! Only declarations live here; each verb's code is in [`crate::verbs`]. Help texts are pinned by snapshots, so a change
//! here shows as one there.

pub mod admin;
pub mod alias;
pub mod bench;
pub mod context;
pub mod data;
pub mod import;
pub mod inventory;
pub mod key;
pub mod list;
pub mod rewrap_file;
pub mod tools;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::backup::command::{AgeCommand, OpenArgs, ResealArgs, SealArgs};
use crate::context::Overrides;
use crate::output::Format;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "kms",
    version,
    about = "Client of Holdfast, the HSM-backed key management service",
    max_term_width = 100,
    after_help = "See `kms help COMMAND`. Exit codes and JSON forms: `kms --help` and docs/cli.md.",
    after_long_help = crate::exit::table(),
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The noun, or the verb that needs none.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// File of named contexts [default: $KMS_CONFIG, else ~/.config/holdfast/cli.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Context to use [default: $KMS_CONTEXT, else the file's current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Server, instead of the context's
    #[arg(long, global = true, value_name = "https://HOST:PORT")]
    pub server: Option<String>,
    /// PEM file of the server's CAs, instead of the context's
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// PEM file of the client certificate, instead of the context's
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key (mode 0600), instead of the context's
    #[arg(long, global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Tenant that bare key ids belong to, instead of the context's
    #[arg(long, global = true, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// How long one call may take, retries included [default: 30s]
    #[arg(long, global = true, value_name = "PERIOD", value_parser = crate::input::period)]
    pub timeout: Option<Duration>,
    /// How results and errors are shown
    #[arg(
        long = "output",
        id = "output-format",
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub output: Format,
}

impl Global {
    /// Lays the flags over what the environment says.
    pub fn overrides(&self, environment: Overrides) -> Overrides {
        Overrides {
            config_is_default: self.config.is_none() && environment.config_is_default,
            config: self.config.clone().or(environment.config),
            context: self.context.clone().or(environment.context),
            server: self.server.clone(),
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key_file.clone(),
            tenant: self.tenant.clone(),
            timeout: self.timeout,
        }
    }
}

/// The nouns, and the verbs that need none.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, describe and roll over keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Aliases: names that stand for a key, and can be moved to another one
    #[command(subcommand)]
    Alias(alias::AliasCommand),
    /// Import jobs: key pairs of the HSM, to which you seal a key that you bring
    #[command(subcommand)]
    ImportJob(import::ImportJobCommand),
    /// Inventories: what keys and versions there are, for people, machines and auditors
    #[command(subcommand)]
    Inventory(inventory::InventoryCommand),
    /// Wrap up to 64 KiB under a key
    Wrap(data::Wrap),
    /// Unwrap what `wrap` or `datakey` made
    Unwrap(data::Unwrap),
    /// Re-protect a ciphertext under its key's current version, without seeing its plaintext
    Rewrap(data::Rewrap),
    /// Rewrap the ciphertexts in a file of any size; goes on where it was cut
    RewrapFile(rewrap_file::RewrapFile),
    /// Draw a new data key in the HSM, in the clear and wrapped
    Datakey(data::DataKey),
    /// Say what a ciphertext is, without a server
    Inspect(data::Inspect),
    /// Draw random bytes in the HSM
    Random(data::Random),
    /// Say whether the server is up and serving
    Health,
    /// Seal a stream into an age file that the KMS opens
    Seal(SealArgs),
    /// Open a sealed file
    Open(OpenArgs),
    /// Move sealed files to their key's current version, in place
    Reseal(ResealArgs),
    /// Print recipients and identities for stock `age`
    #[command(subcommand)]
    Age(AgeCommand),
    /// Look after a server: take backups
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Examine PKCS#11 tokens
    #[command(subcommand)]
    Hsm(tools::HsmCommand),
    /// Put load on a server and measure it
    Bench(bench::Bench),
    /// Choose and add contexts: which server, as whom
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Write a shell's completion script to stdout
    Completions(tools::Completions),
    /// Write the man pages into a directory
    Man(tools::Man),
}

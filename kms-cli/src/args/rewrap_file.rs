//! `kms rewrap-file`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::data::Bind;

/// How the ciphertexts stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// One text form (`hfenv1:`) a line
    Lines,
    /// One JSON object a line; --field says where in it
    Jsonl,
    /// RFC 4180; --column says where in each record
    Csv,
}

/// `kms rewrap-file`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(group(ArgGroup::new("place").args(["out", "in_place", "dry_run"]).required(true)))]
pub struct RewrapFile {
    /// Id or name of the key that the ciphertexts must be under
    #[arg(long, required_unless_present = "dry_run")]
    pub key: Option<String>,
    /// File to read, of any size
    #[arg(long = "in", id = "in", value_name = "FILE")]
    pub input: PathBuf,
    /// File to write; it appears when all is done
    #[arg(long = "out", id = "out", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file that is read, once all is done
    #[arg(long)]
    pub in_place: bool,
    /// Write nothing and call no server: check the file, and count by key and version
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing file
    #[arg(long, requires = "out")]
    pub force: bool,
    /// How the ciphertexts stand in the file
    #[arg(long, value_enum)]
    pub format: FileFormat,
    /// Field of a JSON line that holds the ciphertext: `name`, or `outer.name`; a dot in a name is `\.`
    #[arg(long, value_name = "NAME", required_if_eq("format", "jsonl"))]
    pub field: Option<String>,
    /// Column of a CSV file that holds the ciphertext: its name in the header, or its number from 1
    #[arg(long, value_name = "NAME|N", required_if_eq("format", "csv"))]
    pub column: Option<String>,
    /// The first record of the CSV file is data; --column is a number
    #[arg(long)]
    pub no_header: bool,
    /// The encryption context of every ciphertext.
    #[command(flatten)]
    pub bind: Bind,
    /// Copy items that fail as they are, list them, and end with 12
    #[arg(long)]
    pub keep_going: bool,
    /// Go on from a checkpoint, which must be there [default: go on if there is one]
    #[arg(long)]
    pub resume: bool,
    /// Drop a checkpoint and what was done before it
    #[arg(long, conflicts_with_all = ["resume", "dry_run"])]
    pub restart: bool,
    /// Items of each call, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 500,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub batch_size: u16,
    /// Show no progress bar
    #[arg(long)]
    pub quiet: bool,
}

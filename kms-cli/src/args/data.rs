//! `kms wrap|unwrap|rewrap|datakey|inspect|random`: bytes in, bytes out.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::input::pair;

/// What a ciphertext is bound to besides its key.
#[derive(Clone, Debug, Args)]
pub struct Bind {
    /// A pair of the encryption context, which must be the same at unwrapping; may be repeated
    #[arg(long = "bind", value_name = "KEY=VALUE", value_parser = pair)]
    pub pairs: Vec<(String, String)>,
}

/// Where input comes from.
#[derive(Clone, Debug, Args)]
pub struct Input {
    /// File to read; `-` is stdin [default: stdin, unless it is a terminal]
    #[arg(long = "in", id = "in", value_name = "FILE")]
    pub path: Option<PathBuf>,
}

/// Where output goes.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// File to write, mode 0600; `-` is stdout, a terminal too [default: stdout]
    #[arg(long = "out", id = "out", value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
}

/// The form in which a ciphertext is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Text on a terminal, else binary
    #[default]
    Auto,
    /// `hfenv1:` and base64url
    Text,
    /// The envelope's bytes
    Binary,
}

/// `kms wrap`.
#[derive(Debug, Args)]
pub struct Wrap {
    /// Id or name of the key, or `aliases/ID`; with `/versions/N` it pins an active version
    #[arg(long)]
    pub key: String,
    /// The plaintext.
    #[command(flatten)]
    pub input: Input,
    /// The ciphertext.
    #[command(flatten)]
    pub output: Output,
    /// Form of the ciphertext
    #[arg(long, value_enum, default_value_t)]
    pub form: Form,
    /// The encryption context.
    #[command(flatten)]
    pub bind: Bind,
}

/// `kms unwrap`.
#[derive(Debug, Args)]
pub struct Unwrap {
    /// Id or name of the key that the ciphertext must be under
    #[arg(long)]
    pub key: String,
    /// The ciphertext, in either form.
    #[command(flatten)]
    pub input: Input,
    /// The plaintext.
    #[command(flatten)]
    pub output: Output,
    /// The encryption context.
    #[command(flatten)]
    pub bind: Bind,
}

/// `kms rewrap`.
#[derive(Debug, Args)]
pub struct Rewrap {
    /// Id or name of the key that the ciphertext must be under
    #[arg(long)]
    pub key: String,
    /// The ciphertext, in either form.
    #[command(flatten)]
    pub input: Input,
    /// The new ciphertext.
    #[command(flatten)]
    pub output: Output,
    /// Form of the new ciphertext
    #[arg(long, value_enum, default_value_t)]
    pub form: Form,
    /// The encryption context.
    #[command(flatten)]
    pub bind: Bind,
}

/// `kms datakey`.
#[derive(Debug, Args)]
pub struct DataKey {
    /// Id or name of the key that wraps it, or `aliases/ID`
    #[arg(long)]
    pub key: String,
    /// Length of the data key in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(16..=1024))]
    pub length: u32,
    /// File for the data key in the clear, mode 0600; `-` is stdout
    #[arg(long, value_name = "FILE", required_unless_present = "without_plaintext")]
    pub plaintext_out: Option<PathBuf>,
    /// Ask for the wrapped copy only
    #[arg(long, conflicts_with = "plaintext_out")]
    pub without_plaintext: bool,
    /// The wrapped copy.
    #[command(flatten)]
    pub output: Output,
    /// Form of the wrapped copy
    #[arg(long, value_enum, default_value_t)]
    pub form: Form,
    /// The encryption context.
    #[command(flatten)]
    pub bind: Bind,
}

/// `kms inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The ciphertext, in either form, or a sealed file.
    #[command(flatten)]
    pub input: Input,
}

/// `kms random`.
#[derive(Debug, Args)]
pub struct Random {
    /// How many bytes
    #[arg(value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub length: u32,
    /// The bytes.
    #[command(flatten)]
    pub output: Output,
}

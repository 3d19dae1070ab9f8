//! `kms import-job ...`, `kms key import` and `kms key import-version`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kms_core::clock::Timestamp;

use super::key::{About, RequestIdArg};
use crate::fingerprint::{Fingerprint, fingerprint};
use crate::input::{period, time};

/// The verbs of `kms import-job`.
#[derive(Debug, Subcommand)]
pub enum ImportJobCommand {
    /// Have the HSM make a key pair, to which a key can be sealed once
    Create(CreateJob),
    /// Describe an import job, or write its public key into a file
    Describe(DescribeJob),
    /// List the open import jobs of the tenant
    List,
    /// Give an import job up: its private key is destroyed
    Cancel(CancelJob),
}

/// How a key is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// RSA-OAEP with SHA-256 of the key
    #[default]
    RsaOaepSha256,
    /// RSA-OAEP with SHA-1 of the key; the server's configuration must allow it
    RsaOaepSha1,
    /// RSA-OAEP with SHA-256 of an AES key, and AES-KWP of the key under that one
    RsaOaepSha256AesKwp,
    /// RSA-OAEP with SHA-1 of an AES key, and AES-KWP of the key under that one; the server's configuration must allow it
    RsaOaepSha1AesKwp,
}

/// The size of an RSA key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RsaBits {
    /// 3072 bits
    #[default]
    #[value(name = "3072")]
    Bits3072,
    /// 4096 bits
    #[value(name = "4096")]
    Bits4096,
}

/// Where the public key goes.
#[derive(Debug, Args)]
pub struct PublicKeyOut {
    /// Write the public key there: SubjectPublicKeyInfo, DER
    #[arg(long, value_name = "FILE")]
    pub public_key_out: Option<PathBuf>,
    /// Replace the file when it is there
    #[arg(long, requires = "public_key_out")]
    pub force: bool,
}

/// `kms import-job create`.
#[derive(Debug, Args)]
pub struct CreateJob {
    /// Id or name of the key: one that is not there is made, one that is there gets a version
    pub key: String,
    /// How the key will be sealed
    #[arg(long, value_enum, default_value_t)]
    pub method: Method,
    /// Size of the RSA key
    #[arg(long, value_name = "BITS", value_enum, default_value_t)]
    pub rsa_bits: RsaBits,
    /// How long it can be used, 5m to 72h
    #[arg(long, value_name = "PERIOD", value_parser = period, default_value = "24h")]
    pub lifetime: Duration,
    /// The public key.
    #[command(flatten)]
    pub public_key: PublicKeyOut,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms import-job describe`.
#[derive(Debug, Args)]
pub struct DescribeJob {
    /// Name of the job: KEY/importJobs/ID, or its full name
    pub job: String,
    /// The public key.
    #[command(flatten)]
    pub public_key: PublicKeyOut,
}

/// `kms import-job cancel`.
#[derive(Debug, Args)]
pub struct CancelJob {
    /// Name of the job: KEY/importJobs/ID, or its full name
    pub job: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// The key that is brought: in the clear, to be sealed here, or sealed elsewhere.
#[derive(Debug, Args)]
pub struct Material {
    /// Read the key in the clear there, 32 bytes, and seal it here; `-` is stdin, `/dev/fd/N` a descriptor [default: stdin]
    #[arg(long = "in", value_name = "FILE", conflicts_with = "sealed")]
    pub input: Option<PathBuf>,
    /// Read the sealed key there, as `openssl` makes it (docs/formats.md, "Import")
    #[arg(long, value_name = "FILE", requires = "check")]
    pub sealed: Option<PathBuf>,
    /// Read its check value there
    #[arg(long, value_name = "FILE", requires = "sealed")]
    pub check: Option<PathBuf>,
    /// Seal the key to the public key of this fingerprint only: its SHA-256 in hexadecimal, had by another way than this server
    #[arg(long, value_name = "HEX", value_parser = fingerprint, conflicts_with = "sealed")]
    pub public_key_sha256: Option<Fingerprint>,
}

/// `kms key import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Name of the import job: KEY/importJobs/ID, or its full name; the key is its
    pub job: String,
    /// The key.
    #[command(flatten)]
    pub material: Material,
    /// What it is.
    #[command(flatten)]
    pub about: About,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key import-version`.
#[derive(Debug, Args)]
pub struct ImportVersion {
    /// Name of the import job: KEY/importJobs/ID, or its full name; the key is its
    pub job: String,
    /// The key material.
    #[command(flatten)]
    pub material: Material,
    /// When it is to be activated, RFC 3339, within 10 years [default: by hand, or with the next rotation]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub activate_at: Option<Timestamp>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

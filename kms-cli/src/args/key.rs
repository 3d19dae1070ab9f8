//! `kms key ...`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kms_core::clock::Timestamp;

use crate::input::{pair, period, time};

/// The verbs of `kms key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key with version 1
    Create(Create),
    /// Make a key of one that you bring, sealed to an import job
    Import(super::import::Import),
    /// Stage a version of key material that you bring, sealed to an import job
    ImportVersion(super::import::ImportVersion),
    /// List the keys of the tenant: all, or those that pass a filter
    List(super::list::ListKeys),
    /// Describe a key, or one version of it
    Describe(Describe),
    /// List the versions of a key, oldest first
    Versions(Versions),
    /// Roll a key over: a new version becomes primary, old ones still unwrap
    Rotate(Rotate),
    /// Make the next version and leave it unused until it is activated, or the key is rotated
    Stage(Stage),
    /// Put a staged version in the primary's place
    Activate(ChangeState),
    /// Give a staged version up: it is destroyed at once
    Discard(ChangeState),
    /// Change what is said about a key
    Update(Update),
    /// Disable a key: none of its versions wraps or unwraps until it is enabled
    Disable(ChangeKeyState),
    /// Enable a disabled key
    Enable(ChangeKeyState),
    /// Suspend a version: it neither wraps nor unwraps until resumed
    Suspend(ChangeState),
    /// Resume a suspended version
    Resume(ChangeState),
    /// Deactivate a version that is not the primary: it still unwraps, and never wraps again
    Deactivate(ChangeState),
    /// Mark a version compromised, for ever; a primary is replaced by a new version at once
    Compromise(ChangeState),
    /// Plan the destruction of a deactivated or compromised version, or of a whole disabled key
    ScheduleDestruction(ScheduleDestruction),
    /// Give a planned destruction up
    CancelDestruction(CancelDestruction),
    /// Consumers: who depends on a key; no version in use is destroyed as long as there is one
    #[command(subcommand)]
    Consumer(ConsumerCommand),
    /// Show how a version was used, and whether it can be retired
    Usage(Usage),
    /// Rotation by period: set it, or show when it is due
    #[command(subcommand)]
    Rotation(RotationCommand),
    /// Show what happened to a key and its versions, oldest first
    History(Versions),
}

/// Where key material lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Protection {
    /// Stored wrapped under the HSM's root key, used only inside the HSM
    #[default]
    HsmWrapped,
    /// An object of its own in the HSM's token
    HsmResident,
}

/// How sensitive the data under a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sensitivity {
    /// Low
    Low,
    /// Medium
    Medium,
    /// High
    High,
}

/// Makes a mutation safe to repeat.
#[derive(Clone, Debug, Args)]
pub struct RequestIdArg {
    /// Makes a repeat of this command safe: the server does it once [default: a new one]
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<uuid::Uuid>,
}

/// `kms key create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Id of the new key, or its full name
    pub key: String,
    /// What it is.
    #[command(flatten)]
    pub about: About,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// What is said about a new key.
#[derive(Debug, Args)]
pub struct About {
    /// Who answers for the key
    #[arg(long, value_name = "TEXT")]
    pub owner: String,
    /// How sensitive the data under it is
    #[arg(long, value_enum)]
    pub sensitivity: Sensitivity,
    /// What the key is for, in words
    #[arg(long, value_name = "TEXT")]
    pub usage: String,
    /// How long a version may protect new data, 1h to 10y
    #[arg(long, value_name = "PERIOD", value_parser = period)]
    pub cryptoperiod: Duration,
    /// How long a version is to unwrap, up to 30y [default: the cryptoperiod and 3 years]
    #[arg(long, value_name = "PERIOD", value_parser = period)]
    pub recipient_usage_period: Option<Duration>,
    /// Rotate by itself, this often: 1h to the cryptoperiod
    #[arg(long, value_name = "PERIOD", value_parser = period)]
    pub rotation_period: Option<Duration>,
    /// Where the key material lives
    #[arg(long, value_enum, default_value_t)]
    pub protection: Protection,
    /// I know that a key of protection hsm-resident has no backup: what it protects is lost with the token
    #[arg(long)]
    pub acknowledge_no_backup: bool,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// How much of a list.
#[derive(Debug, Args)]
pub struct List {
    /// Show at most this many
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub limit: u32,
    /// Go on where an earlier list ended (`next_page_token` of its JSON form)
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    pub page_token: String,
}

/// A verb about one whole key.
#[derive(Debug, Args)]
pub struct OfKey {
    /// Id or name of the key
    pub key: String,
}

/// `kms key describe`.
#[derive(Debug, Args)]
pub struct Describe {
    /// Id or name of the key, or `aliases/ID`; with `/versions/N` of one version
    pub key: String,
}

/// `kms key versions`.
#[derive(Debug, Args)]
pub struct Versions {
    /// Id or name of the key
    pub key: String,
    /// How many, and from where.
    #[command(flatten)]
    pub list: List,
}

/// `kms key rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// Id or name of the key
    pub key: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key update`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct Update {
    /// Id or name of the key
    pub key: String,
    /// New owner
    #[arg(long, value_name = "TEXT", group = "change")]
    pub owner: Option<String>,
    /// New sensitivity
    #[arg(long, value_enum, group = "change")]
    pub sensitivity: Option<Sensitivity>,
    /// New usage text
    #[arg(long, value_name = "TEXT", group = "change")]
    pub usage: Option<String>,
    /// New cryptoperiod, 1h to 10y
    #[arg(long, value_name = "PERIOD", value_parser = period, group = "change")]
    pub cryptoperiod: Option<Duration>,
    /// New recipient-usage period, up to 30y
    #[arg(long, value_name = "PERIOD", value_parser = period, group = "change")]
    pub recipient_usage_period: Option<Duration>,
    /// New label; all of them replace all old ones; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair, group = "change")]
    pub labels: Vec<(String, String)>,
    /// Remove all labels
    #[arg(long, conflicts_with = "labels", group = "change")]
    pub no_labels: bool,
    /// Lower the sensitivity also while the destruction of a version is planned; takes a permission of its own
    #[arg(long, requires = "sensitivity")]
    pub allow_recent_use: bool,
    /// Refuse when the key has another revision [default: the one it has now]
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key stage`.
#[derive(Debug, Args)]
pub struct Stage {
    /// Id or name of the key
    pub key: String,
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

/// `kms key disable` and `enable`.
#[derive(Debug, Args)]
pub struct ChangeKeyState {
    /// Id or name of the key
    pub key: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key activate`, `discard`, `suspend`, `resume`, `deactivate` and `compromise`.
#[derive(Debug, Args)]
pub struct ChangeState {
    /// Id or name of the key; with `/versions/N` of the version
    pub key: String,
    /// Number of the version, when KEY does not have it
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
    pub number: Option<u32>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key schedule-destruction`.
#[derive(Debug, Args)]
pub struct ScheduleDestruction {
    /// The version, and why.
    #[command(flatten)]
    pub change: ChangeState,
    /// The key with all its versions; it must be disabled
    #[arg(long, conflicts_with = "number")]
    pub whole_key: bool,
    /// How long until then, 7d to 365d: it can be cancelled meanwhile
    #[arg(long, value_name = "PERIOD", value_parser = period, default_value = "30d")]
    pub window: Duration,
    /// Also when it was used within the last 30 days; takes a permission of its own
    #[arg(long)]
    pub allow_recent_use: bool,
    /// Also when the key has consumers; takes a permission of its own
    #[arg(long)]
    pub allow_consumers: bool,
}

/// `kms key cancel-destruction`.
#[derive(Debug, Args)]
pub struct CancelDestruction {
    /// The version, and why.
    #[command(flatten)]
    pub change: ChangeState,
    /// The destruction of the whole key; it is disabled then
    #[arg(long, conflicts_with = "number")]
    pub whole_key: bool,
}

/// The verbs of `kms key consumer`.
#[derive(Debug, Subcommand)]
pub enum ConsumerCommand {
    /// Register a consumer of a key
    Add(AddConsumer),
    /// List the consumers of a key
    List(OfKey),
    /// Take a consumer away
    Remove(RemoveConsumer),
}

/// `kms key consumer add`.
#[derive(Debug, Args)]
pub struct AddConsumer {
    /// Id or name of the key
    pub key: String,
    /// Id of the consumer: a-z, 0-9, `-`, `_`, `.`
    pub consumer: String,
    /// Who that is, and whom to ask
    #[arg(long, value_name = "TEXT")]
    pub description: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key consumer remove`.
#[derive(Debug, Args)]
pub struct RemoveConsumer {
    /// Id or name of the key
    pub key: String,
    /// Id of the consumer
    pub consumer: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// The verbs of `kms key rotation`.
#[derive(Debug, Subcommand)]
pub enum RotationCommand {
    /// Have a key rotated by period, or end that
    Set(SetRotation),
    /// Show the period, and when the primary gives way
    Show(OfKey),
}

/// `kms key rotation set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rotation").required(true))]
pub struct SetRotation {
    /// Id or name of the key
    pub key: String,
    /// How long a version is the primary, 1h to the cryptoperiod; counts from when the present one was made
    #[arg(long, value_name = "PERIOD", value_parser = period, group = "rotation")]
    pub period: Option<Duration>,
    /// End rotation by period
    #[arg(long, group = "rotation")]
    pub off: bool,
    /// Refuse when the key has another revision [default: the one it has now]
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// The request's id.
    #[command(flatten)]
    pub request_id: RequestIdArg,
}

/// `kms key usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// Id or name of the key; with `/versions/N` of the version
    pub key: String,
    /// Number of the version, when KEY does not have it
    #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
    pub number: Option<u32>,
}

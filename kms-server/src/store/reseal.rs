//! Rows that change from one root generation to another: nothing of what they say changes, only what seals them.
//!
//! A row keeps its revision. It is replaced by its MAC: whoever changed it meanwhile gave it another.

use std::collections::BTreeMap;

use kms_core::alias::AliasRow;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{KeyUid, RequestId};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, RowMac, Sealed, VersionRow};
use kms_core::lifecycle::HistoryRow;
use kms_core::manifest::Manifest;
use kms_core::name::KeyName;
use kms_core::usage::UsageRow;

use super::{ListPosition, RequestRecord};

/// A row of whichever table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedRow {
    /// The key itself.
    Key(Sealed<KeyRow>),
    /// A version; its material changes, too.
    Version(Sealed<VersionRow>),
    /// An entry of its history.
    History(Sealed<HistoryRow>),
    /// A consumer.
    Consumer(Sealed<ConsumerRow>),
    /// An alias that points to it.
    Alias(Sealed<AliasRow>),
    /// An import job.
    ImportJob(Sealed<ImportJobRow>),
    /// A counter of invocations.
    Counter(Sealed<CounterRow>),
    /// How a version was used.
    Usage(Sealed<UsageRow>),
    /// A remembered request.
    Request(Sealed<RequestRecord>),
    /// The manifest of a tenant of which nothing else is left to seal: otherwise it changes with its rows.
    Manifest(Sealed<Manifest>),
}

impl SealedRow {
    /// Returns whether the manifest of the tenant covers it.
    pub const fn is_in_manifest(&self) -> bool {
        match self {
            Self::Key(_)
            | Self::Version(_)
            | Self::History(_)
            | Self::Consumer(_)
            | Self::Alias(_)
            | Self::ImportJob(_) => true,
            Self::Counter(_) | Self::Usage(_) | Self::Request(_) | Self::Manifest(_) => false,
        }
    }

    /// Returns the MAC.
    pub const fn mac(&self) -> RowMac {
        match self {
            Self::Key(row) => row.mac,
            Self::Version(row) => row.mac,
            Self::History(row) => row.mac,
            Self::Consumer(row) => row.mac,
            Self::Alias(row) => row.mac,
            Self::ImportJob(row) => row.mac,
            Self::Counter(row) => row.mac,
            Self::Usage(row) => row.mac,
            Self::Request(row) => row.mac,
            Self::Manifest(row) => row.mac,
        }
    }

    /// Returns whose row it is; `None` of what is of no key.
    pub const fn key_uid(&self) -> Option<KeyUid> {
        match self {
            Self::Key(row) => Some(row.row.uid),
            Self::Version(row) => Some(row.row.key_uid),
            Self::History(row) => Some(row.row.key_uid),
            Self::Consumer(row) => Some(row.row.key_uid),
            Self::Alias(row) => Some(row.row.key_uid),
            Self::ImportJob(row) => Some(row.row.key_uid),
            Self::Counter(row) => Some(row.row.key_uid),
            Self::Usage(row) => Some(row.row.key_uid),
            Self::Request(_) | Self::Manifest(_) => None,
        }
    }
}

/// A row that is sealed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resealed {
    /// The MAC that it has now.
    pub expected: RowMac,
    /// What it becomes.
    pub row: SealedRow,
}

/// How much of a tenant's rows is looked at in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsLimit {
    /// Keys looked at, whether they have such rows or not.
    pub keys: u32,
    /// Rows returned; the rest of a key's rows comes with the next call.
    pub rows: u32,
}

/// Rows of a tenant that are sealed under an older generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldRows {
    /// The rows, those of one key together.
    pub rows: Vec<SealedRow>,
    /// Rows that cannot be read.
    pub damaged: usize,
    /// Keys that were looked at.
    pub keys: u32,
    /// The names of those of which there are rows.
    pub names: BTreeMap<KeyUid, KeyName>,
    /// The last key all of whose rows were looked at; `None` when there was none.
    pub whole: Option<ListPosition>,
    /// The key of which there may be more rows than the limit.
    pub cut: Option<ListPosition>,
}

/// Where a list of requests goes on.
pub type RequestPosition = (String, RequestId);

/// How many rows are sealed under an older generation, by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OldCounts {
    /// Keys.
    pub keys: u64,
    /// Versions, whose material may be wrapped under the older root.
    pub versions: u64,
    /// Entries of histories.
    pub history: u64,
    /// Consumers.
    pub consumers: u64,
    /// Aliases.
    pub aliases: u64,
    /// Import jobs.
    pub import_jobs: u64,
    /// Counters of invocations.
    pub counters: u64,
    /// Usage rows.
    pub usage: u64,
    /// Manifests.
    pub manifests: u64,
    /// Remembered requests.
    pub requests: u64,
    /// Open intents.
    pub intents: u64,
}

impl OldCounts {
    /// Returns the sum.
    pub const fn total(&self) -> u64 {
        let Self { keys, versions, history, consumers, counters, .. } = *self;
        let Self { aliases, import_jobs, usage, manifests, requests, intents, .. } = *self;
        keys + versions
            + history
            + consumers
            + aliases
            + import_jobs
            + counters
            + usage
            + manifests
            + requests
            + intents
    }
}

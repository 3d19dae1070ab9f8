//! The results that are shown: their JSON fields are the documented interface (docs/cli.md).

use std::collections::BTreeMap;

use comfy_table::Table;
use kms_core::clock::Timestamp;
use kms_proto::v1;
use serde::Serialize;

use super::{View, plain_table};
use crate::input::period_text;
use crate::terminal::harmless;

/// A key, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// Name.
    pub name: String,
    /// Immutable uid.
    pub uid: String,
    /// Purpose.
    pub purpose: &'static str,
    /// Where its material lives.
    pub protection: &'static str,
    /// Who answers for it.
    pub owner: String,
    /// Sensitivity.
    pub sensitivity: &'static str,
    /// What it is for.
    pub usage: String,
    /// How long a version may protect new data, in seconds.
    pub cryptoperiod_seconds: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created, RFC 3339.
    pub create_time: String,
    /// When it was changed last, RFC 3339.
    pub update_time: String,
    /// Revision.
    pub revision: u64,
    /// Number of the primary version; 0 when none may protect.
    pub primary_version: u32,
    /// How many versions there are.
    pub version_count: u32,
}

impl From<v1::Key> for KeyView {
    fn from(key: v1::Key) -> Self {
        let (purpose, protection, sensitivity) =
            (key.purpose(), key.protection(), key.sensitivity());
        let v1::Key {
            name,
            uid,
            purpose: _,
            protection: _,
            owner,
            sensitivity: _,
            usage,
            cryptoperiod,
            labels,
            create_time,
            update_time,
            revision,
            primary_version,
            version_count,
        } = key;
        Self {
            name,
            uid,
            purpose: purpose.as_str_name(),
            protection: protection.as_str_name(),
            owner,
            sensitivity: sensitivity.as_str_name(),
            usage,
            cryptoperiod_seconds: cryptoperiod.map_or(0, |period| period.seconds),
            labels: labels.into_iter().collect(),
            create_time: time_text(create_time.as_ref()),
            update_time: time_text(update_time.as_ref()),
            revision,
            primary_version,
            version_count,
        }
    }
}

impl View for KeyView {
    fn table(&self) -> Table {
        let period = u64::try_from(self.cryptoperiod_seconds).unwrap_or_default();
        let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
        facts(&[
            ("name", self.name.clone()),
            ("uid", self.uid.clone()),
            ("purpose", self.purpose.into()),
            ("protection", self.protection.into()),
            ("owner", self.owner.clone()),
            ("sensitivity", self.sensitivity.into()),
            ("usage", self.usage.clone()),
            ("cryptoperiod", period_text(std::time::Duration::from_secs(period))),
            ("labels", labels.collect::<Vec<_>>().join(" ")),
            ("created", self.create_time.clone()),
            ("updated", self.update_time.clone()),
            ("revision", self.revision.to_string()),
            ("primary version", self.primary_version.to_string()),
            ("versions", self.version_count.to_string()),
        ])
    }
}

/// A version, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionView {
    /// Name.
    pub name: String,
    /// Number.
    pub version: u32,
    /// State.
    pub state: &'static str,
    /// True for the one that protects.
    pub primary: bool,
    /// When it was generated, RFC 3339.
    pub create_time: String,
    /// When its state changed last, RFC 3339.
    pub state_time: String,
    /// Why its state changed last.
    pub state_reason: String,
    /// Who changed it last.
    pub state_actor: String,
    /// How many invocations are accounted, leased blocks included.
    pub invocation_count: u64,
    /// Revision.
    pub revision: u64,
    /// Generation of the root that wraps it.
    pub root_generation: u32,
}

impl From<v1::KeyVersion> for VersionView {
    fn from(version: v1::KeyVersion) -> Self {
        let state = version.state();
        let v1::KeyVersion {
            name,
            version,
            state: _,
            primary,
            create_time,
            state_time,
            state_reason,
            state_actor,
            invocation_count,
            revision,
            root_generation,
        } = version;
        Self {
            name,
            version,
            state: state.as_str_name(),
            primary,
            create_time: time_text(create_time.as_ref()),
            state_time: time_text(state_time.as_ref()),
            state_reason,
            state_actor,
            invocation_count,
            revision,
            root_generation,
        }
    }
}

impl View for VersionView {
    fn table(&self) -> Table {
        facts(&[
            ("name", self.name.clone()),
            ("state", self.state.into()),
            ("primary", yes_no(self.primary).into()),
            ("created", self.create_time.clone()),
            ("state since", self.state_time.clone()),
            ("state reason", self.state_reason.clone()),
            ("state actor", self.state_actor.clone()),
            ("invocations", self.invocation_count.to_string()),
            ("revision", self.revision.to_string()),
            ("root generation", self.root_generation.to_string()),
        ])
    }
}

/// A list of keys.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KeysView {
    /// The keys, oldest first.
    pub keys: Vec<KeyView>,
    /// Where to go on; empty at the end.
    pub next_page_token: String,
}

impl View for KeysView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["KEY", "PRIMARY", "VERSIONS", "PROTECTION", "SENSITIVITY", "OWNER"]);
        for key in &self.keys {
            table.add_row([
                harmless(&key.name),
                key.primary_version.to_string(),
                key.version_count.to_string(),
                key.protection.into(),
                key.sensitivity.into(),
                harmless(&key.owner),
            ]);
        }
        table
    }
}

/// A list of versions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VersionsView {
    /// The versions, oldest first.
    pub versions: Vec<VersionView>,
    /// Where to go on; empty at the end.
    pub next_page_token: String,
}

impl View for VersionsView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["VERSION", "STATE", "PRIMARY", "CREATED", "INVOCATIONS", "REASON"]);
        for version in &self.versions {
            table.add_row([
                version.version.to_string(),
                version.state.into(),
                yes_no(version.primary).into(),
                version.create_time.clone(),
                version.invocation_count.to_string(),
                harmless(&version.state_reason),
            ]);
        }
        table
    }
}

/// A rollover.
#[derive(Clone, Debug, Serialize)]
pub struct RotationView {
    /// The key, with its new primary.
    pub key: KeyView,
    /// The new version.
    pub version: VersionView,
}

impl View for RotationView {
    fn table(&self) -> Table {
        self.version.table()
    }
}

/// Draws names and values, one pair a line; values from elsewhere are made harmless.
pub fn facts(facts: &[(&str, String)]) -> Table {
    let mut table = plain_table();
    for (name, value) in facts {
        table.add_row([(*name).to_owned(), harmless(value)]);
    }
    table
}

/// Says a truth in a word.
pub const fn yes_no(truth: bool) -> &'static str {
    if truth { "yes" } else { "no" }
}

fn time_text(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(String::new, |time| {
        let unix_ms = time.seconds.saturating_mul(1000) + i64::from(time.nanos / 1_000_000);
        Timestamp::from_unix_ms(unix_ms).to_string()
    })
}

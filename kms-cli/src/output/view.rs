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
    /// Whether it may be used at all.
    pub state: &'static str,
    /// Who answers for it.
    pub owner: String,
    /// Sensitivity.
    pub sensitivity: &'static str,
    /// What it is for.
    pub usage: String,
    /// How long a version may protect new data, in seconds.
    pub cryptoperiod_seconds: i64,
    /// How long a version is to process what it protected, in seconds.
    pub recipient_usage_period_seconds: i64,
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
    /// How many consumers are registered.
    pub consumer_count: u32,
    /// How long a version is the primary, in seconds; 0 without rotation by period.
    pub rotation_period_seconds: i64,
    /// When the primary gives way, RFC 3339; empty without rotation by period.
    pub next_rotation_time: String,
    /// From when on it may be destroyed as a whole, RFC 3339; empty unless that is planned.
    pub destroy_time: String,
    /// What that was planned in spite of: `consumers`, `recent use`.
    pub destroy_despite: Vec<&'static str>,
    /// Whether its versions are being destroyed: that cannot be cancelled.
    pub destruction_begun: bool,
}

impl From<v1::Key> for KeyView {
    fn from(key: v1::Key) -> Self {
        let (purpose, protection, sensitivity) =
            (key.purpose(), key.protection(), key.sensitivity());
        let state = key_state_name(key.state());
        let v1::Key {
            name,
            uid,
            purpose: _,
            protection: _,
            owner,
            sensitivity: _,
            usage,
            cryptoperiod,
            recipient_usage_period,
            labels,
            create_time,
            update_time,
            revision,
            primary_version,
            version_count,
            rotation_period,
            next_rotation_time,
            state: _,
            consumer_count,
            destroy_time,
            destroy_despite_consumers,
            destroy_despite_recent_use,
            destruction_begun,
        } = key;
        Self {
            name,
            uid,
            purpose: purpose.as_str_name(),
            protection: protection.as_str_name(),
            state,
            owner,
            sensitivity: sensitivity.as_str_name(),
            usage,
            cryptoperiod_seconds: cryptoperiod.map_or(0, |period| period.seconds),
            recipient_usage_period_seconds: recipient_usage_period
                .map_or(0, |period| period.seconds),
            labels: labels.into_iter().collect(),
            create_time: time_text(create_time.as_ref()),
            update_time: time_text(update_time.as_ref()),
            revision,
            primary_version,
            version_count,
            consumer_count,
            rotation_period_seconds: rotation_period.map_or(0, |period| period.seconds),
            next_rotation_time: time_text(next_rotation_time.as_ref()),
            destroy_time: time_text(destroy_time.as_ref()),
            destroy_despite: despite(destroy_despite_consumers, destroy_despite_recent_use),
            destruction_begun,
        }
    }
}

/// Names what a destruction was planned in spite of.
fn despite(consumers: bool, recent_use: bool) -> Vec<&'static str> {
    let all = [(consumers, "consumers"), (recent_use, "recent use")];
    all.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect()
}

/// Adds when something is destroyed, if that is planned.
fn add_destruction(table: &mut Table, time: &str, despite: &[&'static str]) {
    if time.is_empty() {
        return;
    }
    table.add_row(["destroyed from", time]);
    if !despite.is_empty() {
        table.add_row(["destroyed despite", &despite.join(" and ")]);
    }
}

/// The name without the prefix that protobuf asks for.
fn key_state_name(state: v1::KeyState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("KEY_STATE_").unwrap_or(name)
}

impl View for KeyView {
    fn table(&self) -> Table {
        let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let mut table = facts(&[
            ("name", self.name.clone()),
            ("uid", self.uid.clone()),
            ("purpose", self.purpose.into()),
            ("protection", self.protection.into()),
            ("state", self.state.into()),
            ("owner", self.owner.clone()),
            ("sensitivity", self.sensitivity.into()),
            ("usage", self.usage.clone()),
            ("cryptoperiod", seconds_text(self.cryptoperiod_seconds)),
            ("recipient usage", seconds_text(self.recipient_usage_period_seconds)),
            ("labels", labels.collect::<Vec<_>>().join(" ")),
            ("created", self.create_time.clone()),
            ("updated", self.update_time.clone()),
            ("revision", self.revision.to_string()),
            ("primary version", self.primary_version.to_string()),
            ("versions", self.version_count.to_string()),
            ("consumers", self.consumer_count.to_string()),
            ("rotated every", rotation_text(self.rotation_period_seconds)),
            ("next rotation", self.next_rotation_time.clone()),
        ]);
        add_destruction(&mut table, &self.destroy_time, &self.destroy_despite);
        if self.destruction_begun {
            table.add_row(["destruction", "begun; it cannot be cancelled"]);
        }
        table
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
    /// Where its material comes from.
    pub origin: &'static str,
    /// Whether the HSM made it.
    pub local: bool,
    /// When it was generated, or imported, RFC 3339.
    pub create_time: String,
    /// When it became ACTIVE first, or in PRE_ACTIVATION is to, RFC 3339; empty when it never did, or nothing is planned.
    pub activate_time: String,
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
    /// From when on its material may be destroyed, RFC 3339; empty unless that is planned.
    pub destroy_time: String,
    /// What that was planned in spite of: `consumers`, `recent use`.
    pub destroy_despite: Vec<&'static str>,
}

impl From<v1::KeyVersion> for VersionView {
    fn from(version: v1::KeyVersion) -> Self {
        let (state, origin) = (version.state(), version.origin());
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
            destroy_time,
            activate_time,
            origin: _,
            local,
            destroy_despite_consumers,
            destroy_despite_recent_use,
        } = version;
        Self {
            name,
            version,
            state: state.as_str_name(),
            primary,
            origin: origin.as_str_name(),
            local,
            create_time: time_text(create_time.as_ref()),
            activate_time: time_text(activate_time.as_ref()),
            state_time: time_text(state_time.as_ref()),
            state_reason,
            state_actor,
            invocation_count,
            revision,
            root_generation,
            destroy_time: time_text(destroy_time.as_ref()),
            destroy_despite: despite(destroy_despite_consumers, destroy_despite_recent_use),
        }
    }
}

impl VersionView {
    fn activated(&self) -> String {
        match (self.state, &*self.activate_time) {
            ("PRE_ACTIVATION", "") => "by hand, or with the next rotation".into(),
            ("PRE_ACTIVATION", planned) => format!("planned for {planned}"),
            (_, "") => "never".into(),
            (_, time) => time.into(),
        }
    }
}

impl View for VersionView {
    fn table(&self) -> Table {
        let mut table = facts(&[
            ("name", self.name.clone()),
            ("state", self.state.into()),
            ("primary", yes_no(self.primary).into()),
            ("origin", self.origin.into()),
            ("local", yes_no(self.local).into()),
            ("created", self.create_time.clone()),
            ("activated", self.activated()),
            ("state since", self.state_time.clone()),
            ("state reason", self.state_reason.clone()),
            ("state actor", self.state_actor.clone()),
            ("invocations", self.invocation_count.to_string()),
            ("revision", self.revision.to_string()),
            ("root generation", self.root_generation.to_string()),
        ]);
        add_destruction(&mut table, &self.destroy_time, &self.destroy_despite);
        table
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

/// A key's rotation by period, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RotationPlanView {
    /// Name of the key.
    pub name: String,
    /// How long a version is the primary, in seconds; 0 without rotation by period.
    pub rotation_period_seconds: i64,
    /// When the primary gives way, RFC 3339; empty without rotation by period.
    pub next_rotation_time: String,
    /// How long a version may protect new data, in seconds.
    pub cryptoperiod_seconds: i64,
    /// Number of the primary version; 0 when none may protect.
    pub primary_version: u32,
    /// Revision.
    pub revision: u64,
}

impl From<v1::Key> for RotationPlanView {
    fn from(key: v1::Key) -> Self {
        let key = KeyView::from(key);
        Self {
            name: key.name,
            rotation_period_seconds: key.rotation_period_seconds,
            next_rotation_time: key.next_rotation_time,
            cryptoperiod_seconds: key.cryptoperiod_seconds,
            primary_version: key.primary_version,
            revision: key.revision,
        }
    }
}

impl View for RotationPlanView {
    fn table(&self) -> Table {
        facts(&[
            ("name", self.name.clone()),
            ("rotated every", rotation_text(self.rotation_period_seconds)),
            ("next rotation", self.next_rotation_time.clone()),
            ("cryptoperiod", seconds_text(self.cryptoperiod_seconds)),
            ("primary version", self.primary_version.to_string()),
        ])
    }
}

fn seconds_text(seconds: i64) -> String {
    period_text(std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

fn rotation_text(seconds: i64) -> String {
    match seconds {
        0 => "on demand only".into(),
        seconds => seconds_text(seconds),
    }
}

/// Writes a time as RFC 3339; empty when there is none.
pub(super) fn time_text(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(String::new, |time| {
        let unix_ms = time.seconds.saturating_mul(1000) + i64::from(time.nanos / 1_000_000);
        Timestamp::from_unix_ms(unix_ms).to_string()
    })
}

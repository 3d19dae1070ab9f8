//! The history of a key, as it is shown.

use comfy_table::Table;
use kms_proto::v1;
use serde::Serialize;

use super::view::{KeyView, VersionView, time_text};
use super::{View, plain_table};
use crate::terminal::harmless;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryEntryView {
    /// When, RFC 3339.
    pub time: String,
    /// Number of the version; 0 for an entry about the key itself.
    pub version: u32,
    /// State before; `null` for a new version, or an entry about the key.
    pub old_state: Option<&'static str>,
    /// State after; `null` for an entry about the key.
    pub new_state: Option<&'static str>,
    /// For an entry about the key: a JSON object of field to `[old, new]`.
    pub detail: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Revision before; 0 when there was none.
    pub old_revision: u64,
    /// Revision after.
    pub new_revision: u64,
}

impl From<v1::KeyHistoryEntry> for HistoryEntryView {
    fn from(entry: v1::KeyHistoryEntry) -> Self {
        let name = |state| match state {
            v1::VersionState::Unspecified => None,
            state => Some(state.as_str_name()),
        };
        let (old_state, new_state) = (name(entry.old_state()), name(entry.new_state()));
        let v1::KeyHistoryEntry {
            time,
            version,
            old_state: _,
            new_state: _,
            detail,
            actor,
            reason,
            old_revision,
            new_revision,
        } = entry;
        Self {
            time: time_text(time.as_ref()),
            version,
            old_state,
            new_state,
            detail,
            actor,
            reason,
            old_revision,
            new_revision,
        }
    }
}

/// A history.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HistoryView {
    /// The entries, oldest first.
    pub entries: Vec<HistoryEntryView>,
    /// Where to go on; empty at the end.
    pub next_page_token: String,
}

impl View for HistoryView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["TIME", "VERSION", "CHANGE", "ACTOR", "REASON"]);
        for entry in &self.entries {
            let version = match entry.version {
                0 => "-".to_owned(),
                number => number.to_string(),
            };
            let change = match (entry.old_state, entry.new_state) {
                (Some(old), Some(new)) => format!("{old} -> {new}"),
                (None, Some(new)) => format!("new, {new}"),
                (_, None) => harmless(&entry.detail),
            };
            table.add_row([
                entry.time.clone(),
                version,
                change,
                harmless(&entry.actor),
                harmless(&entry.reason),
            ]);
        }
        table
    }
}

/// What marking a version compromised did.
#[derive(Clone, Debug, Serialize)]
pub struct CompromiseView {
    /// The key.
    pub key: KeyView,
    /// The version that is COMPROMISED.
    pub version: VersionView,
    /// The new primary; `null` when the version was not the primary.
    pub replacement: Option<VersionView>,
}

impl View for CompromiseView {
    fn table(&self) -> Table {
        let mut table = self.version.table();
        let now = match &self.replacement {
            Some(replacement) => harmless(&replacement.name),
            None => "the primary is another version, and stays".to_owned(),
        };
        table.add_row(["replaced by".to_owned(), now]);
        table
    }
}

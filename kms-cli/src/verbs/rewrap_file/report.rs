//! What a run tells at its end.

use std::collections::BTreeMap;

use comfy_table::Table;
use kms_core::id::{KeyUid, KeyVersion};
use serde::Serialize;

use super::check::Census;
use super::checkpoint::Checkpoint;
use super::fault::Failure;
use super::tally::Tally;
use crate::output::View;
use crate::output::view::{facts, yes_no};

/// How many failed items a table shows; all listed ones are in the JSON form.
const SHOWN: usize = 10;

/// What a run did.
#[derive(Debug, Serialize)]
pub(super) struct RunView {
    output: String,
    #[serde(flatten)]
    tally: Tally,
    input_length_bytes: u64,
    output_length_bytes: u64,
    resumed: bool,
}

impl RunView {
    /// Takes it from the last checkpoint.
    pub(super) fn of(state: Checkpoint, output: String, resumed: bool) -> Self {
        let Checkpoint { tally, input_offset, output_offset, .. } = state;
        let (input_length_bytes, output_length_bytes) = (input_offset, output_offset);
        Self { output, tally, input_length_bytes, output_length_bytes, resumed }
    }
}

impl View for RunView {
    fn table(&self) -> Table {
        let mut table = facts(&[
            ("output", self.output.clone()),
            ("items", self.tally.items.to_string()),
            ("rewrapped", self.tally.rewrapped.to_string()),
            ("already current", self.tally.current.to_string()),
            ("blank", self.tally.blank.to_string()),
            ("failed", self.tally.failed.to_string()),
            ("resumed", yes_no(self.resumed).into()),
        ]);
        list(&mut table, &self.tally.failures);
        table
    }
}

/// What a file holds.
#[derive(Debug, Serialize)]
pub(super) struct CensusView {
    items: u64,
    blank: u64,
    failed: u64,
    failures: Vec<Failure>,
    versions: Vec<VersionCount>,
    further_versions: u64,
}

/// How many ciphertexts are under a version.
#[derive(Debug, Serialize)]
struct VersionCount {
    key_uid: String,
    version: u32,
    items: u64,
}

impl CensusView {
    /// Takes it from a census.
    pub(super) fn of(census: Census) -> Self {
        let Census { tally, versions, others } = census;
        Self {
            items: tally.items,
            blank: tally.blank,
            failed: tally.failed,
            failures: tally.failures,
            versions: counts(versions),
            further_versions: others,
        }
    }
}

fn counts(versions: BTreeMap<([u8; 16], KeyVersion), u64>) -> Vec<VersionCount> {
    let count = |((key, version), items): (([u8; 16], KeyVersion), u64)| VersionCount {
        key_uid: KeyUid::from_bytes(key).to_string(),
        version: version.get(),
        items,
    };
    versions.into_iter().map(count).collect()
}

impl View for CensusView {
    fn table(&self) -> Table {
        let mut table = facts(&[
            ("items", self.items.to_string()),
            ("blank", self.blank.to_string()),
            ("failed", self.failed.to_string()),
        ]);
        for VersionCount { key_uid, version, items } in &self.versions {
            table.add_row([format!("key {key_uid}, version {version}"), items.to_string()]);
        }
        if self.further_versions > 0 {
            let items = self.further_versions.to_string();
            table.add_row(["further keys and versions".to_owned(), items]);
        }
        list(&mut table, &self.failures);
        table
    }
}

fn list(table: &mut Table, failures: &[Failure]) {
    for Failure { line, reason, message } in failures.iter().take(SHOWN) {
        let message = crate::terminal::harmless(message);
        table.add_row([format!("line {line}"), format!("{reason}: {message}")]);
    }
    if failures.len() > SHOWN {
        table.add_row(["...", "more with --output json"]);
    }
}

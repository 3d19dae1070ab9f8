//! How aliases are shown.

use comfy_table::Table;
use kms_proto::v1;
use serde::Serialize;

use super::view::{facts, time_text};
use super::{View, plain_table};
use crate::terminal::harmless;

/// An alias, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AliasView {
    /// Name.
    pub name: String,
    /// The key that it points to.
    pub key: String,
    /// When it was made, RFC 3339.
    pub create_time: String,
    /// When it was made or moved last, RFC 3339.
    pub update_time: String,
    /// Who did that.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Revision.
    pub revision: u64,
}

impl From<v1::Alias> for AliasView {
    fn from(alias: v1::Alias) -> Self {
        let v1::Alias { name, key, create_time, update_time, actor, reason, revision } = alias;
        Self {
            name,
            key,
            create_time: time_text(create_time.as_ref()),
            update_time: time_text(update_time.as_ref()),
            actor,
            reason,
            revision,
        }
    }
}

impl View for AliasView {
    fn table(&self) -> Table {
        facts(&[
            ("name", self.name.clone()),
            ("key", self.key.clone()),
            ("created", self.create_time.clone()),
            ("changed", self.update_time.clone()),
            ("by", self.actor.clone()),
            ("reason", self.reason.clone()),
            ("revision", self.revision.to_string()),
        ])
    }
}

/// A list of aliases.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AliasesView {
    /// The aliases; the one that was changed last comes last.
    pub aliases: Vec<AliasView>,
    /// Where to go on; empty at the end.
    pub next_page_token: String,
}

impl View for AliasesView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["ALIAS", "KEY", "REVISION", "CHANGED", "BY"]);
        let last = |name: &str| harmless(name.rsplit('/').next().unwrap_or_default());
        for alias in &self.aliases {
            table.add_row([
                last(&alias.name),
                last(&alias.key),
                alias.revision.to_string(),
                alias.update_time.clone(),
                harmless(&alias.actor),
            ]);
        }
        table
    }
}

//! What the use-cases about aliases take and give.

use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::id::{RequestId, Revision};
use kms_core::name::{AliasName, KeyName, TenantName};
use serde::{Deserialize, Serialize};

/// Asks for a new alias.
#[derive(Clone, Debug)]
pub struct CreateAlias {
    /// The name.
    pub name: AliasName,
    /// The key that it is to point to.
    pub key: KeyName,
    /// Why: 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to move an alias to another key.
#[derive(Clone, Debug)]
pub struct UpdateAlias {
    /// The alias.
    pub name: AliasName,
    /// The key that it is to point to.
    pub key: KeyName,
    /// The revision that the change is based on.
    pub revision: Revision,
    /// Why: 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to delete an alias.
#[derive(Clone, Debug)]
pub struct DeleteAlias {
    /// The alias.
    pub name: AliasName,
    /// The revision that the change is based on.
    pub revision: Revision,
    /// Why: 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks for aliases.
#[derive(Clone, Debug)]
pub struct ListAliases {
    /// Of this tenant.
    pub tenant: TenantName,
    /// Those that point to this key; `None` for all.
    pub key: Option<KeyName>,
    /// The most items; 0 for the usual number.
    pub page_size: u32,
    /// Where to go on; empty for the first page.
    pub page_token: String,
}

/// An alias, as callers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasDescription {
    /// The name.
    pub name: AliasName,
    /// The key that it points to; of a deleted one, the last.
    pub key: KeyName,
    /// When it was made.
    pub create_time: Timestamp,
    /// When it was made or moved last.
    pub update_time: Timestamp,
    /// Which principal did that.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Grows with each change; the next one is based on it.
    pub revision: Revision,
}

impl From<AliasRow> for AliasDescription {
    fn from(row: AliasRow) -> Self {
        let AliasRow { name, key, key_uid: _, create_time, update_time, actor, reason, revision } =
            row;
        Self { name, key, create_time, update_time, actor, reason, revision }
    }
}

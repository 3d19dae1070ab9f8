//! The use-cases, one file each. Stands between authz and the keyring.
//!
//! Responsible for the order of things: decide, check, record, do, record, answer. It must never answer before the
//! audit record is durable, and never touch a key without a permit.

mod activate_key_version;
mod alias_error;
mod alias_types;
mod aliases;
mod backup_store;
mod cancel_import_job;
mod change;
mod change_key_state;
mod change_version_state;
mod claim;
mod compare_store;
mod compromise_key_version;
mod consumers;
mod create_key;
mod crypto;
mod describe_ciphertext;
mod describe_key;
mod destroy_due;
mod destroy_keys_due;
mod due;
mod error;
mod error_from;
mod error_text;
mod fields;
mod full;
mod generate_data_key;
mod generate_random;
mod get_version_usage;
mod gone;
mod import_jobs;
mod import_key;
mod import_types;
mod key_destruction;
mod kms;
mod last_use;
mod list_aliases;
mod list_key_history;
mod list_keys;
mod mutation;
mod places;
mod reconcile;
mod recover;
mod replay;
mod rewrap;
mod root_rollover;
mod rotate_key;
mod select_keys;
mod stage_key_version;
mod trail;
mod types;
mod unwrap;
mod update_key;
mod verify_manifest;
mod wrap;

pub use alias_error::AliasError;
pub use alias_types::*;
pub use backup_store::{BackupPart, BackupParts};
pub use compare_store::{CompareError, Compared, STORE_ACCEPTED};
pub use destroy_due::SCREAM_PERIOD;
pub use error::{REQUESTS_RETRY_AFTER, RETRY_AFTER, ServiceError};
pub use full::Full;
pub use get_version_usage::QUIET_PERIOD;
pub use import_types::*;
pub use kms::{Kms, Parts, SystemRandomness};
pub use list_keys::PAGE_TOKEN_LIFE;
pub use places::{MAX_MUTATIONS, MAX_TENANT_MUTATIONS};
pub use reconcile::{
    ABANDONED, INTENT_GRACE, MAX_DUE, MAX_FORGOTTEN, MAX_ROTATIONS, ORPHAN_OBJECT, Reconciled,
};
pub use replay::{RESTORE_OPERATION, Replayed, Tale};
pub use root_rollover::{Reached, RolloverState, RootChangeError, RootRollover};
pub use types::*;

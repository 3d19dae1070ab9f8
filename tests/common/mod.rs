//! What the behaviour tests share: the real server over a real token, and clients with certificates.
//!
//! `kms-server dev` makes token, root set and database; then the same server runs without dev mode over them, with a
//! configuration and a PKI of the test's own. Nothing here reaches into the server: it is a process.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test support: a failure here is a failed test, and no test file uses all of it"
)]

pub mod calls;
pub mod rig;

use std::time::Duration;

pub use calls::{Client, Refusal, raw_call, refusal, request_id, unfinished_call};
pub use rig::{Grant, Rig, Server};

/// How long anything may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_mins(1);
/// The tenant of the tests.
pub const TENANT: &str = "acme";
/// Another tenant, in which [`OPERATOR`] may do everything too.
pub const OTHER_TENANT: &str = "globex";
/// May do everything in both tenants.
pub const OPERATOR: &str = "spiffe://holdfast.test/operator";
/// Has a good certificate and no grant.
pub const STRANGER: &str = "spiffe://holdfast.test/stranger";
/// Domain of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "holdfast.dev";

/// Every action that the configuration knows.
pub const ACTIONS: [&str; 48] = [
    "wrap",
    "wrap_pinned",
    "unwrap",
    "unwrap_compromised",
    "rewrap",
    "rewrap_compromised",
    "generate_data_key",
    "describe_ciphertext",
    "generate_random",
    "create_key",
    "describe_key",
    "list_keys",
    "update_key",
    "rotate_key",
    "create_import_job",
    "describe_import_job",
    "list_import_jobs",
    "cancel_import_job",
    "import_key",
    "import_key_version",
    "register_consumer",
    "list_consumers",
    "remove_consumer",
    "create_alias",
    "update_alias",
    "delete_alias",
    "describe_alias",
    "list_aliases",
    "destroy_with_consumers",
    "stage_key_version",
    "activate_key_version",
    "discard_key_version",
    "disable_key",
    "enable_key",
    "schedule_key_destruction",
    "cancel_key_destruction",
    "describe_key_version",
    "list_key_versions",
    "suspend_key_version",
    "resume_key_version",
    "deactivate_key_version",
    "compromise_key_version",
    "schedule_key_version_destruction",
    "destroy_recently_used",
    "cancel_key_version_destruction",
    "list_key_history",
    "get_version_usage",
    "backup_store",
];

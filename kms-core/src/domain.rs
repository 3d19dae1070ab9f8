//! Every domain-separation string of the product, pinned by `kms-core/tests/golden/domains.txt`.
//!
//! Invariant: no two of these are equal, and none is a prefix of another; `tests/domains.rs` fails otherwise.

/// Starts the AAD of an envelope (docs/formats.md, "Envelope").
pub const WRAP_AAD: &[u8] = b"kms/wrap/v1";

/// Starts the AAD of the check blob of a key version.
pub const KEY_CHECK_AAD: &[u8] = b"kms/key-check/v1";

/// The message whose HMAC is the check value of a root `mac`.
pub const ROOT_MAC_CHECK: &[u8] = b"kms/root-mac-check/v1";

/// The 32-byte pattern whose KWP wrapping is the check value of a root `wrap`. Public by design.
pub const ROOT_WRAP_CHECK_PATTERN: &[u8; 32] = b"kms/root-wrap-check/v1 holdfast!";

/// Starts the MAC input of a database row.
pub const ROW_MAC: &[u8] = b"kms/row/v1";

/// Starts the MAC input of a tenant manifest.
pub const MANIFEST_MAC: &[u8] = b"kms/manifest/v1";

/// Starts each block that expands a row's MAC into the manifest digest.
pub const MANIFEST_EXPAND: &[u8] = b"kms/row-set/v1";

/// Starts the MAC input that stands for an encryption context that is logged hashed.
pub const CONTEXT_HASH: &[u8] = b"kms/context-hash/v1";

/// Starts the MAC input of a page token.
pub const PAGE_TOKEN: &[u8] = b"kms/page-token/v1";

/// Starts the hash input of one entry of the audit chain.
pub const AUDIT_CHAIN: &[u8] = b"kms/audit-chain/v1";

/// Starts the hash input of a mutation's request, for idempotency.
pub const REQUEST_HASH: &[u8] = b"kms/request/v1";

/// Starts the hash input of a tenant's manifests, in the log and in the database, for the code that accepts the latter.
pub const ACCEPT_CODE: &[u8] = b"kms/accept-code/v1";

/// Starts the hash input of a table of grants, for the policy revision in audit records.
pub const POLICY_TABLE: &[u8] = b"kms/static-policy/v1";

/// Starts the AAD of the check value of an import.
pub const IMPORT_CHECK_AAD: &[u8] = b"kms/import-check/v1";

/// Starts the hash input that the IV of a client's check value is taken from.
pub const IMPORT_CHECK_IV: &[u8] = b"kms/import-iv/v1";

/// Starts the MAC input of an entry of the state journal.
pub const JOURNAL_ENTRY: &[u8] = b"kms/journal-entry/v1";

/// Starts the hash input that links the entries of the state journal.
pub const JOURNAL_LINK: &[u8] = b"kms/journal-link/v1";

/// Starts the MAC input of the mark in the token that says how far the state journal goes.
pub const JOURNAL_MARK: &[u8] = b"kms/journal-mark/v1";

/// Starts the MAC input of a backup of the store.
pub const BACKUP_MAC: &[u8] = b"kms/backup/v1";

/// All of the above, in the order of the golden file.
pub const ALL: [&[u8]; 19] = [
    WRAP_AAD,
    KEY_CHECK_AAD,
    ROOT_MAC_CHECK,
    ROOT_WRAP_CHECK_PATTERN,
    ROW_MAC,
    MANIFEST_MAC,
    MANIFEST_EXPAND,
    CONTEXT_HASH,
    PAGE_TOKEN,
    AUDIT_CHAIN,
    REQUEST_HASH,
    ACCEPT_CODE,
    POLICY_TABLE,
    IMPORT_CHECK_AAD,
    IMPORT_CHECK_IV,
    JOURNAL_ENTRY,
    JOURNAL_LINK,
    JOURNAL_MARK,
    BACKUP_MAC,
];

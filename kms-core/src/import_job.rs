//! Import jobs: who may send which key until when, sealed to which public key. A job is there until it is used or expires.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::{KeyUid, Revision, RootGeneration};
use crate::import::{ImportMethod, RsaSize};
use crate::key::{CkaId, row};
use crate::name::KeyName;

/// How long a job is open when nothing else is asked for.
pub const DEFAULT_IMPORT_JOB_LIFETIME: Duration = Duration::from_hours(24);
/// The longest: a weekend between two people who each have a half of the key.
pub const MAX_IMPORT_JOB_LIFETIME: Duration = Duration::from_hours(72);
/// The shortest.
pub const MIN_IMPORT_JOB_LIFETIME: Duration = Duration::from_mins(5);
/// The most open jobs of a tenant: each is an object on the token, which looks at all of its objects.
pub const MAX_IMPORT_JOBS: usize = 20;
/// The most open jobs of all tenants together: half of the private keys that a listing of the token has room for
/// (`kms_hsm::hsm::MAX_IMPORT_KEYS`), so that one which no job names is seen beside them.
pub const MAX_OPEN_IMPORT_JOBS: u32 = 500;
/// The longest public key that is stored: one of 4096 bits has 550 bytes.
pub const MAX_PUBLIC_KEY_BYTES: usize = 1024;

/// The row of an import job. It is never changed: it is made, and taken away when it was used, given up, or has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportJobRow {
    /// CKA_ID of its private key; the bare id of the job is this in hex.
    pub id: CkaId,
    /// The key that is to be made, or to get another version.
    pub key: KeyName,
    /// Its uid: that of the key as it was when the job was made, or the one reserved for it.
    pub key_uid: KeyUid,
    /// How the key is to be sealed.
    pub method: ImportMethod,
    /// The size of the RSA key.
    pub size: RsaSize,
    /// The public key, SubjectPublicKeyInfo as DER.
    pub public_key: Vec<u8>,
    /// When it was made.
    pub create_time: Timestamp,
    /// Until when it can be used.
    pub expire_time: Timestamp,
    /// Which principal made it.
    pub actor: String,
}

impl ImportJobRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { id, key, key_uid, method, size, public_key, create_time, expire_time, actor } =
            self;
        row("import_jobs", &id.0, Revision::FIRST, generation)
            .text(key.tenant().id())
            .text(key.key_id())
            .bytes(key_uid.as_bytes())
            .text(method.as_str())
            .number(size.bits().into())
            .bytes(public_key)
            .signed(create_time.as_unix_ms())
            .signed(expire_time.as_unix_ms())
            .text(actor)
            .finish()
    }
}

//! Requests and results of the use-cases about import.

use std::fmt;
use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::import::{ImportCheck, ImportMethod, RsaSize};
use kms_core::name::{ImportJobName, KeyName};
use serde::{Deserialize, Serialize};

use super::{CreateKey, StageKeyVersion};

/// Asks for an import job.
#[derive(Clone, Debug)]
pub struct CreateImportJob {
    /// The key that is to be imported, or to get a version that is.
    pub key: KeyName,
    /// How it is to be sealed.
    pub method: ImportMethod,
    /// The size of the RSA key.
    pub size: RsaSize,
    /// How long it can be used: 5 minutes to 72 hours, in whole seconds.
    pub lifetime: Duration,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to give an import job up.
#[derive(Clone, Debug)]
pub struct CancelImportJob {
    /// Name.
    pub name: ImportJobName,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// An import job, as callers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportJobDescription {
    /// Name.
    pub name: ImportJobName,
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
    /// Who made it.
    pub actor: String,
}

/// A key that its owner sealed to an import job.
#[derive(Clone)]
pub struct SealedKey {
    /// The job.
    pub job: ImportJobName,
    /// The sealed key.
    pub wrapped: Vec<u8>,
    /// Its check value.
    pub check: ImportCheck,
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey({}, {} bytes)", self.job, self.wrapped.len())
    }
}

/// Asks for a new key of imported material.
#[derive(Clone, Debug)]
pub struct ImportKey {
    /// The key; its name is that of the job.
    pub create: CreateKey,
    /// Its material.
    pub sealed: SealedKey,
}

/// Asks for a staged version of imported material.
#[derive(Clone, Debug)]
pub struct ImportKeyVersion {
    /// The version; the name of its key is that of the job.
    pub stage: StageKeyVersion,
    /// Its material.
    pub sealed: SealedKey,
}

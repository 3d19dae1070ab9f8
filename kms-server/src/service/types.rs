//! Requests and results of the use-cases: domain types only. Transport and facades translate to and from them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kms_core::context::EncryptionContext;
use kms_core::envelope::Suite;
use kms_core::id::{EventId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::key::{KeyState, Origin, Protection, Purpose, Sensitivity};
use kms_core::name::{ConsumerName, KeyName, KeyOrAlias, KeySelector, TenantName, VersionName};
use kms_core::secret::Plaintext;
use kms_core::state::VersionState;
use serde::{Deserialize, Serialize};

use super::ServiceError;
use crate::authn::Principal;

/// The most items of one batch.
pub const MAX_BATCH_ITEMS: usize = kms_hsm::hsm::MAX_BATCH;
/// The shortest data key, in bytes: 128 bits.
pub const MIN_DATA_KEY_BYTES: usize = 16;
/// The longest data key, in bytes.
pub const MAX_DATA_KEY_BYTES: usize = 1024;
/// The length of a data key when none is asked for: 256 bits.
pub const DEFAULT_DATA_KEY_BYTES: usize = 32;
/// The size of a page when none is asked for.
pub const DEFAULT_PAGE_SIZE: u32 = 50;
/// The largest page.
pub const MAX_PAGE_SIZE: u32 = 1000;

/// What every use-case must know of its request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Id of the request and of its audit records.
    pub event_id: EventId,
    /// Who calls.
    pub principal: Principal,
    /// From where.
    pub source: SocketAddr,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// When the request arrived.
    pub received: Instant,
    /// Full name of the operation, `kms.v1.CryptoService/Wrap`.
    pub operation: &'static str,
    /// Items of the request that were done before those of this batch: in a stream there are more batches than one.
    pub items_before: u32,
}

/// Items of a batch: what could not be decoded stands there as its error, so that it is audited with the others.
pub type BatchItems<T> = Vec<Result<T, ServiceError>>;
/// Results of a batch, in the order of its items.
pub type BatchResults<T> = Vec<Result<T, ServiceError>>;

/// Asks for one plaintext to be wrapped.
#[derive(Debug)]
pub struct Wrap {
    /// Key, pinned version, or alias.
    pub key: KeySelector,
    /// 1 byte to 64 KiB; checked by the service.
    pub plaintext: Plaintext,
    /// Bound as AAD.
    pub context: EncryptionContext,
}

/// One wrapped plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The envelope.
    pub ciphertext: Vec<u8>,
    /// Name of the version that protects it.
    pub key_version: Arc<str>,
}

/// Asks for one envelope to be unwrapped.
#[derive(Debug)]
pub struct Unwrap {
    /// The key that the caller expects.
    pub key: KeyName,
    /// The envelope, as received.
    pub ciphertext: Vec<u8>,
    /// As given at wrapping.
    pub context: EncryptionContext,
}

/// One unwrapped plaintext.
#[derive(Debug)]
pub struct Unwrapped {
    /// The plaintext.
    pub plaintext: Plaintext,
    /// Name of the version that protected it.
    pub key_version: Arc<str>,
}

/// Asks for one envelope to be re-protected under the current primary, same key, same context.
#[derive(Debug)]
pub struct Rewrap {
    /// The key.
    pub key: KeyName,
    /// The envelope, as received.
    pub ciphertext: Vec<u8>,
    /// As given at wrapping.
    pub context: EncryptionContext,
}

/// One re-protected envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// The new envelope, or the given one when nothing had to change.
    pub ciphertext: Vec<u8>,
    /// Name of the version that protects it now.
    pub key_version: Arc<str>,
    /// Name of the version that protected it before.
    pub previous_key_version: Arc<str>,
    /// False when it was under the primary already; it was not opened then.
    pub changed: bool,
}

/// Asks for one new data key.
#[derive(Debug)]
pub struct GenerateDataKey {
    /// The key that wraps it, or an alias of it.
    pub key: KeyOrAlias,
    /// 16 to 1,024; checked by the service.
    pub length_bytes: usize,
    /// Context of the wrapped copy.
    pub context: EncryptionContext,
    /// Whether to hand out the plaintext.
    pub with_plaintext: bool,
}

/// One new data key.
#[derive(Debug)]
pub struct DataKey {
    /// In the clear, when it was asked for.
    pub plaintext: Option<Plaintext>,
    /// The wrapped copy.
    pub ciphertext: Vec<u8>,
    /// Name of the version that wraps it.
    pub key_version: Arc<str>,
}

/// What the header of an envelope says; nothing of it is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiphertextDescription {
    /// Format number.
    pub format: u8,
    /// Suite.
    pub suite: Suite,
    /// Uid of the key.
    pub key_uid: KeyUid,
    /// Version.
    pub version: KeyVersion,
    /// Name of the version; `None` when the key is not known, or not to this caller.
    pub key_version: Option<VersionName>,
    /// Length of the plaintext.
    pub plaintext_length_bytes: usize,
    /// Whether rewrapping would change nothing.
    pub current: bool,
}

/// Asks for a new key.
#[derive(Clone, Debug)]
pub struct CreateKey {
    /// Name.
    pub name: KeyName,
    /// Purpose.
    pub purpose: Purpose,
    /// Protection.
    pub protection: Protection,
    /// 1 to 256 bytes; checked by the service, like the fields below.
    pub owner: String,
    /// Sensitivity.
    pub sensitivity: Sensitivity,
    /// 1 to 1,024 bytes.
    pub usage: String,
    /// 1 hour to 10 years.
    pub cryptoperiod: Duration,
    /// Recipient-usage period, from the cryptoperiod to 30 years; `None` means 3 years more than the cryptoperiod.
    pub recipient_usage_period: Option<Duration>,
    /// At most 32 pairs.
    pub labels: BTreeMap<String, String>,
    /// 1 hour to the cryptoperiod; `None` leaves rotation to the caller.
    pub rotation_period: Option<Duration>,
    /// Whether the caller knows that an `HSM_RESIDENT` key has no backup; without it none is made.
    pub acknowledge_no_backup: bool,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks for a change of metadata; `None` leaves a field as it is.
#[derive(Clone, Debug)]
pub struct UpdateKey {
    /// Name.
    pub name: KeyName,
    /// The revision the change is based on.
    pub revision: Revision,
    /// New owner.
    pub owner: Option<String>,
    /// New sensitivity.
    pub sensitivity: Option<Sensitivity>,
    /// New usage text.
    pub usage: Option<String>,
    /// New cryptoperiod.
    pub cryptoperiod: Option<Duration>,
    /// New recipient-usage period.
    pub recipient_usage_period: Option<Duration>,
    /// New labels; they replace the old ones.
    pub labels: Option<BTreeMap<String, String>>,
    /// New rotation period; `None` leaves it.
    pub rotation_period: Option<SetRotation>,
    /// Whether the sensitivity may be lowered while the destruction of a version is planned; takes a permission of its own.
    pub allow_recent_use: bool,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// What becomes of a key's rotation by period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetRotation {
    /// It ends.
    Off,
    /// Every so long.
    Every(Duration),
}

impl SetRotation {
    /// Returns the period, when there is one.
    pub const fn period(self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::Every(period) => Some(period),
        }
    }
}

/// Asks for a rollover.
#[derive(Clone, Debug)]
pub struct RotateKey {
    /// Name.
    pub name: KeyName,
    /// At most 256 bytes; may be empty.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks for a version that is to be the next primary.
#[derive(Clone, Debug)]
pub struct StageKeyVersion {
    /// Name of the key.
    pub name: KeyName,
    /// When it is to be activated; `None` leaves it to whoever activates it, or to the next rotation.
    pub activate_time: Option<kms_core::clock::Timestamp>,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to activate, discard, suspend, resume, deactivate or compromise a version, or to give its destruction up.
#[derive(Clone, Debug)]
pub struct ChangeVersionState {
    /// Name.
    pub name: VersionName,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to disable or enable a key, or to give its destruction up.
#[derive(Clone, Debug)]
pub struct ChangeKeyState {
    /// Name.
    pub name: KeyName,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to plan the destruction of a version.
#[derive(Clone, Debug)]
pub struct ScheduleDestruction {
    /// Name.
    pub name: VersionName,
    /// How long until then, 7 to 365 days.
    pub window: Duration,
    /// Whether it may have been used within the last 30 days; takes a permission of its own.
    pub allow_recent_use: bool,
    /// Whether the key may have consumers; takes a permission of its own.
    pub allow_consumers: bool,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to plan the destruction of a whole key.
#[derive(Clone, Debug)]
pub struct ScheduleKeyDestruction {
    /// Name.
    pub name: KeyName,
    /// How long until then, 7 to 365 days.
    pub window: Duration,
    /// Whether any version may have been wanted within the last 30 days; takes a permission of its own.
    pub allow_recent_use: bool,
    /// Whether the key may have consumers; takes a permission of its own.
    pub allow_consumers: bool,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to register a consumer of a key.
#[derive(Clone, Debug)]
pub struct RegisterConsumer {
    /// Name; must not be taken.
    pub name: ConsumerName,
    /// Who that is, and whom to ask: 1 to 256 bytes.
    pub description: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// Asks to take a consumer away.
#[derive(Clone, Debug)]
pub struct RemoveConsumer {
    /// Name.
    pub name: ConsumerName,
    /// 1 to 256 bytes.
    pub reason: String,
    /// Makes a repeat safe.
    pub request_id: RequestId,
}

/// A consumer, as callers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerDescription {
    /// Name.
    pub name: ConsumerName,
    /// Who that is, and whom to ask.
    pub description: String,
    /// When it was registered.
    pub create_time: kms_core::clock::Timestamp,
    /// Who registered it.
    pub actor: String,
}

/// What marking a version compromised did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compromised {
    /// The key.
    pub key: KeyDescription,
    /// The version that is COMPROMISED.
    pub version: VersionDescription,
    /// The new primary, when the version was the primary.
    pub replacement: Option<VersionDescription>,
}

/// Asks for a page of a key's history.
#[derive(Clone, Debug)]
pub struct ListKeyHistory {
    /// The key.
    pub key: KeyName,
    /// 1 to 1,000; 0 means 50.
    pub page_size: u32,
    /// Empty for the first page.
    pub page_token: String,
}

/// Asks for a page of keys.
#[derive(Clone, Debug)]
pub struct ListKeys {
    /// The tenant.
    pub tenant: TenantName,
    /// 1 to 1,000; 0 means 50.
    pub page_size: u32,
    /// Empty for the first page.
    pub page_token: String,
    /// Which keys; empty for all.
    pub filter: String,
    /// In which order; empty for that of their making.
    pub order_by: String,
}

impl ListKeys {
    /// Asks for the first page of all keys.
    pub fn all(tenant: TenantName) -> Self {
        let (page_token, filter, order_by) = (String::new(), String::new(), String::new());
        Self { tenant, page_size: 0, page_token, filter, order_by }
    }
}

/// Asks for a page of versions.
#[derive(Clone, Debug)]
pub struct ListKeyVersions {
    /// The key.
    pub key: KeyName,
    /// 1 to 1,000; 0 means 50.
    pub page_size: u32,
    /// Empty for the first page.
    pub page_token: String,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Token of the next page; empty on the last.
    pub next_page_token: String,
}

/// A key, as callers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDescription {
    /// Name.
    pub name: KeyName,
    /// Uid.
    pub uid: KeyUid,
    /// Purpose.
    pub purpose: Purpose,
    /// Protection.
    pub protection: Protection,
    /// Whether it may be used at all.
    pub state: KeyState,
    /// Owner.
    pub owner: String,
    /// Sensitivity.
    pub sensitivity: Sensitivity,
    /// Usage text.
    pub usage: String,
    /// Cryptoperiod.
    pub cryptoperiod: Duration,
    /// Recipient-usage period.
    pub recipient_usage_period: Duration,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub create_time: kms_core::clock::Timestamp,
    /// When it was changed last.
    pub update_time: kms_core::clock::Timestamp,
    /// Revision.
    pub revision: Revision,
    /// The primary version; `None` when it may not protect now.
    pub primary_version: Option<KeyVersion>,
    /// How many versions there are.
    pub version_count: u32,
    /// How many consumers are registered.
    pub consumer_count: u32,
    /// Rotation by period, when it is wanted.
    pub rotation: Option<kms_core::lifecycle::Rotation>,
    /// The planned destruction of the whole key.
    pub destruction: Option<kms_core::lifecycle::KeyDestruction>,
}

/// A version, as callers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionDescription {
    /// The key.
    pub key: KeyName,
    /// The number.
    pub version: KeyVersion,
    /// The state in force.
    pub state: VersionState,
    /// Whether it is the one that protects.
    pub primary: bool,
    /// Where its material comes from.
    pub origin: Origin,
    /// When it was generated, or imported.
    pub create_time: kms_core::clock::Timestamp,
    /// When it became ACTIVE first, or in PRE_ACTIVATION is to.
    pub activate_time: Option<kms_core::clock::Timestamp>,
    /// When the state changed last.
    pub state_time: kms_core::clock::Timestamp,
    /// Why.
    pub state_reason: String,
    /// Who did it.
    pub state_actor: String,
    /// Invocations accounted, leased blocks included.
    pub invocation_count: u64,
    /// Revision.
    pub revision: Revision,
    /// Generation of the root that wraps it.
    pub root_generation: RootGeneration,
    /// From when on its material may be destroyed; only while that is planned.
    pub destroy_time: Option<kms_core::clock::Timestamp>,
    /// Whether that was planned although consumers were registered.
    pub destroy_despite_consumers: bool,
    /// Whether that was planned although it was used, or wanted, of late.
    pub destroy_despite_recent_use: bool,
}

/// One entry of a key's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Which version; `None` for an entry about the key itself.
    pub version: Option<KeyVersion>,
    /// The state before; `None` for a new version, or an entry about the key.
    pub from: Option<VersionState>,
    /// The state after; `None` for an entry about the key.
    pub to: Option<VersionState>,
    /// For an entry about the key: a JSON object of field to `[old, new]`.
    pub detail: String,
    /// Revision of the version or key before; 0 when there was none.
    pub old_revision: Revision,
    /// Revision after.
    pub revision: Revision,
    /// When.
    pub time: kms_core::clock::Timestamp,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// Whether a version can be retired; from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retirement {
    /// As far as is known, nothing depends on it.
    Safe,
    /// It is not used, but ciphertexts may be left.
    Quiet,
    /// It is used.
    InUse,
}

/// How a version was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionUsage {
    /// Name.
    pub name: VersionName,
    /// The state in force.
    pub state: VersionState,
    /// Counts and times.
    pub uses: kms_core::usage::Uses,
    /// Whether it can be retired.
    pub retirement: Retirement,
    /// On what evidence.
    pub evidence: Vec<String>,
    /// What cannot be known.
    pub blind_spots: Vec<String>,
}

/// What staging did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The key, with its primary as before.
    pub key: KeyDescription,
    /// The staged version.
    pub version: VersionDescription,
}

/// What a rollover did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The key, with its new primary.
    pub key: KeyDescription,
    /// The new version.
    pub version: VersionDescription,
}

//! Keys, versions and counters: what is stored of them, and the bytes their row MACs cover.
//!
//! Invariant: `mac_input` destructures every field, so a new one cannot be left unprotected (`tests/row_mac_vectors.rs`
//! pins the bytes, and edits every field).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::canonical::CanonicalWriter;
use crate::clock::Timestamp;
use crate::domain;
use crate::envelope::{IV_BYTES, Iv};
use crate::id::{KeyUid, KeyVersion, Revision, RootGeneration};
use crate::lifecycle::{Destruction, KeyDestruction, Rotation};
use crate::name::KeyName;
use crate::state::VersionState;

/// The longest owner text, in bytes.
pub const MAX_OWNER_BYTES: usize = 256;
/// The longest usage text, in bytes.
pub const MAX_USAGE_BYTES: usize = 1024;
/// The longest reason text of a transition, in bytes.
pub const MAX_REASON_BYTES: usize = 256;
/// The most labels of a key.
pub const MAX_LABELS: usize = 32;
/// The longest key of a label, in bytes.
pub const MAX_LABEL_KEY_BYTES: usize = 63;
/// The longest value of a label, in bytes.
pub const MAX_LABEL_VALUE_BYTES: usize = 255;
/// The shortest originator-usage period.
pub const MIN_CRYPTOPERIOD: Duration = Duration::from_hours(1);
/// The longest originator-usage period: 10 years of 365 days and three leap days.
pub const MAX_CRYPTOPERIOD: Duration = Duration::from_hours(3653 * 24);
/// How much longer than it protects a version processes, unless it is said: of a symmetric key-wrapping key 3 years
/// (SP 800-57 Part 1 §5.3.6, Table 1).
pub const DEFAULT_RECIPIENT_EXTENSION: Duration = Duration::from_hours(3 * 365 * 24);
/// The longest recipient-usage period: 30 years; what is kept for longer is rewrapped meanwhile.
pub const MAX_RECIPIENT_USAGE_PERIOD: Duration = Duration::from_hours(10_957 * 24);
/// Invocations of AES-GCM with random 96-bit IVs that one key version may see (SP 800-38D §8.3).
pub const MAX_INVOCATIONS: u64 = 1 << 32;

/// The HMAC-SHA-256 of a row under root `mac`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowMac(pub [u8; 32]);

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Purpose {
    /// Key-wrapping.
    Wrap,
}

/// Where the key material lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Protection {
    /// A KWP blob under root `wrap`; used only as a non-extractable session object.
    HsmWrapped,
    /// A token object of its own.
    HsmResident,
}

/// How sensitive the data under a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Sensitivity {
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
}

/// Whether a key may be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KeyState {
    /// Its versions do what their states permit.
    Enabled,
    /// None of its versions protects or processes, whatever their states.
    Disabled,
    /// As DISABLED, and all of it is destroyed at a time; until that begins it can be given up.
    DestroyScheduled,
    /// All its versions are destroyed; a tombstone stays, and its name is never given again.
    Destroyed,
}

/// Where the material of a version comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Origin {
    /// The HSM generated it, and nobody else ever had it.
    Generated,
    /// Its owner sealed it to an import job.
    Imported,
}

impl Origin {
    /// Returns how many invocations its check values took: one of the server's, and before it one of the owner's.
    pub const fn check_invocations(self) -> u64 {
        match self {
            Self::Generated => 1,
            Self::Imported => 2,
        }
    }
}

macro_rules! names {
    ($type:ty { $($variant:path => $text:literal),+ $(,)? }) => {
        impl $type {
            /// All names.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// Returns the name used on the wire, in columns and in logs.
            pub const fn as_str(self) -> &'static str {
                match self { $($variant => $text),+ }
            }

            /// Reads the name; `None` when it is none of them.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($variant),)+ _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names!(Origin { Self::Generated => "GENERATED", Self::Imported => "IMPORTED" });
names!(Purpose { Self::Wrap => "WRAP" });
names!(Protection { Self::HsmWrapped => "HSM_WRAPPED", Self::HsmResident => "HSM_RESIDENT" });
names!(KeyState {
    Self::Enabled => "ENABLED",
    Self::Disabled => "DISABLED",
    Self::DestroyScheduled => "DESTROY_SCHEDULED",
    Self::Destroyed => "DESTROYED",
});
names!(Sensitivity { Self::Low => "LOW", Self::Medium => "MEDIUM", Self::High => "HIGH" });

/// The PKCS#11 CKA_ID of a token object: derived once from randomness, recorded, never parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct CkaId(pub [u8; 16]);

/// A key wrapped with AES-KWP (RFC 5649) under root `wrap`: 40 bytes for a 32-byte key.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey(pub Vec<u8>);

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappedKey({} bytes)", self.0.len())
    }
}

/// Where the material of one version is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// A blob under the root of the row's generation.
    Wrapped(WrappedKey),
    /// The token object with this CKA_ID.
    Resident(CkaId),
}

/// The check value of a key version: an AEAD of a fixed pattern, bound to uid and version. One invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckBlob {
    /// The IV of the invocation.
    pub iv: Iv,
    /// Ciphertext and tag.
    pub ciphertext_and_tag: Vec<u8>,
}

impl CheckBlob {
    /// The pattern that is encrypted; public by design.
    pub const PATTERN: &'static [u8; 16] = b"holdfast check 1";

    /// Returns the AAD of the check blob of a version, without its IV.
    pub fn aad(key_uid: KeyUid, version: KeyVersion) -> crate::envelope::Aad {
        let prefix = CanonicalWriter::new(domain::KEY_CHECK_AAD)
            .bytes(key_uid.as_bytes())
            .number(version.get().into())
            .finish();
        crate::envelope::Aad::from_prefix(prefix)
    }

    /// Returns the stored form: IV, then ciphertext and tag.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.iv[..], &self.ciphertext_and_tag].concat()
    }

    /// Reads the stored form; `None` when it is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (iv, rest) = bytes.split_first_chunk::<IV_BYTES>()?;
        Some(Self { iv: *iv, ciphertext_and_tag: rest.to_vec() })
    }
}

/// The row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Immutable uid.
    pub uid: KeyUid,
    /// Name.
    pub name: KeyName,
    /// Purpose.
    pub purpose: Purpose,
    /// Protection.
    pub protection: Protection,
    /// Whether it may be used at all.
    pub state: KeyState,
    /// Who answers for the key.
    pub owner: String,
    /// Sensitivity.
    pub sensitivity: Sensitivity,
    /// What the key is for.
    pub usage: String,
    /// Originator-usage period.
    pub cryptoperiod: Duration,
    /// Recipient-usage period: how long a version is to process what it protected; not shorter than the other.
    pub recipient_usage_period: Duration,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was changed last.
    pub update_time: Timestamp,
    /// Revision of this row.
    pub revision: Revision,
    /// The version that protects, as long as its state is ACTIVE.
    pub primary: KeyVersion,
    /// The highest version there is.
    pub latest: KeyVersion,
    /// How many consumers are registered; in this row, so that one that is taken away from its table shows.
    pub consumers: u32,
    /// Rotation by period, when it is wanted.
    pub rotation: Option<Rotation>,
    /// The planned destruction of the whole key; there exactly as long as the state is DESTROY_SCHEDULED.
    pub destruction: Option<KeyDestruction>,
}

impl KeyRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self {
            uid,
            name,
            purpose,
            protection,
            state,
            owner,
            sensitivity,
            usage,
            cryptoperiod,
            recipient_usage_period,
            labels,
            create_time,
            update_time,
            revision,
            primary,
            latest,
            consumers,
            rotation,
            destruction,
        } = self;
        let fixed = row("keys", uid.as_bytes(), *revision, generation)
            .text(name.tenant().id())
            .text(name.key_id())
            .text(purpose.as_str())
            .text(protection.as_str())
            .text(state.as_str())
            .text(owner)
            .text(sensitivity.as_str())
            .text(usage)
            .number(cryptoperiod.as_secs())
            .number(recipient_usage_period.as_secs())
            .signed(create_time.as_unix_ms())
            .signed(update_time.as_unix_ms())
            .number(primary.get().into())
            .number(latest.get().into())
            .number((*consumers).into());
        let fixed = match rotation {
            Some(Rotation { period, due }) => {
                fixed.number(period.as_secs()).signed(due.as_unix_ms())
            }
            None => fixed.bytes(&[]),
        };
        let fixed = match destruction {
            Some(KeyDestruction { time, despite_consumers, despite_recent_use, begun }) => fixed
                .signed(time.as_unix_ms())
                .number((*despite_consumers).into())
                .number((*despite_recent_use).into())
                .number((*begun).into()),
            None => fixed.bytes(&[]),
        };
        let fixed = fixed.number(labels.len() as u64);
        labels.iter().fold(fixed, |out, (key, value)| out.text(key).text(value)).finish()
    }
}

/// The row of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRow {
    /// The key.
    pub key_uid: KeyUid,
    /// The version number.
    pub version: KeyVersion,
    /// The stored state; see [`VersionRow::state_at`].
    pub state: VersionState,
    /// Where the material is.
    pub material: Material,
    /// The check value.
    pub check: CheckBlob,
    /// Where the material comes from.
    pub origin: Origin,
    /// When it was generated, or imported.
    pub create_time: Timestamp,
    /// When the state changed last.
    pub state_time: Timestamp,
    /// Why.
    pub state_reason: String,
    /// Which principal did it.
    pub state_actor: String,
    /// When it became ACTIVE first; in PRE_ACTIVATION when it is to, if that is planned; `None` when it never was.
    pub activate_time: Option<Timestamp>,
    /// When an ACTIVE version that was rolled over becomes DEACTIVATED.
    pub deactivate_time: Option<Timestamp>,
    /// The planned destruction; there exactly as long as the state is DESTROY_SCHEDULED.
    pub destruction: Option<Destruction>,
    /// Revision of this row.
    pub revision: Revision,
}

impl VersionRow {
    /// Returns the state in force at `now`: a planned deactivation holds from its time on, written down or not.
    pub fn state_at(&self, now: Timestamp) -> VersionState {
        match self.deactivate_time {
            Some(time) if self.state == VersionState::Active && time <= now => {
                VersionState::Deactivated
            }
            _ => self.state,
        }
    }

    /// Returns since when it is in use: its cryptoperiod counts from then.
    pub fn in_use_since(&self) -> Timestamp {
        self.activate_time.unwrap_or(self.create_time)
    }

    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self {
            key_uid,
            version,
            state,
            material,
            check,
            origin,
            create_time,
            state_time,
            state_reason,
            state_actor,
            activate_time,
            deactivate_time,
            destruction,
            revision,
        } = self;
        let primary_key = [&key_uid.as_bytes()[..], &version.get().to_be_bytes()].concat();
        let out = row("versions", &primary_key, *revision, generation).text(state.as_str());
        let out = match material {
            Material::Wrapped(WrappedKey(blob)) => out.text("wrapped").bytes(blob),
            Material::Resident(CkaId(id)) => out.text("resident").bytes(id),
        };
        let out = out
            .bytes(&check.to_bytes())
            .text(origin.as_str())
            .signed(create_time.as_unix_ms())
            .signed(state_time.as_unix_ms())
            .text(state_reason)
            .text(state_actor);
        let out = [activate_time, deactivate_time].into_iter().fold(out, |out, time| match time {
            Some(time) => out.signed(time.as_unix_ms()),
            None => out.bytes(&[]),
        });
        match destruction {
            Some(Destruction { time, returns_to, despite_consumers, despite_recent_use }) => out
                .signed(time.as_unix_ms())
                .text(returns_to.as_str())
                .number((*despite_consumers).into())
                .number((*despite_recent_use).into())
                .finish(),
            None => out.bytes(&[]).finish(),
        }
    }
}

/// The row that counts the invocations of a version, in leased blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// The key.
    pub key_uid: KeyUid,
    /// The version number.
    pub version: KeyVersion,
    /// Invocations handed out in leases so far; never less than those made.
    pub leased: u64,
    /// Revision of this row.
    pub revision: Revision,
}

impl CounterRow {
    /// Returns the bytes whose MAC is stored beside the row.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { key_uid, version, leased, revision } = self;
        let primary_key = [&key_uid.as_bytes()[..], &version.get().to_be_bytes()].concat();
        row("counters", &primary_key, *revision, generation).number(*leased).finish()
    }
}

/// A row with its MAC: the only form in which rows travel to and from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<R> {
    /// The row.
    pub row: R,
    /// Its MAC.
    pub mac: RowMac,
    /// The generation of the root whose `mac` key made it, and whose `wrap` key wraps the material.
    pub generation: RootGeneration,
}

pub(crate) fn row(
    table: &str,
    primary_key: &[u8],
    revision: Revision,
    generation: RootGeneration,
) -> CanonicalWriter {
    CanonicalWriter::new(domain::ROW_MAC)
        .text(table)
        .bytes(primary_key)
        .number(revision.get())
        .number(generation.get().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_row() -> VersionRow {
        VersionRow {
            key_uid: KeyUid::from_random([1; 16]),
            version: KeyVersion::FIRST,
            state: VersionState::Active,
            material: Material::Wrapped(WrappedKey(vec![2; 40])),
            check: CheckBlob { iv: [3; 12], ciphertext_and_tag: vec![4; 32] },
            origin: Origin::Generated,
            create_time: Timestamp::from_unix_ms(5),
            state_time: Timestamp::from_unix_ms(6),
            state_reason: "created".into(),
            state_actor: "spiffe://td/a".into(),
            activate_time: None,
            deactivate_time: None,
            destruction: None,
            revision: Revision::FIRST,
        }
    }

    #[test]
    fn planned_deactivation_holds_from_its_time_on() {
        let mut row = version_row();
        row.deactivate_time = Some(Timestamp::from_unix_ms(100));
        assert_eq!(row.state_at(Timestamp::from_unix_ms(99)), VersionState::Active);
        assert_eq!(row.state_at(Timestamp::from_unix_ms(100)), VersionState::Deactivated);
    }

    #[test]
    fn planned_deactivation_does_not_revive_a_compromised_version() {
        let mut row = version_row();
        row.state = VersionState::Compromised;
        row.deactivate_time = Some(Timestamp::from_unix_ms(100));
        assert_eq!(row.state_at(Timestamp::from_unix_ms(100)), VersionState::Compromised);
    }
}

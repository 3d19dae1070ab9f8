//! The audit record: what is written of every operation, and nothing else.
//!
//! A field can only be here on purpose: there is no free-form map, and no type in it can hold key bytes, a PIN, a
//! plaintext, a ciphertext or a token. Format: docs/formats.md, "Audit record".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::id::{EventId, IntentId, KeyUid, KeyVersion, Revision};
use crate::text::Text;

/// How a record relates to what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// One record tells all: crypto calls, refusals, reads.
    Complete,
    /// A mutation is about to happen.
    Intent,
    /// A mutation of an earlier intent happened, or not.
    Outcome,
}

/// What policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Decision {
    /// Allowed by the named policies.
    Allow {
        /// Ids of the policies that allowed it.
        policies: Vec<Text>,
    },
    /// Denied, by default or by the named policies.
    Deny {
        /// Ids of the policies that denied it; empty means the default.
        policies: Vec<Text>,
    },
    /// Policy was not reached: the request was refused before.
    NotReached,
}

/// How the encryption context stands in the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoggedContext {
    /// In the clear.
    Clear(BTreeMap<String, String>),
    /// As an HMAC under root `mac`, in hex.
    Hashed(String),
    /// The names of its pairs only, of a denied call: neither is the key known, which may want a hash, nor may a denied
    /// caller fill the log.
    Names(Vec<String>),
}

/// The manifest after a mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestStamp {
    /// Its revision.
    pub revision: Revision,
    /// Digest of its rows, in hex.
    pub digest: String,
}

/// A counter row after a lease was taken or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStamp {
    /// Its revision.
    pub revision: Revision,
    /// Invocations handed out in leases so far.
    pub leased: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When, on the server's wall clock.
    pub time: Timestamp,
    /// Id of the request; a batch's items share it and differ in `item`.
    pub event_id: EventId,
    /// Index of the item in its batch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub item: Option<u32>,
    /// How the record relates to what happened.
    pub phase: Phase,
    /// The intent, for intents and outcomes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub intent_id: Option<IntentId>,
    /// Full name of the operation, `kms.v1.CryptoService/Wrap`, or `internal/<name>`.
    pub operation: Text,
    /// Who; empty when not authenticated.
    pub principal: Text,
    /// How the principal was authenticated: `mtls`, `internal` or `none`.
    pub authn_method: Text,
    /// Address and port of the peer.
    pub source: String,
    /// Tenant id; empty when not known.
    pub tenant: Text,
    /// Resource name as the caller gave it, when it was well-formed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource: Option<Text>,
    /// Key, when known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_uid: Option<KeyUid>,
    /// Version, when known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version: Option<KeyVersion>,
    /// Version that a rewrap found the ciphertext under.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_version: Option<KeyVersion>,
    /// Encryption context, when there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context: Option<LoggedContext>,
    /// What policy said.
    pub decision: Decision,
    /// Revision of the policy that said it.
    pub policy_revision: Text,
    /// `OK`, or the reason of the error.
    pub result: Text,
    /// Why, as the caller of a rotation, suspension or resumption said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Time in the HSM queue, microseconds.
    pub queue_us: u32,
    /// Time in the HSM, microseconds; queue included where a call failed, for generated keys and for random bytes.
    pub hsm_us: u32,
    /// State of the tenant's rows after a mutation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub manifest: Option<ManifestStamp>,
    /// The counter of a key version after a lease.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counter: Option<CounterStamp>,
    /// How many calls the record stands for, when refused ones were aggregated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

/// What a pair or a name takes beside its bytes: the quotes in JSON, the places of its strings in memory.
const PART_BYTES: usize = 48;

impl AuditRecord {
    /// Returns about how many bytes the record takes, in memory as in JSON; what JSON escapes is not counted. Cheap: it adds
    /// up lengths.
    pub fn estimated_bytes(&self) -> usize {
        let Self {
            time: _,
            event_id: _,
            item: _,
            phase: _,
            intent_id: _,
            operation,
            principal,
            authn_method,
            source,
            tenant,
            resource,
            key_uid: _,
            key_version: _,
            from_version: _,
            context,
            decision,
            policy_revision,
            result,
            reason,
            queue_us: _,
            hsm_us: _,
            manifest,
            counter: _,
            count: _,
        } = self;
        // Fields of fixed length and the names of all fields come to about as much.
        size_of::<Self>()
            + [operation, principal, authn_method, tenant, policy_revision, result]
                .iter()
                .map(|text| text.len())
                .sum::<usize>()
            + source.len()
            + resource.as_ref().map_or(0, |text| text.len())
            + context.as_ref().map_or(0, LoggedContext::estimated_bytes)
            + decision.estimated_bytes()
            + reason.as_ref().map_or(0, String::len)
            + manifest.as_ref().map_or(0, |stamp| stamp.digest.len())
    }
}

impl Decision {
    fn estimated_bytes(&self) -> usize {
        match self {
            Self::Allow { policies } | Self::Deny { policies } => {
                policies.iter().map(|id| id.len() + PART_BYTES).sum()
            }
            Self::NotReached => 0,
        }
    }
}

impl LoggedContext {
    fn estimated_bytes(&self) -> usize {
        match self {
            Self::Clear(pairs) => {
                pairs.iter().map(|(key, value)| key.len() + value.len() + PART_BYTES).sum()
            }
            Self::Hashed(hash) => hash.len(),
            Self::Names(names) => names.iter().map(|name| name.len() + PART_BYTES).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            time: Timestamp::from_unix_ms(1_700_000_000_000),
            event_id: EventId::from_random([1; 16]),
            item: None,
            phase: Phase::Complete,
            intent_id: None,
            operation: "kms.v1.CryptoService/Wrap".into(),
            principal: "spiffe://holdfast.test/app".into(),
            authn_method: "mtls".into(),
            source: "192.0.2.1:40000".into(),
            tenant: "t1".into(),
            resource: Some("tenants/t1/keys/k1".into()),
            key_uid: Some(KeyUid::from_random([2; 16])),
            key_version: Some(KeyVersion::FIRST),
            from_version: None,
            context: None,
            decision: Decision::Allow { policies: vec!["static".into()] },
            policy_revision: "f".repeat(64).into(),
            result: "OK".into(),
            reason: None,
            queue_us: 10,
            hsm_us: 20,
            manifest: None,
            counter: None,
            count: None,
        }
    }

    #[test]
    fn the_estimate_is_near_the_length_of_the_json() {
        let long = || "x".repeat(1000);
        let contexts = [
            None,
            Some(LoggedContext::Hashed(long())),
            Some(LoggedContext::Clear((0..32).map(|n| (format!("key-{n}"), long())).collect())),
            Some(LoggedContext::Names(vec![long(), long()])),
        ];
        let decisions = [Decision::NotReached, Decision::Deny { policies: vec![long().into(); 9] }];
        let plain = record();
        let records = contexts.into_iter().map(|context| AuditRecord { context, ..plain.clone() });
        let records = records.chain(decisions.map(|decision| AuditRecord { decision, ..record() }));
        let records = records.chain([
            AuditRecord { reason: Some(long()), ..record() },
            AuditRecord { source: long(), ..record() },
            AuditRecord { principal: long().into(), resource: Some(long().into()), ..record() },
        ]);
        for record in records {
            let (estimate, json) =
                (record.estimated_bytes(), serde_json::to_vec(&record).unwrap().len());
            assert!(json <= estimate && estimate <= 2 * json, "{estimate}, {json}: {record:?}");
        }
    }
}

//! The records of leases in the audit log: the database can be put back to what it once was, the log only grows.

use std::sync::Arc;

use kms_core::audit::{AuditRecord, CounterStamp, Decision, Phase};
use kms_core::clock::Clock;
use kms_core::id::{EventId, Randomness};
use kms_core::key::CounterRow;
use kms_core::name::KeyName;
use kms_core::text::Text;

use super::KeyringError;
use crate::audit::{AuditError, SharedAuditSink};

/// Operation of the record of a counter that changed.
pub const LEASE_OPERATION: &str = "internal/Lease";
/// Where internal operations come from.
const NOWHERE: &str = "0.0.0.0:0";

/// Writes a record for each counter that changed.
#[derive(Debug)]
pub(super) struct LeaseLog {
    pub(super) audit: SharedAuditSink,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) randomness: Arc<dyn Randomness>,
}

impl LeaseLog {
    /// Refuses while the log is known to be unwritable: nothing is to be leased in vain.
    pub(super) fn check(&self) -> Result<(), AuditError> {
        if self.audit.healthy() {
            return Ok(());
        }
        let detail = "no invocations are leased until it can be written again".into();
        Err(AuditError::Unwritable { detail })
    }

    /// Writes one record a row, all in one append, and waits until they are durable.
    pub(super) async fn record<'a>(
        &self,
        rows: impl Iterator<Item = (&'a KeyName, &'a CounterRow)>,
    ) -> Result<(), KeyringError> {
        let records: Option<Vec<_>> = rows.map(|(key, row)| self.entry(key, row)).collect();
        let records = records.ok_or(KeyringError::Bug { reason: "no randomness for ids" })?;
        if records.is_empty() {
            return Ok(());
        }
        Ok(self.audit.append(records).await?)
    }

    fn entry(&self, key: &KeyName, row: &CounterRow) -> Option<AuditRecord> {
        Some(AuditRecord {
            time: self.clock.now(),
            event_id: EventId::from_random(self.randomness.draw()?),
            item: None,
            phase: Phase::Complete,
            intent_id: None,
            operation: LEASE_OPERATION.into(),
            principal: "internal".into(),
            authn_method: "internal".into(),
            source: NOWHERE.to_owned(),
            tenant: key.tenant().shared_id().into(),
            resource: Some(key.to_string().into()),
            key_uid: Some(row.key_uid),
            key_version: Some(row.version),
            from_version: None,
            context: None,
            // It is the server's own doing: no policy is asked.
            decision: Decision::NotReached,
            policy_revision: Text::default(),
            result: "OK".into(),
            reason: None,
            queue_us: 0,
            hsm_us: 0,
            manifest: None,
            counter: Some(CounterStamp { revision: row.revision, leased: row.leased }),
            count: None,
        })
    }
}

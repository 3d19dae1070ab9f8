//! Refusals that no use-case saw, folded into few audit records.
//!
//! They are refused in any case, so their records are not waited for; what cannot be written shows in the sink's health.

use std::net::SocketAddr;
use std::sync::Arc;

use kms_core::audit::{AuditRecord, Decision, Phase};
use kms_core::clock::Clock;
use kms_core::text::Text;

use crate::audit::aggregate::Bounds;
use crate::audit::refusals::Refusals;
use crate::audit::{AuditError, SharedAuditSink};
use crate::transport::event_id::new_event_id;
use crate::transport::grpc::RefusalLog;

/// The log of refusals.
#[derive(Debug)]
pub(super) struct FoldedRefusals {
    refusals: Refusals,
    sink: SharedAuditSink,
    clock: Arc<dyn Clock>,
}

impl FoldedRefusals {
    pub(super) fn new(sink: SharedAuditSink, clock: Arc<dyn Clock>) -> Self {
        let bounds = Bounds::UNAUTHENTICATED;
        let refusals = Refusals::new(Arc::clone(&sink), Arc::clone(&clock), bounds);
        Self { refusals, sink, clock }
    }

    /// Writes the records of windows that have ended.
    ///
    /// # Errors
    /// When they could not be written; they are counted on then.
    pub(super) async fn tick(&self) -> Result<(), AuditError> {
        self.refusals.tick().await
    }

    /// Writes what is left, at the end.
    ///
    /// # Errors
    /// As for [`FoldedRefusals::tick`].
    pub(super) async fn finish(&self) -> Result<(), AuditError> {
        self.refusals.finish().await
    }
}

impl RefusalLog for FoldedRefusals {
    fn refused(&self, source: SocketAddr, operation: &'static str, reason: &'static str) {
        let Some(event_id) = new_event_id() else { return };
        let record = AuditRecord {
            time: self.clock.now(),
            event_id,
            item: None,
            phase: Phase::Complete,
            intent_id: None,
            operation: operation.into(),
            principal: Text::default(),
            authn_method: "none".into(),
            source: source.to_string(),
            tenant: Text::default(),
            resource: None,
            key_uid: None,
            key_version: None,
            from_version: None,
            context: None,
            decision: Decision::NotReached,
            policy_revision: Text::default(),
            result: reason.into(),
            reason: None,
            queue_us: 0,
            hsm_us: 0,
            manifest: None,
            counter: None,
            count: None,
        };
        if let Some(record) = self.refusals.fold(record) {
            // Nobody waits for it: the call is refused in any case.
            drop(self.sink.append(vec![record]));
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{ManualClock, Timestamp};

    use super::*;
    use crate::audit::MemorySink;

    #[tokio::test]
    async fn a_flood_of_refusals_becomes_two_records() {
        let sink = Arc::new(MemorySink::new(16));
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix_ms(0)));
        let refusals = FoldedRefusals::new(Arc::clone(&sink) as _, Arc::clone(&clock) as _);
        for port in 1..=100 {
            refusals.refused(([192, 0, 2, 1], port).into(), "unknown", "CERT_EXPIRED");
        }
        refusals.tick().await.unwrap();
        assert_eq!(sink.records().len(), 1);
        clock.advance(crate::audit::aggregate::WINDOW);
        refusals.tick().await.unwrap();
        let records = sink.records();
        assert_eq!(records.len(), 2);
        assert_eq!(records.last().unwrap().count, Some(99));
        assert_eq!(records.last().unwrap().result, "CERT_EXPIRED");
    }
}

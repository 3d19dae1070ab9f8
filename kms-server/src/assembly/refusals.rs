//! Refusals that no use-case saw, folded into few audit records.
//!
//! They are refused in any case, so their records are not waited for; what cannot be written shows in the sink's health.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use kms_core::audit::{AuditRecord, Decision, Phase};
use kms_core::clock::Clock;

use crate::audit::SharedAuditSink;
use crate::audit::aggregate::{Aggregator, Fold};
use crate::transport::event_id::new_event_id;
use crate::transport::grpc::RefusalLog;

/// The log of refusals.
#[derive(Debug)]
pub(super) struct FoldedRefusals {
    aggregator: Mutex<Aggregator>,
    sink: SharedAuditSink,
    clock: Arc<dyn Clock>,
}

impl FoldedRefusals {
    pub(super) fn new(sink: SharedAuditSink, clock: Arc<dyn Clock>) -> Self {
        Self { aggregator: Mutex::default(), sink, clock }
    }

    /// Writes the records of windows that have ended.
    pub(super) fn tick(&self) {
        let records = self.with(|aggregator| aggregator.tick(self.clock.monotonic()));
        self.write(records);
    }

    /// Writes what is left, at the end.
    pub(super) fn finish(&self) {
        let records = self.with(Aggregator::drain);
        self.write(records);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Aggregator) -> T) -> T {
        work(&mut self.aggregator.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, records: Vec<AuditRecord>) {
        if !records.is_empty() {
            drop(self.sink.append(records));
        }
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
            operation: operation.to_owned(),
            principal: String::new(),
            authn_method: "none".to_owned(),
            source: source.to_string(),
            tenant: String::new(),
            resource: None,
            key_uid: None,
            key_version: None,
            from_version: None,
            context: None,
            decision: Decision::NotReached,
            policy_revision: String::new(),
            result: reason.to_owned(),
            reason: None,
            queue_us: 0,
            hsm_us: 0,
            manifest: None,
            count: None,
        };
        let now = self.clock.monotonic();
        if let Fold::Record(record) = self.with(|aggregator| aggregator.fold(record, now)) {
            self.write(vec![*record]);
        }
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{ManualClock, Timestamp};

    use super::*;
    use crate::audit::MemorySink;

    #[test]
    fn a_flood_of_refusals_becomes_two_records() {
        let sink = Arc::new(MemorySink::new(16));
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix_ms(0)));
        let refusals = FoldedRefusals::new(Arc::clone(&sink) as _, Arc::clone(&clock) as _);
        for port in 1..=100 {
            refusals.refused(([192, 0, 2, 1], port).into(), "unknown", "CERT_EXPIRED");
        }
        refusals.tick();
        assert_eq!(sink.records().len(), 1);
        clock.advance(crate::audit::aggregate::WINDOW);
        refusals.tick();
        let records = sink.records();
        assert_eq!(records.len(), 2);
        assert_eq!(records.last().unwrap().count, Some(99));
        assert_eq!(records.last().unwrap().result, "CERT_EXPIRED");
    }
}

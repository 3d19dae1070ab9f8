//! Refused calls of callers with a principal: folded on their way to the sink.

use std::sync::{Arc, Mutex, PoisonError};

use kms_core::audit::AuditRecord;
use kms_core::clock::Clock;

use super::aggregate::{Aggregator, Bounds, Fold};
use super::{AuditError, SharedAuditSink};

/// Counts refused calls until their window ends.
#[derive(Debug)]
pub struct Refusals {
    aggregator: Mutex<Aggregator>,
    sink: SharedAuditSink,
    clock: Arc<dyn Clock>,
}

impl Refusals {
    /// Makes one that writes to `sink`.
    pub fn new(sink: SharedAuditSink, clock: Arc<dyn Clock>, bounds: Bounds) -> Self {
        Self { aggregator: Mutex::new(Aggregator::new(bounds)), sink, clock }
    }

    /// Takes the record of a refused call; gives it back when it must be appended as it is.
    pub fn fold(&self, record: AuditRecord) -> Option<AuditRecord> {
        let now = self.clock.monotonic();
        match self.with(|aggregator| aggregator.fold(record, now)) {
            Fold::Record(record) => Some(*record),
            Fold::Counted => None,
        }
    }

    /// Writes the records of windows that have ended.
    ///
    /// # Errors
    /// When they could not be written; they are counted on then.
    pub async fn tick(&self) -> Result<(), AuditError> {
        let now = self.clock.monotonic();
        let records = self.with(|aggregator| aggregator.tick(now));
        self.write(records).await
    }

    /// Writes what is left, ended or not.
    ///
    /// # Errors
    /// As for [`Refusals::tick`].
    pub async fn finish(&self) -> Result<(), AuditError> {
        let records = self.with(Aggregator::drain);
        self.write(records).await
    }

    async fn write(&self, records: Vec<AuditRecord>) -> Result<(), AuditError> {
        if records.is_empty() {
            return Ok(());
        }
        let written = self.sink.append(records.clone()).await;
        if written.is_err() {
            let now = self.clock.monotonic();
            self.with(|aggregator| {
                for record in records {
                    aggregator.put_back(record, now);
                }
            });
        }
        written
    }

    fn with<T>(&self, work: impl FnOnce(&mut Aggregator) -> T) -> T {
        work(&mut self.aggregator.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! A sink that keeps the last records in memory: for benches and tests.
//!
//! It makes nothing durable and is never what a server runs on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kms_core::audit::{AuditRecord, ManifestStamp};

use super::file::Size;
use super::{Appended, AuditError, AuditSink, Past};

/// A bounded list of records.
#[derive(Debug)]
pub struct MemorySink {
    capacity: usize,
    kept: Mutex<Kept>,
    refusing: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<AuditRecord>,
    total: u64,
    past: Past,
    closed: bool,
}

impl MemorySink {
    /// Makes a sink that keeps the last `capacity` records.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, kept: Mutex::default(), refusing: AtomicBool::new(false) }
    }

    /// Returns the records that are kept, oldest first.
    pub fn records(&self) -> Vec<AuditRecord> {
        self.kept().records.iter().cloned().collect()
    }

    /// Returns how many records were appended in all.
    pub fn total(&self) -> u64 {
        self.kept().total
    }

    /// Makes the sink refuse, as on a full disk, or accept again.
    pub fn refuse(&self, refusing: bool) {
        self.refusing.store(refusing, Ordering::Release);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditSink for MemorySink {
    fn append(&self, records: Vec<AuditRecord>) -> Appended {
        if !self.healthy() {
            let detail = "told to refuse".into();
            return Appended::ready(Err(AuditError::Unwritable { detail }));
        }
        if !Size::of(&records).fits() {
            return Appended::ready(Err(AuditError::Saturated));
        }
        let mut kept = self.kept();
        if kept.closed {
            return Appended::ready(Err(AuditError::Closed));
        }
        for record in records {
            kept.total = kept.total.saturating_add(1);
            kept.past.note(&record);
            if kept.records.len() >= self.capacity {
                kept.records.pop_front();
            }
            if self.capacity > 0 {
                kept.records.push_back(record);
            }
        }
        Appended::ready(Ok(()))
    }

    fn healthy(&self) -> bool {
        !self.refusing.load(Ordering::Acquire)
    }

    fn past(&self) -> Past {
        self.kept().past.clone()
    }

    fn last_manifest(&self, tenant: &str) -> Option<ManifestStamp> {
        self.kept().past.stamps().get(tenant).cloned()
    }

    fn close(&self) {
        self.kept().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::sample::record;
    use crate::audit::suite::{Bench, sink_suite};

    struct InMemory(MemorySink);

    impl InMemory {
        fn new() -> Self {
            Self(MemorySink::new(1000))
        }
    }

    impl Bench for InMemory {
        fn sink(&self) -> &dyn AuditSink {
            &self.0
        }

        fn kept(&self) -> Vec<AuditRecord> {
            self.0.records()
        }

        fn fail(&self, failing: bool) {
            self.0.refuse(failing);
        }
    }

    sink_suite!(InMemory::new());

    #[tokio::test]
    async fn the_last_records_are_kept_up_to_the_capacity() {
        let sink = MemorySink::new(2);
        sink.append(vec![record(1), record(2)]).await.unwrap();
        assert_eq!(sink.records(), [record(1), record(2)]);
        sink.append(vec![record(3)]).await.unwrap();
        assert_eq!(sink.records(), [record(2), record(3)]);
        assert_eq!(sink.total(), 3);
    }
}

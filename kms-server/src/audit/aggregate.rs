//! Folds floods of refused calls, so that they cannot fill the disk.
//!
//! The first refused call of a (source address, operation, reason) is recorded as it is; those that follow within a
//! window are counted, and one record with `count` stands for them when the window ends. Only calls that had no effect
//! come here: a successful operation, an intent or an outcome always has a record of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kms_core::audit::{AuditRecord, Decision, Phase};

/// Refused calls of one kind are folded for this long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The most kinds that are counted at once: about 1 MiB. All further ones share one record.
pub const MAX_KINDS: usize = 4096;

/// What makes refused calls alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// The address without the port, which changes with every connection.
    address: String,
    operation: String,
    result: String,
}

#[derive(Debug)]
struct Folded {
    since: Instant,
    /// The last of the folded calls; `None` until a second one came.
    last: Option<AuditRecord>,
    count: u64,
}

/// What to do with a refused call's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Append it now.
    Record(Box<AuditRecord>),
    /// It is counted; its record comes from a later [`Aggregator::tick`].
    Counted,
}

/// Counts refused calls. Time is passed in; nothing here waits.
#[derive(Debug)]
pub struct Aggregator {
    window: Duration,
    max_kinds: usize,
    kinds: HashMap<Kind, Folded>,
    overflow: Option<Folded>,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::new(WINDOW, MAX_KINDS)
    }
}

impl Aggregator {
    /// Makes an aggregator that folds for `window` and counts at most `max_kinds` at once.
    pub fn new(window: Duration, max_kinds: usize) -> Self {
        Self { window, max_kinds, kinds: HashMap::new(), overflow: None }
    }

    /// Returns whether a record may be folded: it is of a call that was refused and had no effect.
    pub fn is_foldable(record: &AuditRecord) -> bool {
        let refused = match record.decision {
            Decision::Deny { .. } | Decision::NotReached => true,
            Decision::Allow { .. } => false,
        };
        refused && record.phase == Phase::Complete && record.result != "OK"
    }

    /// Takes the record of a refused call at `now`. A record that may not be folded comes straight back.
    pub fn fold(&mut self, record: AuditRecord, now: Instant) -> Fold {
        if !Self::is_foldable(&record) {
            return Fold::Record(Box::new(record));
        }
        let kind = Kind {
            address: address(&record.source).to_owned(),
            operation: record.operation.clone(),
            result: record.result.clone(),
        };
        if let Some(folded) = self.kinds.get_mut(&kind) {
            folded.add(record);
            return Fold::Counted;
        }
        if self.kinds.len() < self.max_kinds {
            self.kinds.insert(kind, Folded { since: now, last: None, count: 0 });
            return Fold::Record(Box::new(record));
        }
        self.overflow.get_or_insert(Folded { since: now, last: None, count: 0 }).add(record);
        Fold::Counted
    }

    /// Returns the records of the windows that have ended at `now`.
    pub fn tick(&mut self, now: Instant) -> Vec<AuditRecord> {
        let window = self.window;
        let has_ended = |folded: &Folded| now.saturating_duration_since(folded.since) >= window;
        let mut records: Vec<_> = self
            .kinds
            .extract_if(|_, folded| has_ended(folded))
            .filter_map(|(_, folded)| folded.finish())
            .collect();
        records.extend(self.overflow.take_if(|folded| has_ended(folded)).and_then(finish_overflow));
        records.sort_by_key(|record| record.time);
        records
    }

    /// Returns the records of all windows, ended or not: for the end of the process.
    pub fn drain(&mut self) -> Vec<AuditRecord> {
        let overflow = self.overflow.take().and_then(finish_overflow);
        let mut records: Vec<_> =
            self.kinds.drain().filter_map(|(_, folded)| folded.finish()).chain(overflow).collect();
        records.sort_by_key(|record| record.time);
        records
    }
}

impl Folded {
    fn add(&mut self, record: AuditRecord) {
        self.count = self.count.saturating_add(record.count.unwrap_or(1));
        self.last = Some(record);
    }

    /// The last call stands for all: it names the principal and the resource as an example.
    fn finish(self) -> Option<AuditRecord> {
        let count = self.count;
        self.last.map(|record| AuditRecord { count: Some(count), ..record })
    }
}

/// Calls of several kinds have nothing in common that one record could say of them.
fn finish_overflow(folded: Folded) -> Option<AuditRecord> {
    folded.finish().map(|record| AuditRecord {
        operation: "internal/refused-calls".into(),
        principal: String::new(),
        authn_method: "none".into(),
        source: String::new(),
        tenant: String::new(),
        resource: None,
        key_uid: None,
        key_version: None,
        context: None,
        decision: Decision::NotReached,
        result: "VARIOUS".into(),
        ..record
    })
}

/// `192.0.2.1:443` and `[2001:db8::1]:443` without the port.
fn address(source: &str) -> &str {
    match source.rsplit_once(':') {
        Some((address, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => address,
        _ => source,
    }
}

#[cfg(test)]
mod tests {
    use kms_core::clock::{Clock as _, ManualClock, Timestamp};

    use super::*;
    use crate::audit::sample::record;

    fn clock() -> ManualClock {
        ManualClock::new(Timestamp::from_unix_ms(0))
    }

    fn refused(source: &str) -> AuditRecord {
        AuditRecord {
            source: source.into(),
            decision: Decision::NotReached,
            result: "UNAUTHENTICATED".into(),
            ..record(1)
        }
    }

    #[test]
    fn the_first_refused_call_is_recorded_and_the_flood_behind_it_counted() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        let first = aggregator.fold(refused("192.0.2.1:1000"), clock.monotonic());
        assert_eq!(first, Fold::Record(Box::new(refused("192.0.2.1:1000"))));
        for port in 0..1000 {
            let folded = aggregator.fold(refused(&format!("192.0.2.1:{port}")), clock.monotonic());
            assert_eq!(folded, Fold::Counted);
        }
        clock.advance(WINDOW.saturating_sub(Duration::from_millis(1)));
        assert_eq!(aggregator.tick(clock.monotonic()), []);
        clock.advance(Duration::from_millis(1));
        let records = aggregator.tick(clock.monotonic());
        assert_eq!(records, [AuditRecord { count: Some(1000), ..refused("192.0.2.1:999") }]);
        assert_eq!(aggregator.tick(clock.monotonic()), []);
    }

    #[test]
    fn a_single_refused_call_leaves_one_record_only() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        let _ = aggregator.fold(refused("192.0.2.1:1000"), clock.monotonic());
        clock.advance(WINDOW);
        assert_eq!(aggregator.tick(clock.monotonic()), []);
        let next = aggregator.fold(refused("192.0.2.1:1000"), clock.monotonic());
        assert!(matches!(next, Fold::Record(_)));
    }

    #[test]
    fn other_addresses_operations_and_reasons_are_kept_apart() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        let base = refused("[2001:db8::1]:1");
        for record in [
            base.clone(),
            refused("[2001:db8::2]:1"),
            AuditRecord { operation: "kms.v1.CryptoService/Unwrap".into(), ..base.clone() },
            AuditRecord { result: "PERMISSION_DENIED".into(), ..base },
        ] {
            assert!(matches!(aggregator.fold(record, clock.monotonic()), Fold::Record(_)));
        }
    }

    #[test]
    fn what_succeeded_or_had_an_effect_is_never_folded() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        for record in [
            record(1),
            AuditRecord { result: "HSM_UNAVAILABLE".into(), ..record(1) },
            AuditRecord { result: "OK".into(), ..refused("192.0.2.1:1") },
            AuditRecord { phase: Phase::Intent, ..refused("192.0.2.1:1") },
            AuditRecord { phase: Phase::Outcome, ..refused("192.0.2.1:1") },
        ] {
            for _ in 0..2 {
                let folded = aggregator.fold(record.clone(), clock.monotonic());
                assert_eq!(folded, Fold::Record(Box::new(record.clone())));
            }
        }
        assert_eq!(aggregator.drain(), []);
    }

    #[test]
    fn kinds_at_the_limit_are_counted_each_and_all_further_ones_together() {
        let (clock, mut aggregator) = (clock(), Aggregator::new(WINDOW, 2));
        for host in 1..=2 {
            let record = refused(&format!("192.0.2.{host}:1"));
            assert!(matches!(aggregator.fold(record, clock.monotonic()), Fold::Record(_)));
        }
        for host in 3..=50 {
            let record = refused(&format!("192.0.2.{host}:1"));
            assert_eq!(aggregator.fold(record, clock.monotonic()), Fold::Counted);
        }
        let records = aggregator.drain();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].count, Some(48));
        assert_eq!((records[0].source.as_str(), records[0].result.as_str()), ("", "VARIOUS"));
    }
}

//! Folds floods of refused calls, so that they cannot fill the disk.
//!
//! The first refused calls of a kind (principal, network, operation, reason) are recorded as they are; those that follow
//! within a window are counted, and one record with `count` stands for them when the window ends. Only calls that had no
//! effect come here: a successful operation, an intent or an outcome always has a record of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use kms_core::audit::{AuditRecord, Decision, Phase};

/// Refused calls of one kind are folded for this long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The most kinds that are counted at once: about 1 MiB. All further ones share one record.
pub const MAX_KINDS: usize = 4096;
/// Refused calls of a principal that are recorded as they are, a kind and window: enough to see what is tried.
pub const WHOLE_OF_KIND: u64 = 64;
/// Refused calls that are recorded as they are, in all, a window: about 60 KB/s, whoever floods.
pub const WHOLE_IN_ALL: u64 = 1024;

/// How much an [`Aggregator`] lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long calls of one kind are folded.
    pub window: Duration,
    /// The most kinds that are counted at once.
    pub max_kinds: usize,
    /// How many of a kind are recorded as they are.
    pub whole_of_kind: u64,
    /// How many are recorded as they are, of all kinds.
    pub whole_in_all: u64,
}

impl Bounds {
    /// For callers without a principal: anyone can be one, and their records say little.
    pub const UNAUTHENTICATED: Self = Self {
        window: WINDOW,
        max_kinds: MAX_KINDS,
        whole_of_kind: 1,
        whole_in_all: MAX_KINDS as u64,
    };
    /// For callers with a principal.
    pub const AUTHENTICATED: Self = Self {
        window: WINDOW,
        max_kinds: MAX_KINDS,
        whole_of_kind: WHOLE_OF_KIND,
        whole_in_all: WHOLE_IN_ALL,
    };
}

/// What makes refused calls alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    principal: String,
    network: String,
    operation: String,
    result: String,
}

impl Kind {
    fn of(record: &AuditRecord) -> Self {
        Self {
            principal: record.principal.clone(),
            network: network(&record.source),
            operation: record.operation.clone(),
            result: record.result.clone(),
        }
    }
}

#[derive(Debug)]
struct Folded {
    since: Instant,
    /// How many have a record of their own.
    whole: u64,
    /// The last of the folded calls.
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
    bounds: Bounds,
    kinds: HashMap<Kind, Folded>,
    overflow: Option<Folded>,
    /// Since when, and how many were recorded as they are, of all kinds.
    whole: Option<(Instant, u64)>,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::new(Bounds::UNAUTHENTICATED)
    }
}

impl Aggregator {
    /// Makes an aggregator.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, kinds: HashMap::new(), overflow: None, whole: None }
    }

    /// Takes the record of a refused call at `now`. What succeeded, or belongs to a mutation, comes straight back.
    pub fn fold(&mut self, record: AuditRecord, now: Instant) -> Fold {
        if record.phase != Phase::Complete || record.result == "OK" {
            return Fold::Record(Box::new(record));
        }
        let bounds = self.bounds;
        let (since, whole) = self
            .whole
            .filter(|(since, _)| now.saturating_duration_since(*since) < bounds.window)
            .unwrap_or((now, 0));
        let folded = self.place(&record, now);
        let room = folded.whole < bounds.whole_of_kind && whole < bounds.whole_in_all;
        if room {
            folded.whole += 1;
            self.whole = Some((since, whole + 1));
            return Fold::Record(Box::new(record));
        }
        folded.add(record);
        Fold::Counted
    }

    /// Takes back a record that could not be written: its calls are counted on.
    pub fn put_back(&mut self, record: AuditRecord, now: Instant) {
        self.place(&record, now).add(record);
    }

    /// Returns where calls like this one are counted.
    fn place(&mut self, record: &AuditRecord, now: Instant) -> &mut Folded {
        let folded = |whole| Folded { since: now, whole, last: None, count: 0 };
        let has_room = self.kinds.len() < self.bounds.max_kinds;
        match self.kinds.entry(Kind::of(record)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if has_room => new.insert(folded(0)),
            // None of them has a record of its own.
            Entry::Vacant(_) => self.overflow.get_or_insert_with(|| folded(u64::MAX)),
        }
    }

    /// Returns the records of the windows that have ended at `now`.
    pub fn tick(&mut self, now: Instant) -> Vec<AuditRecord> {
        let window = self.bounds.window;
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
        from_version: None,
        reason: None,
        context: None,
        decision: Decision::NotReached,
        result: "VARIOUS".into(),
        ..record
    })
}

/// Returns the address without the port, which changes with every connection; of IPv6 the first 64 bits, as a host
/// chooses the others itself.
fn network(source: &str) -> String {
    let Ok(source) = source.parse::<SocketAddr>() else { return source.to_owned() };
    match source.ip().to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).to_string(),
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
    fn other_principals_networks_operations_and_reasons_are_kept_apart() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        let base = refused("[2001:db8::1]:1");
        for record in [
            base.clone(),
            refused("[2001:db8:0:1::1]:1"),
            AuditRecord { principal: "spiffe://td/other".into(), ..base.clone() },
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
        let (clock, mut aggregator) =
            (clock(), Aggregator::new(Bounds { max_kinds: 2, ..Bounds::UNAUTHENTICATED }));
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
    #[test]
    fn hosts_of_one_ipv6_network_are_one_source_and_so_is_a_mapped_address() {
        for (first, second) in [
            ("[2001:db8::1]:1", "[2001:db8::ffff:ffff:ffff:ffff]:2"),
            ("192.0.2.1:1", "[::ffff:192.0.2.1]:2"),
        ] {
            let (clock, mut aggregator) = (clock(), Aggregator::default());
            let _ = aggregator.fold(refused(first), clock.monotonic());
            assert_eq!(aggregator.fold(refused(second), clock.monotonic()), Fold::Counted);
        }
    }

    #[test]
    fn as_many_of_a_kind_as_allowed_are_recorded_and_the_next_is_counted() {
        let (clock, mut aggregator) = (clock(), Aggregator::new(Bounds::AUTHENTICATED));
        for _ in 0..WHOLE_OF_KIND {
            let folded = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
            assert!(matches!(folded, Fold::Record(_)));
        }
        let folded = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
        assert_eq!(folded, Fold::Counted);
        clock.advance(WINDOW);
        assert_eq!(aggregator.tick(clock.monotonic())[0].count, Some(1));
        let folded = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
        assert!(matches!(folded, Fold::Record(_)), "a new window");
    }

    #[test]
    fn as_many_in_all_as_allowed_are_recorded_and_the_next_of_any_kind_is_counted() {
        let (clock, mut aggregator) = (clock(), Aggregator::new(Bounds::AUTHENTICATED));
        let hosts = WHOLE_IN_ALL / WHOLE_OF_KIND;
        for host in 0..hosts {
            for _ in 0..WHOLE_OF_KIND {
                let record = refused(&format!("192.0.2.{host}:1"));
                assert!(matches!(aggregator.fold(record, clock.monotonic()), Fold::Record(_)));
            }
        }
        let one_more = || refused("192.0.2.200:1");
        assert_eq!(aggregator.fold(one_more(), clock.monotonic()), Fold::Counted);
        clock.advance(WINDOW);
        assert_eq!(aggregator.tick(clock.monotonic()).len(), 1);
        assert!(matches!(aggregator.fold(one_more(), clock.monotonic()), Fold::Record(_)));
    }

    #[test]
    fn what_could_not_be_written_is_counted_on() {
        let (clock, mut aggregator) = (clock(), Aggregator::default());
        for _ in 0..11 {
            let _ = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
        }
        clock.advance(WINDOW);
        let records = aggregator.tick(clock.monotonic());
        assert_eq!(records[0].count, Some(10));
        for record in records {
            aggregator.put_back(record, clock.monotonic());
        }
        let _ = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
        let _ = aggregator.fold(refused("192.0.2.1:1"), clock.monotonic());
        assert_eq!(aggregator.drain()[0].count, Some(11), "one has a record of its own");
    }
}

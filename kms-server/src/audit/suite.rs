//! The conformance suite: everything that is true of every [`AuditSink`].
//!
//! `sink_suite!(open)` makes one test of each function; `open` is an expression that gives a [`Bench`] with a fresh sink.
//! A new function needs its name in the macro's list. What is not in it: that kept means synced, which shows only in
//! system calls (`kms-server/tests/power_loss.rs`), and the length of a line, as memory has none.

use kms_core::audit::{AuditRecord, ManifestStamp, Phase};
use kms_core::id::{IntentId, Revision};

use super::sample::record;
use super::{
    ACCEPT_STORE, AuditError, AuditSink, MAX_ENTRY_BYTES, MAX_WAITING_BYTES, MAX_WAITING_RECORDS,
    Past,
};

/// A sink, and what its tests see and do beside the seam.
pub(super) trait Bench: Sync {
    /// Returns the sink.
    fn sink(&self) -> &dyn AuditSink;

    /// Returns what is kept now, oldest first.
    fn kept(&self) -> Vec<AuditRecord>;

    /// Has writing fail from now on, or work again.
    fn fail(&self, failing: bool);
}

/// Makes a test of each case for one sink.
macro_rules! sink_suite {
    ($open:expr) => {
        sink_suite!(@cases $open;
            a_call_without_records_is_acknowledged,
            a_new_sink_is_healthy_and_knows_nothing,
            a_refused_record_is_not_of_the_past,
            an_answer_that_nobody_awaits_changes_nothing,
            as_many_bytes_as_may_wait_are_taken_and_one_more_is_refused,
            as_many_records_as_may_wait_are_taken_and_one_more_is_refused,
            closed_it_refuses_and_what_was_taken_is_kept,
            records_are_kept_when_they_are_acknowledged,
            records_of_parallel_calls_stand_together,
            records_stand_in_the_order_of_their_calls,
            the_last_manifest_is_the_newest_or_the_accepted_one,
            the_past_is_that_of_what_was_acknowledged,
            while_writing_fails_it_refuses_and_then_recovers,
        );
    };
    (@cases $open:expr; $($name:ident),+ $(,)?) => {
        mod conformance {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $crate::audit::suite::$name(&$open).await;
                }
            )+
        }
    };
}
pub(super) use sink_suite;

fn intent(number: u8) -> AuditRecord {
    let intent_id = Some(IntentId::from_bytes([number; 16]));
    AuditRecord { phase: Phase::Intent, intent_id, ..record(number.into()) }
}

fn stamp(revision: u64) -> ManifestStamp {
    ManifestStamp { revision: Revision::new(revision), digest: format!("digest-{revision}") }
}

/// The outcome of [`intent`], which left the manifest at `revision`.
fn outcome(number: u8, revision: u64) -> AuditRecord {
    AuditRecord { phase: Phase::Outcome, manifest: Some(stamp(revision)), ..intent(number) }
}

/// Records of `bytes` in all, each short enough to be written.
fn records_of(bytes: usize) -> Vec<AuditRecord> {
    let padded = |bytes: usize| {
        let plain = record(1);
        let padding = bytes - plain.estimated_bytes();
        AuditRecord { source: plain.source.clone() + &"x".repeat(padding), ..plain }
    };
    let count = bytes.div_ceil(MAX_ENTRY_BYTES - 4096);
    let each = bytes / count;
    let mut records = vec![padded(each); count - 1];
    records.push(padded(bytes - (count - 1) * each));
    records
}

pub(super) async fn a_new_sink_is_healthy_and_knows_nothing(bench: &impl Bench) {
    assert!(bench.sink().healthy());
    assert_eq!(bench.sink().past(), Past::default());
    assert_eq!(bench.sink().last_manifest("t1"), None);
    assert_eq!(bench.kept(), []);
}

pub(super) async fn records_are_kept_when_they_are_acknowledged(bench: &impl Bench) {
    let mut expected = vec![];
    for number in 1..=20 {
        bench.sink().append(vec![record(number)]).await.unwrap();
        expected.push(record(number));
        assert_eq!(bench.kept(), expected);
    }
}

pub(super) async fn a_call_without_records_is_acknowledged(bench: &impl Bench) {
    bench.sink().append(vec![]).await.unwrap();
    assert!(bench.sink().healthy());
    bench.sink().append(vec![record(1)]).await.unwrap();
    assert_eq!(bench.kept(), [record(1)]);
}

pub(super) async fn records_stand_in_the_order_of_their_calls(bench: &impl Bench) {
    let calls = (0..100).map(|call| (0..call % 7).map(|item| record(call * 10 + item)).collect());
    let calls: Vec<Vec<_>> = calls.collect();
    let answers: Vec<_> = calls.iter().map(|call| bench.sink().append(call.clone())).collect();
    for answer in answers {
        answer.await.unwrap();
    }
    assert_eq!(bench.kept(), calls.concat());
}

pub(super) async fn records_of_parallel_calls_stand_together(bench: &impl Bench) {
    const CALLS: u64 = 20;
    let call = |caller: u64, call: u64| -> Vec<_> {
        (0..5).map(|item| record((caller * CALLS + call) * 5 + item)).collect()
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let callers = (0..4).map(|caller| {
            let append = move |number| bench.sink().append(call(caller, number));
            scope.spawn(move || (0..CALLS).map(append).collect::<Vec<_>>())
        });
        let callers: Vec<_> = callers.collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    for answer in answers {
        answer.await.unwrap();
    }
    let kept = bench.kept();
    for caller in 0..4 {
        let places = (0..CALLS).map(|number| {
            let call = call(caller, number);
            kept.windows(call.len()).position(|kept| kept == call).expect("whole")
        });
        assert!(places.is_sorted(), "the calls of one caller in their order");
    }
}

pub(super) async fn an_answer_that_nobody_awaits_changes_nothing(bench: &impl Bench) {
    drop(bench.sink().append(vec![record(1)]));
    bench.sink().append(vec![record(2)]).await.unwrap();
    assert_eq!(bench.kept(), [record(1), record(2)]);
}

pub(super) async fn while_writing_fails_it_refuses_and_then_recovers(bench: &impl Bench) {
    bench.sink().append(vec![record(1)]).await.unwrap();
    bench.fail(true);
    for number in 2..4 {
        let refused = bench.sink().append(vec![record(number)]).await;
        assert!(matches!(refused, Err(AuditError::Unwritable { .. })), "{refused:?}");
        assert!(!bench.sink().healthy());
    }
    bench.fail(false);
    bench.sink().append(vec![record(4)]).await.unwrap();
    assert!(bench.sink().healthy());
    assert_eq!(bench.kept(), [record(1), record(4)]);
}

pub(super) async fn a_refused_record_is_not_of_the_past(bench: &impl Bench) {
    bench.sink().append(vec![intent(1)]).await.unwrap();
    let before = bench.sink().past();
    bench.fail(true);
    bench.sink().append(vec![outcome(1, 1), intent(2)]).await.unwrap_err();
    assert_eq!(bench.sink().past(), before);
    assert_eq!(bench.sink().last_manifest("t1"), None);
}

pub(super) async fn the_past_is_that_of_what_was_acknowledged(bench: &impl Bench) {
    let mut expected = Past::default();
    for made in [record(9), intent(1), intent(2), outcome(1, 1), record(10), intent(3)] {
        bench.sink().append(vec![made.clone()]).await.unwrap();
        expected.note(&made);
        assert_eq!(bench.sink().past(), expected);
    }
    let awaited = [1, 2, 3].map(|id| expected.awaits_outcome(IntentId::from_bytes([id; 16])));
    assert_eq!(awaited, [false, true, true]);
}

pub(super) async fn the_last_manifest_is_the_newest_or_the_accepted_one(bench: &impl Bench) {
    let accepted =
        AuditRecord { operation: ACCEPT_STORE.into(), manifest: Some(stamp(1)), ..record(1) };
    // An outcome may come late; what an operator accepted counts, however old it is.
    for (made, last) in [(outcome(1, 2), 2), (outcome(2, 1), 2), (outcome(3, 3), 3), (accepted, 1)]
    {
        bench.sink().append(vec![made]).await.unwrap();
        assert_eq!(bench.sink().last_manifest("t1"), Some(stamp(last)));
        assert_eq!(bench.sink().past().stamps().get("t1"), Some(&stamp(last)));
        assert_eq!(bench.sink().last_manifest("t2"), None);
    }
}

pub(super) async fn as_many_records_as_may_wait_are_taken_and_one_more_is_refused(
    bench: &impl Bench,
) {
    let many = vec![record(1); MAX_WAITING_RECORDS + 1];
    assert_eq!(bench.sink().append(many).await, Err(AuditError::Saturated));
    assert!(bench.sink().healthy());
    bench.sink().append(vec![record(1); MAX_WAITING_RECORDS]).await.unwrap();
    bench.sink().append(vec![record(1)]).await.unwrap();
}

pub(super) async fn as_many_bytes_as_may_wait_are_taken_and_one_more_is_refused(
    bench: &impl Bench,
) {
    let whole = records_of(MAX_WAITING_BYTES);
    let size: usize = whole.iter().map(AuditRecord::estimated_bytes).sum();
    assert_eq!(size, MAX_WAITING_BYTES);
    assert!(whole.len() < MAX_WAITING_RECORDS);
    let more = records_of(MAX_WAITING_BYTES + 1);
    assert_eq!(bench.sink().append(more).await, Err(AuditError::Saturated));
    bench.sink().append(whole).await.unwrap();
    bench.sink().append(vec![record(1)]).await.unwrap();
}

pub(super) async fn closed_it_refuses_and_what_was_taken_is_kept(bench: &impl Bench) {
    let taken: Vec<_> = (0..100).map(|n| bench.sink().append(vec![record(n)])).collect();
    bench.sink().append(vec![intent(1)]).await.unwrap();
    bench.sink().close();
    for answer in taken {
        answer.await.unwrap();
    }
    for refused in [vec![record(1)], vec![]] {
        assert_eq!(bench.sink().append(refused).await, Err(AuditError::Closed));
    }
    bench.sink().close();
    assert_eq!(bench.kept().len(), 101);
    assert!(bench.sink().past().awaits_outcome(IntentId::from_bytes([1; 16])));
}

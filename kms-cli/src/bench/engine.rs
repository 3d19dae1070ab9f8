//! The closed loop: tasks that call, a phase that all of them read, and what they recorded.
//!
//! Bounded in time: warm-up, measurement, and then one call's time limit for what is still in flight.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use kms_core::clock::{Clock, SystemClock};
use tokio::task::JoinSet;

use super::cpu::cpu_time;

/// The longest latency that is told apart, in microseconds; longer ones count as this.
pub const MAX_LATENCY_US: u64 = 60_000_000;
/// Latencies are recorded to three digits.
const SIGNIFICANT_DIGITS: u8 = 3;
/// The most kinds of errors that are told apart; further ones count as `OTHER`.
pub const MAX_ERROR_KINDS: usize = 64;

const WARMUP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// How many calls, for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many calls are in flight.
    pub concurrency: usize,
    /// How long calls are made before they count.
    pub warmup: Duration,
    /// How long they count.
    pub duration: Duration,
    /// How long one call may take.
    pub call_timeout: Duration,
}

/// Makes calls over one connection.
pub trait Call: Clone + Send + 'static {
    /// Makes the call with this number; returns how many items it did, or why it failed.
    fn call(&mut self, number: u64) -> impl Future<Output = Result<u64, String>> + Send;
}

/// What the tasks of one connection recorded.
#[derive(Debug)]
struct Recorder {
    latency_us: Histogram<u64>,
    items: u64,
    errors: BTreeMap<String, u64>,
}

impl Recorder {
    fn new() -> Option<Self> {
        let latency_us = Histogram::new_with_bounds(1, MAX_LATENCY_US, SIGNIFICANT_DIGITS).ok()?;
        Some(Self { latency_us, items: 0, errors: BTreeMap::new() })
    }

    fn record(&mut self, latency: Duration, outcome: Result<u64, String>) {
        match outcome {
            Ok(items) => {
                let micros = u64::try_from(latency.as_micros()).unwrap_or(MAX_LATENCY_US);
                self.latency_us.saturating_record(micros);
                self.items += items;
            }
            Err(reason) => self.count_error(reason, 1),
        }
    }

    fn count_error(&mut self, reason: String, count: u64) {
        let full = self.errors.len() >= MAX_ERROR_KINDS && !self.errors.contains_key(&reason);
        let reason = if full { "OTHER".to_owned() } else { reason };
        *self.errors.entry(reason).or_default() += count;
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Latencies of the calls that succeeded, in microseconds.
    pub latency_us: Histogram<u64>,
    /// Items that they did.
    pub items: u64,
    /// How many calls failed, by reason.
    pub errors: BTreeMap<String, u64>,
    /// How long was really measured.
    pub elapsed: Duration,
    /// CPU time of this process meanwhile.
    pub client_cpu: Option<Duration>,
}

/// Runs the load over the connections of `calls`, the tasks spread evenly. `None` when there is no histogram to be had.
pub async fn run<C: Call>(load: &Load, calls: Vec<C>) -> Option<Measured> {
    let phase = Arc::new(AtomicU8::new(WARMUP));
    let mut recorders = Vec::with_capacity(calls.len());
    for _ in &calls {
        recorders.push(Arc::new(Mutex::new(Recorder::new()?)));
    }
    let mut tasks = JoinSet::new();
    let lanes = calls.iter().zip(&recorders).cycle().take(load.concurrency).enumerate();
    for (index, (call, recorder)) in lanes {
        let first = index as u64;
        let step = load.concurrency as u64;
        let lane = Lane { first, step, timeout: load.call_timeout };
        tasks.spawn(lane.run(call.clone(), Arc::clone(&phase), Arc::clone(recorder)));
    }
    pause(load.warmup).await;
    let (start, cpu_before) = (SystemClock.monotonic(), cpu_time(None));
    phase.store(MEASURE, Ordering::Release);
    pause(load.duration).await;
    phase.store(STOP, Ordering::Release);
    let elapsed = SystemClock.monotonic().saturating_duration_since(start);
    let client_cpu =
        cpu_time(None).zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    // Each call in flight ends within its own limit.
    while tasks.join_next().await.is_some() {}
    let mut all = Recorder::new()?;
    for recorder in recorders {
        let one = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        all.latency_us.add(&one.latency_us).ok()?;
        all.items += one.items;
        for (reason, count) in &one.errors {
            all.count_error(reason.clone(), *count);
        }
    }
    let Recorder { latency_us, items, errors } = all;
    Some(Measured { latency_us, items, errors, elapsed, client_cpu })
}

/// One task's part of the call numbers.
struct Lane {
    first: u64,
    step: u64,
    timeout: Duration,
}

impl Lane {
    async fn run<C: Call>(self, mut call: C, phase: Arc<AtomicU8>, recorder: Arc<Mutex<Recorder>>) {
        let mut number = self.first;
        while phase.load(Ordering::Acquire) != STOP {
            let start = SystemClock.monotonic();
            let outcome = match tokio::time::timeout(self.timeout, call.call(number)).await {
                Ok(outcome) => outcome,
                Err(_) => Err("TIMEOUT".into()),
            };
            let latency = SystemClock.monotonic().saturating_duration_since(start);
            let failed = outcome.is_err();
            if phase.load(Ordering::Acquire) == MEASURE {
                let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
                recorder.record(latency, outcome);
            }
            if failed {
                // A server that refuses at once must not make us spin.
                pause(Duration::from_millis(1)).await;
            }
            number = number.wrapping_add(self.step);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement lasts as long as it was asked to")]
async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Yes;

    impl Call for Yes {
        async fn call(&mut self, number: u64) -> Result<u64, String> {
            tokio::task::yield_now().await;
            if number.is_multiple_of(3) { Err(format!("E{}", number % 100)) } else { Ok(2) }
        }
    }

    #[derive(Clone)]
    struct Never;

    impl Call for Never {
        async fn call(&mut self, _: u64) -> Result<u64, String> {
            std::future::pending().await
        }
    }

    fn load(concurrency: usize) -> Load {
        let brief = Duration::from_millis(30);
        Load { concurrency, warmup: Duration::ZERO, duration: brief, call_timeout: brief }
    }

    #[tokio::test]
    async fn successes_items_and_failures_are_counted_apart() {
        let measured = run(&load(3), vec![Yes, Yes]).await.unwrap();
        assert!(!measured.latency_us.is_empty());
        assert_eq!(measured.items, 2 * measured.latency_us.len());
        assert!(measured.errors.values().sum::<u64>() > 0);
    }

    #[tokio::test]
    async fn calls_that_never_end_end_the_run_all_the_same() {
        let measured = run(&load(2), vec![Never]).await.unwrap();
        assert_eq!(measured.latency_us.len(), 0);
        assert!(measured.errors.keys().all(|reason| reason == "TIMEOUT"));
    }

    #[test]
    fn the_64th_kind_of_error_is_told_apart_and_the_65th_is_other() {
        let mut recorder = Recorder::new().unwrap();
        for kind in 0..=MAX_ERROR_KINDS {
            recorder.record(Duration::ZERO, Err(format!("{kind:03}")));
        }
        assert_eq!(recorder.errors.len(), MAX_ERROR_KINDS + 1);
        assert_eq!(recorder.errors.get("063"), Some(&1));
        assert_eq!(recorder.errors.get("OTHER"), Some(&1));
    }

    #[test]
    fn a_latency_beyond_the_longest_counts_as_the_longest() {
        let mut recorder = Recorder::new().unwrap();
        recorder.record(Duration::from_hours(1), Ok(1));
        assert!(recorder.latency_us.max() >= MAX_LATENCY_US);
    }
}

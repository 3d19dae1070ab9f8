//! What came of a run, for people and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::engine::{Load, Measured};
use crate::output::View;
use crate::output::view::facts;

/// Latencies of calls that succeeded, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the calls were faster.
    pub p50: u64,
    /// 90 of 100 were faster.
    pub p90: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// 999 of 1,000 were faster.
    pub p99_9: u64,
    /// The slowest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which call.
    pub op: String,
    /// How many were in flight.
    pub concurrency: usize,
    /// Over how many connections.
    pub connections: usize,
    /// How long was measured, in seconds.
    pub duration_seconds: f64,
    /// Calls that succeeded.
    pub requests: u64,
    /// Items that they did.
    pub items: u64,
    /// Calls that succeeded, a second.
    pub requests_per_second: f64,
    /// Items, a second.
    pub items_per_second: f64,
    /// Latencies in microseconds.
    pub latency_us: Latency,
    /// Calls that failed, by reason.
    pub errors: BTreeMap<String, u64>,
    /// CPU time of the client a call, in microseconds; absent where the system does not say.
    pub client_cpu_us_per_request: Option<f64>,
}

impl Report {
    /// Makes the report of a run.
    pub fn new(op: &str, load: &Load, connections: usize, measured: &Measured) -> Self {
        let requests = measured.latency_us.len();
        let seconds = measured.elapsed.as_secs_f64();
        let cpu = measured.client_cpu.filter(|_| requests > 0);
        Self {
            op: op.to_owned(),
            concurrency: load.concurrency,
            connections,
            duration_seconds: seconds,
            requests,
            items: measured.items,
            requests_per_second: per(requests, seconds),
            items_per_second: per(measured.items, seconds),
            latency_us: Latency::of(&measured.latency_us),
            errors: measured.errors.clone(),
            client_cpu_us_per_request: cpu.map(|cpu| micros(cpu) / count(requests)),
        }
    }

    /// Returns how many calls failed.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

fn per(events: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count(events) / seconds } else { 0.0 }
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn count(events: u64) -> f64 {
    events as f64
}

impl View for Report {
    fn table(&self) -> Table {
        let Latency { p50, p90, p99, p99_9, max, mean } = self.latency_us;
        let errors = self.errors.iter().map(|(reason, count)| format!("{reason}={count}"));
        let cpu = self.client_cpu_us_per_request;
        facts(&[
            ("operation", self.op.clone()),
            ("in flight", format!("{} over {} connections", self.concurrency, self.connections)),
            ("measured", format!("{:.1} s", self.duration_seconds)),
            ("requests", format!("{} ({:.0}/s)", self.requests, self.requests_per_second)),
            ("items", format!("{} ({:.0}/s)", self.items, self.items_per_second)),
            ("latency", format!("p50 {p50} us, p90 {p90} us, p99 {p99} us")),
            ("", format!("p99.9 {p99_9} us, max {max} us, mean {mean:.0} us")),
            ("errors", errors.collect::<Vec<_>>().join(" ")),
            ("client CPU", cpu.map_or_else(String::new, |cpu| format!("{cpu:.1} us a request"))),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_latencies_and_cpu_are_computed_from_what_was_measured() {
        let mut latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        (1..=1000).for_each(|micros| latency_us.record(micros).unwrap());
        let errors = BTreeMap::from([("HSM_SATURATED".to_owned(), 3)]);
        let measured = Measured {
            latency_us,
            items: 100_000,
            errors,
            elapsed: Duration::from_secs(2),
            client_cpu: Some(Duration::from_millis(20)),
        };
        let load = Load {
            concurrency: 4,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(2),
            call_timeout: Duration::from_secs(1),
        };
        let report = Report::new("batch", &load, 2, &measured);
        assert_eq!(report.latency_us.p50, 500);
        assert_eq!(report.latency_us.p99_9, 999);
        assert!((report.requests_per_second - 500.0).abs() < 1e-9);
        assert!((report.items_per_second - 50_000.0).abs() < 1e-9);
        assert!((report.client_cpu_us_per_request.unwrap() - 20.0).abs() < 1e-9);
        assert_eq!(report.failed(), 3);
    }
}

//! Numbers about requests: how many, how they went, how long they took.
//!
//! One atomic addition or two a request, no lock. Labels are methods and reasons, both from closed lists.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::transport::method::Method;

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// How long things took, in fixed buckets.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS_US.len()],
    beyond: AtomicU64,
    sum_us: AtomicU64,
}

impl Latency {
    /// Adds one.
    pub fn observe(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = BUCKETS_US.partition_point(|bound| *bound < took_us);
        self.buckets.get(place).unwrap_or(&self.beyond).fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    fn encode(&self, encoder: &mut prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        let bounds = BUCKETS_US.iter().map(|bound| seconds(*bound));
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let mut buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        buckets.push((f64::INFINITY, self.beyond.load(Ordering::Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.sum_us.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Rounding a sum of microseconds beyond 2^53 costs nothing that a graph shows.
#[expect(clippy::cast_precision_loss, reason = "285 years of microseconds fit exactly")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Labels of a refused or failed request.
type FailureLabels = [(&'static str, &'static str); 2];

/// Numbers of all methods.
#[derive(Debug)]
pub struct RequestMetrics {
    methods: Vec<(Counter, Latency)>,
    failures: Family<FailureLabels, Counter>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let methods = Method::ALL.iter().map(|_| Default::default()).collect();
        Self { methods, failures: Family::default() }
    }
}

impl RequestMetrics {
    /// Counts a request that was answered with its result.
    pub fn succeeded(&self, method: Method, took: Duration) {
        if let Some((ok, latency)) = self.methods.get(method as usize) {
            ok.inc();
            latency.observe(took);
        }
    }

    /// Counts a request that was answered with an error.
    pub fn failed(&self, method: Method, reason: &'static str, took: Duration) {
        self.failures.get_or_create(&[("method", method.as_str()), ("reason", reason)]).inc();
        if let Some((_, latency)) = self.methods.get(method as usize) {
            latency.observe(took);
        }
    }
}

impl Collector for RequestMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "holdfast_requests_ok",
            "Requests answered with their result",
            None,
            MetricType::Counter,
        )?;
        for (method, (ok, _)) in Method::ALL.iter().zip(&self.methods) {
            ok.encode(family.encode_family(&[("method", method.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "holdfast_request_seconds",
            "Time from request to answer",
            None,
            MetricType::Histogram,
        )?;
        for (method, (_, latency)) in Method::ALL.iter().zip(&self.methods) {
            latency.encode(&mut family.encode_family(&[("method", method.as_str())])?)?;
        }
        self.failures.encode(encoder.encode_descriptor(
            "holdfast_requests_failed",
            "Requests answered with an error, by its reason",
            None,
            MetricType::Counter,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn text(metrics: RequestMetrics) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn results_and_failures_are_counted_by_method_and_reason() {
        let metrics = RequestMetrics::default();
        metrics.succeeded(Method::Wrap, Duration::from_micros(100));
        metrics.succeeded(Method::Wrap, Duration::from_micros(101));
        metrics.failed(Method::Unwrap, "CIPHERTEXT_INVALID", Duration::from_mins(2));
        let text = text(metrics);
        for line in [
            "holdfast_requests_ok_total{method=\"kms.v1.CryptoService/Wrap\"} 2",
            "holdfast_requests_failed_total{method=\"kms.v1.CryptoService/Unwrap\",reason=\"CIPHERTEXT_INVALID\"} 1",
            "holdfast_request_seconds_bucket{le=\"0.0001\",method=\"kms.v1.CryptoService/Wrap\"} 1",
            "holdfast_request_seconds_bucket{le=\"0.00025\",method=\"kms.v1.CryptoService/Wrap\"} 2",
            "holdfast_request_seconds_bucket{le=\"30.0\",method=\"kms.v1.CryptoService/Unwrap\"} 0",
            "holdfast_request_seconds_bucket{le=\"+Inf\",method=\"kms.v1.CryptoService/Unwrap\"} 1",
            "holdfast_request_seconds_sum{method=\"kms.v1.CryptoService/Unwrap\"} 120.0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}

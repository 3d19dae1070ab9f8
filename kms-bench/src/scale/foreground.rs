//! Foreground load, while something else goes on: windows, and the p99 of each.

use std::time::Duration;

use kms_cli::bench::{Load, Report, engine};
use kms_cli::client::channel;
use kms_core::name::TenantName;

use super::Place;
use super::calls::{Caller, What};
use super::seed;
use crate::error::Error;
use crate::processes::Peer;

/// Calls in flight: few enough that the server is not full.
pub(super) const CONCURRENCY: usize = 4;
/// Connections.
const CONNECTIONS: usize = 2;
/// Before the calls of a window count.
const WARMUP: Duration = Duration::from_millis(200);
/// Keys that foreground calls go over: all loaded after the warm-up.
const WARM_KEYS: u32 = 8;

impl Place {
    /// One window of calls.
    pub(super) fn window(&self, peer: &Peer, what: &What, span: Duration) -> Result<Report, Error> {
        self.load(peer, what, CONCURRENCY, span)
    }

    /// The same, with more in flight.
    pub(super) fn load(
        &self,
        peer: &Peer,
        what: &What,
        concurrency: usize,
        span: Duration,
    ) -> Result<Report, Error> {
        let call_timeout = Duration::from_secs(30);
        let load = Load { concurrency, warmup: WARMUP, duration: span, call_timeout };
        let report = self.runtime.block_on(async {
            let mut calls = Vec::with_capacity(CONNECTIONS);
            for _ in 0..CONNECTIONS {
                calls.push(Caller::new(channel(&peer.context).await?, what.clone()));
            }
            let measured = engine::run(&load, calls).await;
            let measured = measured.ok_or(Error::Bug("latencies cannot be recorded"))?;
            Ok::<_, Error>(Report::new("foreground", &load, CONNECTIONS, &measured))
        })?;
        if report.failed() > 0 || report.requests == 0 {
            let reasons = report.errors.iter().map(|(reason, count)| format!("{reason}={count}"));
            let reasons = reasons.collect::<Vec<_>>().join(" ");
            let what = "the foreground load".to_owned();
            return Err(Error::Failed { what, failed: report.failed(), reasons });
        }
        Ok(report)
    }
}

/// Wraps under a few keys that stay loaded.
pub(super) fn warm_wraps(tenant: &TenantName) -> Result<What, Error> {
    let names = (0..WARM_KEYS).map(|number| Ok(seed::name(tenant, number)?.to_string()));
    Ok(What::Wrap(names.collect::<Result<Vec<_>, Error>>()?.into()))
}

/// The p99 of a window, in microseconds.
#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52")]
pub(super) fn p99(report: &Report) -> f64 {
    report.latency_us.p99 as f64
}

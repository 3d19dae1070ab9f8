//! Whether the server can serve: HSM, store and audit, each asked on its own.
//!
//! Readiness is told by gRPC health and by `/readyz`. It starts as no, and ends as no when the drain begins.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kms_core::clock::Clock;
use kms_hsm::{Hsm, HsmHealth};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::audit::AuditSink;
use crate::service::Kms;
use crate::store::Store;
use crate::transport::health::HealthService;
use crate::transport::shutdown::Shutdown;

/// How often the parts are asked.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the store may take for its probe.
const STORE_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The store is asked once in so many rounds: its probe writes.
const STORE_PROBE_ROUNDS: u64 = 5;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Probes {
    /// The HSM.
    pub hsm: Arc<dyn Hsm>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The audit log.
    pub audit: Arc<dyn AuditSink>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The service, once it is put together.
    pub kms: Arc<OnceLock<Kms>>,
}

/// What was answered last.
#[derive(Debug, Default)]
pub struct Readiness {
    hsm: AtomicBool,
    store: AtomicBool,
    audit: AtomicBool,
    serving: AtomicBool,
    draining: AtomicBool,
    protect_disabled: AtomicBool,
    changes: AtomicU64,
    ask_now: Notify,
}

/// The parts of readiness, for people and monitors.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own, shown as such")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReadinessReport {
    /// All of the below, and not draining.
    pub ready: bool,
    /// Logged in, roots open.
    pub hsm: bool,
    /// Can be written.
    pub store: bool,
    /// Can be written.
    pub audit: bool,
    /// Requests are accepted.
    pub serving: bool,
    /// Told to stop.
    pub draining: bool,
    /// Whether keys do not protect until they are rotated, since a gap in the state journal was accepted. Ready all the same.
    pub protect_disabled: bool,
}

impl Readiness {
    /// Returns what is known.
    pub fn report(&self) -> ReadinessReport {
        let read = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        let (hsm, store) = (read(&self.hsm), read(&self.store));
        let (audit, serving) = (read(&self.audit), read(&self.serving));
        let draining = read(&self.draining);
        let ready = hsm && store && audit && serving && !draining;
        let protect_disabled = read(&self.protect_disabled);
        ReadinessReport { ready, hsm, store, audit, serving, draining, protect_disabled }
    }

    /// Tells that requests are accepted now; the parts are asked at once.
    pub fn serve(&self) {
        self.serving.store(true, Ordering::Release);
        self.ask_now.notify_one();
    }

    /// Tells that the server is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Asks the parts; the store only when told to.
    async fn ask(&self, probes: &Probes, ask_store: bool) {
        let hsm = probes.hsm.status().health == HsmHealth::Ready;
        self.note("hsm", &self.hsm, hsm);
        self.note("audit", &self.audit, probes.audit.healthy());
        let disabled = probes.kms.get().is_some_and(|kms| kms.disabled_keys() > 0);
        self.protect_disabled.store(disabled, Ordering::Release);
        if ask_store {
            let probe = probes.store.probe(probes.clock.now());
            let answer = timeout(STORE_PROBE_TIMEOUT, probe).await;
            self.note("store", &self.store, matches!(answer, Ok(Ok(()))));
        }
    }

    fn note(&self, part: &'static str, flag: &AtomicBool, healthy: bool) {
        if flag.swap(healthy, Ordering::AcqRel) != healthy {
            self.changes.fetch_add(1, Ordering::Relaxed);
            if healthy {
                tracing::info!(part, "healthy");
            } else {
                tracing::warn!(part, "not healthy");
            }
        }
    }
}

/// Asks the parts at every interval, and tells health, until the signal to stop. Once requests are accepted, `rounds`
/// tells whether all is ready.
pub async fn watch(
    readiness: Arc<Readiness>,
    probes: Probes,
    health: HealthService,
    rounds: watch::Sender<Option<bool>>,
    mut shutdown: Shutdown,
) {
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = shutdown.triggered() => break,
            () = readiness.ask_now.notified() => {}
            _ = ticks.tick() => {}
        }
        // What was asked before requests were accepted says nothing of the time after.
        let ReadinessReport { store, serving, .. } = readiness.report();
        readiness.ask(&probes, !store || round.is_multiple_of(STORE_PROBE_ROUNDS)).await;
        let report = readiness.report();
        health.set_ready(report.ready).await;
        let now = serving.then_some(report.ready);
        rounds.send_if_modified(|last| std::mem::replace(last, now) != now);
        round = round.wrapping_add(1);
    }
    readiness.drain();
    health.set_ready(false).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_every_part_and_no_drain() {
        let readiness = Readiness::default();
        assert!(!readiness.report().ready);
        for flag in [&readiness.hsm, &readiness.store, &readiness.audit, &readiness.serving] {
            flag.store(true, Ordering::Release);
        }
        assert!(readiness.report().ready);
        for flag in [&readiness.hsm, &readiness.store, &readiness.audit, &readiness.serving] {
            flag.store(false, Ordering::Release);
            assert!(!readiness.report().ready);
            flag.store(true, Ordering::Release);
        }
        readiness.drain();
        assert!(!readiness.report().ready);
    }
}

//! Numbers that are read when they are asked for: HSM, health, log, keyring, connections.

use std::fmt;
use std::sync::{Arc, OnceLock};

use kms_hsm::{Hsm, HsmHealth};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::readiness::Readiness;
use crate::service::{Kms, RolloverState, RootRollover};
use crate::telemetry::log;
use crate::transport::stats::ConnectionStats;
use crate::transport::{TlsStore, Validity};

/// The name of a listener, as it stands in names and labels.
type Listener = &'static str;

/// Where the numbers come from.
#[derive(Debug)]
pub struct Gauges {
    /// The HSM.
    pub hsm: Arc<dyn Hsm>,
    /// Readiness.
    pub readiness: Arc<Readiness>,
    /// The service, once it is put together: the admin listener is there before it.
    pub kms: Arc<OnceLock<Kms>>,
    /// The gRPC listener.
    pub public: Arc<ConnectionStats>,
    /// The admin listener.
    pub admin: Arc<ConnectionStats>,
    /// The certificates of each listener that has TLS.
    pub certificates: Vec<(Listener, Arc<TlsStore>)>,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_hsm(&mut encoder)?;
        self.encode_health(&mut encoder)?;
        counter(
            &mut encoder,
            "holdfast_log_lines_dropped",
            "Log lines lost because standard error was not read",
            log::dropped_lines(),
        )?;
        if let Some(kms) = self.kms.get() {
            encode_keyring(&mut encoder, kms)?;
        }
        encode_connections(&mut encoder, &self.public, "public")?;
        encode_connections(&mut encoder, &self.admin, "admin")?;
        encode_certificates(&mut encoder, &self.certificates)
    }
}

impl Gauges {
    fn encode_hsm(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.hsm.status();
        let state = |wanted: bool| u64::from(wanted);
        let latched = matches!(status.health, HsmHealth::Latched(_));
        gauge(
            encoder,
            "holdfast_hsm_ready",
            "1 when logged in with roots open",
            state(status.health == HsmHealth::Ready),
        )?;
        gauge(encoder, "holdfast_hsm_latched", "1 until an operator acts", state(latched))?;
        gauge(
            encoder,
            "holdfast_hsm_queue_length",
            "Jobs that wait for a worker",
            count(status.queue_length),
        )?;
        gauge(encoder, "holdfast_hsm_workers", "Worker threads alive", count(status.workers))?;
        gauge(
            encoder,
            "holdfast_hsm_loaded_keys",
            "Key objects loaded",
            count(status.loaded_keys),
        )?;
        counter(
            encoder,
            "holdfast_hsm_unwrapped_keys",
            "Wrapped keys opened: one each load, two each re-wrap",
            status.unwrapped_keys,
        )?;
        counter(
            encoder,
            "holdfast_hsm_reconnects",
            "Times the module was initialised anew",
            status.reconnects,
        )
    }

    fn encode_health(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.readiness.report();
        gauge(encoder, "holdfast_ready", "1 when requests are served", u64::from(report.ready))?;
        gauge(
            encoder,
            "holdfast_store_healthy",
            "1 when the store can be written",
            u64::from(report.store),
        )?;
        gauge(
            encoder,
            "holdfast_audit_healthy",
            "1 when the audit log can be written",
            u64::from(report.audit),
        )
    }
}

fn encode_keyring(encoder: &mut DescriptorEncoder<'_>, kms: &Kms) -> fmt::Result {
    for (name, help, value) in kms.counters().all() {
        // The encoder ends the help with a full stop.
        let help = help.trim_end_matches('.');
        counter(encoder, &format!("holdfast_keyring_{name}"), help, value)?;
    }
    let (keys, versions) = kms.loaded();
    gauge(encoder, "holdfast_keyring_cached_keys", "Key rows in memory", count(keys))?;
    gauge(encoder, "holdfast_keyring_cached_versions", "Key versions loaded", count(versions))?;
    gauge(
        encoder,
        "holdfast_hsm_orphan_objects",
        "Key objects in the token that no row and no intent names",
        count(kms.orphans()),
    )?;
    gauge(
        encoder,
        "holdfast_stuck_intents",
        "Abandoned mutations that recovery could neither finish nor undo",
        count(kms.stuck_intents()),
    )?;
    encode_root_rollover(encoder, kms)?;
    encode_journal(encoder, kms)?;
    gauge(
        encoder,
        "holdfast_reconcile_failures",
        "What the last run of the reconciler could not do",
        count(kms.reconcile_failures()),
    )
}

fn encode_root_rollover(encoder: &mut DescriptorEncoder<'_>, kms: &Kms) -> fmt::Result {
    let RootRollover {
        generation, oldest, state, keys, rows, rewrapped, failed, remaining, ..
    } = kms.root_rollover();
    let gauges = [
        ("generation", "Root generation that seals what is written", generation.get().into()),
        ("oldest_generation", "Oldest root generation that is open", oldest.get().into()),
        (
            "rollover_running",
            "1 while rows are sealed under the newest root",
            u64::from(matches!(state, RolloverState::Running | RolloverState::Waiting)),
        ),
        ("rollover_keys", "Keys that this pass of a root rollover has looked at", keys),
        ("rollover_failed_rows", "Rows that this pass could not seal: edited or damaged", failed),
        ("rollover_rows_left", "Rows that are left under an older root", remaining),
    ];
    for (name, help, value) in gauges {
        gauge(encoder, &format!("holdfast_root_{name}"), help, value)?;
    }
    let help = "Rows sealed under the newest root since the start";
    counter(encoder, "holdfast_root_rollover_rows", help, rows)?;
    let help = "Key versions wrapped under the newest root since the start";
    counter(encoder, "holdfast_root_rollover_rewrapped_versions", help, rewrapped)
}

fn encode_journal(encoder: &mut DescriptorEncoder<'_>, kms: &Kms) -> fmt::Result {
    let journal = kms.journal();
    gauge(
        encoder,
        "holdfast_journal_healthy",
        "1 when the state journal could be written when that was last tried",
        u64::from(journal.healthy()),
    )?;
    gauge(
        encoder,
        "holdfast_journal_last_entry",
        "Number of the last entry of the state journal",
        journal.progress().last(),
    )?;
    gauge(
        encoder,
        "holdfast_protect_disabled_keys",
        "Keys that do not protect until they are rotated, since a gap in the state journal was accepted",
        kms.disabled_keys(),
    )
}

fn encode_connections(
    encoder: &mut DescriptorEncoder<'_>,
    stats: &ConnectionStats,
    listener: &str,
) -> fmt::Result {
    let ConnectionStats {
        accepted,
        open,
        refused_networks,
        refused_connections,
        refused_sources,
        refused_handshakes,
        failed_handshakes,
        handshakes,
        without_request,
        cut_off,
        revoked_connections,
        accept_errors,
    } = stats;
    let name = |what: &str| format!("holdfast_{listener}_{what}");
    gauge(encoder, &name("connections_open"), "Connections open", open.get())?;
    let counters = [
        ("connections_accepted", "Connections accepted", accepted),
        ("connections_refused_network", "Refused: network not allowed", refused_networks),
        ("connections_refused_full", "Refused: too many connections", refused_connections),
        ("connections_refused_source", "Refused: too many of one source", refused_sources),
        ("connections_refused_handshakes", "Refused: too many handshakes", refused_handshakes),
        ("handshakes_failed", "Handshakes that failed", failed_handshakes),
        ("handshakes_ok", "Handshakes that succeeded", handshakes),
        ("connections_without_request", "Ended: no request in time", without_request),
        ("connections_cut_off", "Cut off with requests in flight", cut_off),
        ("certificates_revoked", "Certificates that lost their trust", revoked_connections),
        ("accept_errors", "Times that accept failed", accept_errors),
    ];
    for (what, help, value) in counters {
        counter(encoder, &name(what), help, value.get())?;
    }
    Ok(())
}

/// Tells of the set in force, so that a reload shows.
fn encode_certificates(
    encoder: &mut DescriptorEncoder<'_>,
    certificates: &[(Listener, Arc<TlsStore>)],
) -> fmt::Result {
    let sets: Vec<(Listener, Validity)> = certificates
        .iter()
        .map(|(listener, store)| (*listener, store.current().validity()))
        .collect();
    let name = "holdfast_tls_certificate_not_after_seconds";
    let help = "Unix time at which the first certificate of the chain, or of the client CAs, ends";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (listener, Validity { server, client_ca, crl_next_update: _ }) in &sets {
        for (certificate, end) in [("server", server), ("client_ca", client_ca)] {
            let Some(end) = end else { continue };
            let labels = [("listener", *listener), ("certificate", certificate)];
            ConstGauge::new(*end).encode(family.encode_family(&labels)?)?;
        }
    }
    let name = "holdfast_tls_crl_next_update_seconds";
    let help = "Unix time at which the first revocation list runs out, and clients are refused";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (listener, set) in &sets {
        let Some(end) = set.crl_next_update else { continue };
        ConstGauge::new(end).encode(family.encode_family(&[("listener", *listener)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

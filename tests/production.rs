//! The server as it is meant to be run: TLS on the admin listener, JSON logs, the PIN from systemd, revocation lists.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure in a test's helper is a failed test"
)]

mod common;

use common::rig::serving;
use common::{LIMIT, Rig, Server, refusal};
use kms_testkit::client::{AlertDescription, handshake_alert};
use kms_testkit::deadline::within;
use kms_testkit::pki::{Identity, Kind};
use rustix::process::Signal;
use serde_json::Value;
use tonic::Code;

/// Exit status for a wrong configuration.
const EXIT_CONFIG: i32 = 78;

/// Returns the alert with which the listener at `address` refuses `identity`.
async fn alert(
    server: &Server,
    address: std::net::SocketAddr,
    identity: Option<&Identity>,
) -> Option<AlertDescription> {
    let ca = server.rig.pki.ca();
    within(LIMIT, "an alert", handshake_alert(address, &ca, identity)).await.unwrap()
}

#[test]
fn check_config_finds_it_good_and_says_so() {
    let output = Rig::production().check_config();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "the configuration is good\n");
    assert!(output.stderr.is_empty());
}

/// Adds a certificate to the trusted ones that has run out.
fn trust_an_expired_one(rig: &Rig) {
    let old = std::fs::read(rig.pki.issue("old", &Kind::Expired).certificate).unwrap();
    let bundle = [std::fs::read(rig.pki.ca()).unwrap(), old].concat();
    std::fs::write(rig.pki.ca(), bundle).unwrap();
}

#[tokio::test]
async fn a_reload_warns_of_what_has_expired() {
    let mut server = Rig::production().start();
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates reloaded", LIMIT);
    assert!(!server.process.stderr().contains("certificate_dates"));
    trust_an_expired_one(&server.rig);
    server.process.signal(Signal::HUP);
    let told = server.process.await_line("\"alert\":\"certificate_dates\"", LIMIT);
    assert!(told.contains("tls.client_ca") && told.contains("expired at 2021-01-01"), "{told}");
    server.stop().await;
}

#[tokio::test]
async fn an_expired_ca_is_told_by_the_check_and_warned_of_at_the_start() {
    let rig = Rig::production();
    trust_an_expired_one(&rig);
    let output = rig.check_config();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(EXIT_CONFIG), "{told}");
    assert!(
        told.starts_with("tls.client_ca: ") && told.contains("expired at 2021-01-01"),
        "{told}"
    );
    let mut process = rig.spawn();
    process.await_line("\"alert\":\"certificate_dates\"", LIMIT);
    serving(process, rig).stop().await;
}

#[tokio::test]
async fn readiness_is_told_to_who_shows_a_certificate() {
    let server = Rig::production().start();
    let ready = async { while server.get_over_tls("/readyz").await.0 != 200 {} };
    within(LIMIT, "readiness", ready).await;
    let refused = alert(&server, server.admin, None).await;
    assert_eq!(refused, Some(AlertDescription::CertificateRequired));
    server.stop().await;
}

#[tokio::test]
async fn no_core_is_dumped_and_the_memory_is_hidden() {
    use std::os::unix::fs::MetadataExt as _;
    let server = Rig::production().start();
    let proc = std::path::PathBuf::from(format!("/proc/{}", server.process.id()));
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let limits: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(limits, ["0", "0"], "{core}");
    // The kernel gives the files of what is not dumpable to root. When the tests run as root this says nothing, and
    // kms-server/tests/hardening.rs says it.
    assert_eq!(std::fs::metadata(proc.join("environ")).unwrap().uid(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_that_a_reloaded_list_revokes_is_refused_everywhere() {
    let mut server = Rig::production().start();
    let key = server.operator().await.create("revoked").await.name;
    let stranger = server.client(&server.rig.stranger).await;
    refusal(stranger.wrap(&key, b"x", &[]).await).is(Code::PermissionDenied, "ACCESS_DENIED");
    server.rig.pki.revoke("clients", &[&server.rig.stranger]);
    server.process.signal(Signal::HUP);
    server.process.await_line("certificates reloaded", LIMIT);
    refusal(stranger.wrap(&key, b"x", &[]).await).is(Code::Unauthenticated, "CERT_UNTRUSTED");
    for address in [server.listen, server.admin] {
        let refused = alert(&server, address, Some(&server.rig.stranger)).await;
        assert_eq!(refused, Some(AlertDescription::CertificateRevoked));
    }
    assert!(server.operator().await.wrap(&key, b"x", &[]).await.is_ok(), "others are let in");
    server.stop().await;
}

#[tokio::test]
async fn a_log_line_names_the_event_of_the_audit_record() {
    let mut rig = Rig::production();
    rig.log_level = "debug";
    let mut server = rig.start();
    let client = server.operator().await;
    let status = client.wrap("tenants/acme/keys/nowhere", b"x", &[]).await.unwrap_err();
    let told = status.metadata().get("holdfast-event-id").unwrap().to_str().unwrap();
    let line: Value =
        serde_json::from_str(&server.process.await_line("\"message\":\"refused\"", LIMIT)).unwrap();
    assert_eq!(line["span"]["event_id"], told, "{line}");
    let records = server.records();
    let of_event = records.iter().filter(|record| record["event_id"] == told);
    let operations: Vec<_> = of_event.map(|record| &record["operation"]).collect();
    assert_eq!(operations, [&line["span"]["method"]], "{records:?}");
    server.stop().await;
}

//! Signals and directories: an orderly end under load, certificates read again, one server a directory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

#[allow(dead_code, reason = "shared with crash.rs, which uses all of it")]
mod support_crash;
mod support_dev;

use std::path::Path;
use std::process::Command;

use kms_proto::v1 as proto;
use kms_testkit::{Pki, Process};
use support_crash::Random;
use support_crash::client::Client;
use support_crash::examiner::Examiner;
use support_dev::{DevServer, LIMIT, TENANT, dev_command, identity, new_key};

/// How often a server is stopped while clients work.
const DRAINS: usize = 3;
const CLIENTS: usize = 4;
/// How many operations each server acknowledges before it is told to stop.
const ACKNOWLEDGED: usize = 60;
/// Exit status of a server whose directory another one holds.
const EXIT_HELD: i32 = 77;
/// The first lease of invocations.
const FIRST_LEASE: u64 = 1_024;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn send(signal: &str, process: &Process) {
    let sent = Command::new("kill").args([signal, &process.id().to_string()]).output().unwrap();
    assert!(sent.status.success(), "kill {signal}: {sent:?}");
}

fn entries(ledgers: &[std::path::PathBuf]) -> usize {
    ledgers.iter().map(|path| std::fs::read_to_string(path).unwrap().lines().count()).sum()
}

#[test]
fn a_drain_under_load_loses_nothing_and_leaves_nothing_open() {
    let seed = Random::seed();
    println!("HOLDFAST_CRASH_SEED={seed}");
    runtime().block_on(async {
        let home = tempfile::tempdir().unwrap();
        let mut random = Random(seed);
        let directory = home.path().join("dev");
        let ledgers: Vec<_> =
            (0..CLIENTS).map(|n| home.path().join(format!("ledger-{n}"))).collect();
        let numbered = ledgers.iter().enumerate();
        let mut clients: Vec<_> = numbered
            .map(|(number, ledger)| Client::new(number, Random(random.next()), ledger))
            .collect();
        let mut examiner = Examiner::new(&directory, &ledgers);
        for round in 1..=DRAINS {
            let mut server = DevServer::start(&directory);
            let mut working = tokio::task::JoinSet::new();
            for client in clients.drain(..) {
                working.spawn(client.work(server.connect().await));
            }
            kms_testkit::deadline::eventually(LIMIT, "some load", || {
                entries(&ledgers) >= round * ACKNOWLEDGED
            });
            assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
            let stopped = working.join_all();
            clients = kms_testkit::deadline::within(LIMIT, "the clients' end", stopped).await;
            let log = server.process.stderr();
            assert!(log.lines().any(|line| line.ends_with("stopped")), "{log}");
            assert!(!log.contains("cut off at its deadline"), "{log}");
            let (_, intents) = support_crash::residents::in_store(&directory);
            assert!(intents.is_empty(), "left open: {intents:?}");
        }
        let mut server = DevServer::start(&directory);
        let channel = server.connect().await;
        examiner.examine(&channel, &mut random).await;
        for client in &mut clients {
            client.settle(&channel).await;
        }
        examiner.examine_all(&channel).await;
        assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
    });
}

/// Returns how many invocations are accounted to version 1 of a key.
async fn invocations(server: &DevServer, key: &str) -> u64 {
    let name = format!("{key}/versions/1");
    let mut client = kms_testkit::client::key_client(&server.connect().await);
    let request = proto::DescribeKeyVersionRequest { name };
    client.describe_key_version(request).await.unwrap().into_inner().invocation_count
}

#[test]
fn a_drain_returns_what_was_leased_and_a_kill_does_not() {
    const WRAPS: u64 = 5;
    runtime().block_on(async {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("dev");
        let mut server = DevServer::start(&directory);
        let mut keys = vec![];
        for key_id in ["drained", "killed"] {
            let request = new_key(key_id, proto::Protection::HsmWrapped);
            let mut client = kms_testkit::client::key_client(&server.connect().await);
            keys.push(client.create_key(request).await.unwrap().into_inner().name);
        }
        wrap(&server, &keys[0], WRAPS).await;
        assert!(invocations(&server, &keys[0]).await >= FIRST_LEASE);
        assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
        let mut server = DevServer::start(&directory);
        // What was used, and the check blob.
        let used = invocations(&server, &keys[0]).await;
        assert!((WRAPS..=WRAPS + 1).contains(&used), "{used}");
        wrap(&server, &keys[1], WRAPS).await;
        server.process.kill();
        let server = DevServer::start(&directory);
        assert!(invocations(&server, &keys[1]).await >= FIRST_LEASE, "counts may only be too high");
    });
}

async fn wrap(server: &DevServer, key: &str, times: u64) {
    let mut client = kms_testkit::client::crypto_client(&server.connect().await);
    for _ in 0..times {
        let context = std::collections::HashMap::new();
        let plaintext = b"x".to_vec().into();
        client.wrap(proto::WrapRequest { key: key.to_owned(), plaintext, context }).await.unwrap();
    }
}

/// Connects as the dev client to a server whose certificate `ca` must have issued, and lists keys.
async fn trusts(server: &DevServer, ca: &Path) -> bool {
    let client = identity(&server.directory);
    let connecting = kms_testkit::client::connect(server.listen, ca, Some(&client));
    let Ok(channel) = kms_testkit::deadline::within(LIMIT, "an answer", connecting).await else {
        return false;
    };
    let request = proto::ListKeysRequest {
        parent: TENANT.to_owned(),
        page_size: 0,
        page_token: String::new(),
        ..Default::default()
    };
    kms_testkit::client::key_client(&channel).list_keys(request).await.is_ok()
}

#[test]
fn sighup_takes_a_new_certificate_and_a_broken_one_changes_nothing() {
    runtime().block_on(async {
        let home = tempfile::tempdir().unwrap();
        let mut server = DevServer::start(&home.path().join("dev"));
        let pki = server.directory.join("pki");
        let old_ca = pki.join("ca.pem");
        let other = Pki::create(&home.path().join("other"));
        let (certificate, _) = other.usual();
        assert!(trusts(&server, &old_ca).await);
        assert!(!trusts(&server, &other.ca()).await);

        std::fs::copy(&certificate.certificate, pki.join("server.pem")).unwrap();
        std::fs::copy(&certificate.key, pki.join("server.key")).unwrap();
        assert!(trusts(&server, &old_ca).await, "read before it was told");
        send("-HUP", &server.process);
        server.process.await_line("certificates reloaded", LIMIT);
        assert!(trusts(&server, &other.ca()).await);
        assert!(!trusts(&server, &old_ca).await);

        std::fs::write(pki.join("server.pem"), "broken").unwrap();
        send("-HUP", &server.process);
        server.process.await_line("certificates not reloaded", LIMIT);
        assert!(trusts(&server, &other.ca()).await);
        assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
    });
}

#[test]
fn a_second_server_on_a_directory_is_refused_and_the_first_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("dev");
    let mut server = DevServer::start(&directory);
    let mut second = Process::start(&mut dev_command(&directory));
    assert_eq!(second.await_end(LIMIT).code(), Some(EXIT_HELD));
    assert!(second.stderr().contains("is held by another process"), "{}", second.stderr());
    assert!(directory.join("ready.json").exists(), "the first one's ready file is gone");
    assert!(runtime().block_on(trusts(&server, &directory.join("pki/ca.pem"))));
    assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
    assert!(!directory.join("ready.json").exists());
    let mut third = DevServer::start(&directory);
    assert_eq!(third.process.terminate(LIMIT).code(), Some(0));
}

#[test]
fn an_exported_configuration_of_the_directory_does_not_keep_it_from_being_made() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("dev");
    let mut command = dev_command(&directory);
    command.env("SOFTHSM2_CONF", directory.join("softhsm2.conf"));
    let mut server = DevServer::ready(Process::start(&mut command), &directory);
    assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
}

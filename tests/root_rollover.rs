//! Root rollover of a running server: staged, done while keys are used and the process is killed at any moment, retired.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod support_dev;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use kms_proto::v1 as proto;
use kms_testkit::client::{crypto_client, key_client};
use kms_testkit::process::binary;
use support_dev::random::Random;
use support_dev::{DevServer, LIMIT, TENANT, audit_records, new_key, postgres_file};
use tonic::transport::Channel;

/// How often a server is killed before it has sealed all rows.
const KILLS: usize = 100;
/// The longest that it lives after it is ready: about what sealing all takes.
const MAX_LIFE_MS: usize = 80;
const KEYS: usize = 100;

/// A key and what was wrapped with its first version.
struct Wrapped {
    key: String,
    ciphertext: tonic::codegen::Bytes,
}

fn kms_server(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("kms-server"));
    command.env_remove("SOFTHSM2_CONF").args(arguments).arg("--dir").arg(directory);
    if is_on_postgres(directory) {
        command.arg("--postgres").arg(postgres_file(directory));
    }
    command.arg("--module").arg(kms_testkit::softhsm::module()).output().unwrap()
}

fn is_on_postgres(directory: &Path) -> bool {
    postgres_file(directory).exists()
}

fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

fn stage(directory: &Path, generation: usize) {
    let output = kms_server(directory, &["root", "stage"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(&format!("root generation {generation} is pinned")));
}

/// Retires a generation; returns whether nothing was left under it.
fn retire(directory: &Path, generation: usize) -> bool {
    let generation = generation.to_string();
    let arguments = ["root", "retire", "--generation", &generation, "--reason", "rolled over"];
    let output = kms_server(directory, &arguments);
    match output.status.code() {
        Some(0) => true,
        Some(65) => {
            assert!(text(&output).contains("rows are still under an older root"));
            false
        }
        _ => panic!("{}", text(&output)),
    }
}

fn verify_store(directory: &Path) {
    if is_on_postgres(directory) {
        // It reads files.
        return;
    }
    let output = kms_server(directory, &["verify-store"]);
    assert!(output.status.success(), "{}", text(&output));
}

async fn create(channel: &Channel, number: usize) -> Wrapped {
    let protection = match number % 10 {
        0 => proto::Protection::HsmResident,
        _ => proto::Protection::HsmWrapped,
    };
    let new = new_key(&format!("key-{number}"), protection);
    let key = key_client(channel).create_key(new).await.unwrap().into_inner().name;
    let wrap = proto::WrapRequest {
        key: key.clone(),
        plaintext: key.clone().into_bytes().into(),
        ..proto::WrapRequest::default()
    };
    let ciphertext = crypto_client(channel).wrap(wrap).await.unwrap().into_inner().ciphertext;
    Wrapped { key, ciphertext }
}

async fn opens(channel: &Channel, wrapped: &Wrapped) -> Result<(), tonic::Status> {
    let unwrap = proto::UnwrapRequest {
        key: wrapped.key.clone(),
        ciphertext: wrapped.ciphertext.clone(),
        ..proto::UnwrapRequest::default()
    };
    let opened = crypto_client(channel).unwrap(unwrap).await?.into_inner();
    assert_eq!(opened.plaintext, wrapped.key.as_bytes());
    Ok(())
}

/// Waits until a metric has a value.
async fn await_metric(server: &DevServer, line: &str) {
    let asked = async {
        loop {
            let text = metrics(server).await;
            if text.lines().any(|found| found == line) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    kms_testkit::deadline::within(LIMIT, line, asked).await;
}

async fn metrics(server: &DevServer) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(server.admin).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_root_is_staged_rolled_over_while_keys_are_used_and_retired() {
    let root = tempfile::tempdir().unwrap();
    a_root_is_rolled_over(&root.path().join("dev")).await;
}

#[tokio::test]
async fn a_root_is_staged_rolled_over_and_retired_on_postgres() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("dev");
    let database = kms_testkit::Postgres::shared().fresh_database();
    std::fs::write(postgres_file(&directory), database.toml()).unwrap();
    a_root_is_rolled_over(&directory).await;
    assert!(!directory.join("store.db").exists(), "nothing is in a file");
}

async fn a_root_is_rolled_over(directory: &Path) {
    let mut server = DevServer::start(directory);
    let channel = server.connect().await;
    let mut wrapped = Vec::new();
    for number in 0..5 {
        wrapped.push(create(&channel, number).await);
    }
    let running = kms_server(directory, &["root", "stage"]);
    assert_eq!(running.status.code(), Some(77), "while a server runs: {}", text(&running));
    assert!(server.process.terminate(LIMIT).success());
    stage(directory, 2);
    let again = kms_server(directory, &["root", "stage"]);
    assert_eq!(again.status.code(), Some(65), "{}", text(&again));
    assert!(!retire(directory, 1), "rows are under it");
    verify_store(directory);

    let mut server = DevServer::start(directory);
    let channel = server.connect().await;
    for wrapped in &wrapped {
        opens(&channel, wrapped).await.unwrap();
    }
    await_metric(&server, "holdfast_root_rollover_running 0").await;
    let told = metrics(&server).await;
    for line in [
        "holdfast_root_generation 2",
        "holdfast_root_oldest_generation 1",
        "holdfast_root_rollover_rewrapped_versions_total 4",
        "holdfast_root_rollover_failed_rows 0",
        "holdfast_root_rollover_rows_left 0",
    ] {
        assert!(told.lines().any(|found| found == line), "{line} in {told}");
    }
    assert!(server.process.terminate(LIMIT).success());
    verify_store(directory);
    assert!(retire(directory, 1));
    for (generation, why) in [("1", "is not open"), ("2", "is the newest"), ("3", "is not open")] {
        let arguments = ["root", "retire", "--generation", generation, "--reason", "x"];
        let refused = kms_server(directory, &arguments);
        assert_eq!(refused.status.code(), Some(78), "{generation}");
        assert!(text(&refused).contains(why), "{}", text(&refused));
    }

    let server = DevServer::start(directory);
    let channel = server.connect().await;
    for wrapped in &wrapped {
        opens(&channel, wrapped).await.unwrap();
    }
    wrapped.push(create(&channel, 5).await);
    let told = metrics(&server).await;
    assert!(told.lines().any(|line| line == "holdfast_root_oldest_generation 2"), "{told}");
    let records = audit_records(directory);
    for operation in ["internal/StageRoot", "internal/RollOverRoot", "internal/RetireRoot"] {
        let ok = records
            .iter()
            .any(|record| record["operation"] == operation && record["result"] == "OK");
        assert!(ok, "{operation}");
    }
}

/// Whoever can write the database takes no root out of use, and gives no other reason for it.
#[tokio::test]
async fn a_root_that_was_retired_by_hand_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("dev");
    let mut server = DevServer::start(&directory);
    let wrapped = create(&server.connect().await, 1).await;
    assert!(server.process.terminate(LIMIT).success());
    let edit = |sql: &str| {
        let database = rusqlite::Connection::open(directory.join("store.db")).unwrap();
        database.execute_batch(sql).unwrap();
        database.close().unwrap();
    };
    let refused = |generation: u32| {
        for arguments in [&["dev", "--listen", "127.0.0.1:0"][..], &["verify-store"]] {
            let output = kms_server(&directory, arguments);
            assert_eq!(output.status.code(), Some(74), "{}", text(&output));
            let what = format!("root set of generation {generation} fails its integrity check");
            assert!(text(&output).contains(&what), "{}", text(&output));
        }
    };
    let retire_by_hand = |generation: u32| {
        format!(
            "INSERT INTO retired_roots (retired, time, actor, reason, generation, mac)
             VALUES ({generation}, 1, 'x', 'x', {}, zeroblob(32));",
            generation + 1
        )
    };
    let restore = "DROP TRIGGER IF EXISTS retired_roots_stay; DELETE FROM retired_roots;";
    edit(&retire_by_hand(1));
    refused(1);
    edit(restore);
    stage(&directory, 2);
    edit(&retire_by_hand(1));
    refused(1);
    edit(restore);
    let mut server = DevServer::start(&directory);
    await_metric(&server, "holdfast_root_rollover_running 0").await;
    assert!(server.process.terminate(LIMIT).success());
    assert!(retire(&directory, 1));
    edit("DROP TRIGGER retired_roots_stand; UPDATE retired_roots SET reason = 'another';");
    refused(1);
    edit("UPDATE retired_roots SET reason = 'rolled over';");
    edit(&retire_by_hand(2));
    refused(2);
    edit("DELETE FROM retired_roots WHERE retired = 2;");
    verify_store(&directory);
    let server = DevServer::start(&directory);
    opens(&server.connect().await, &wrapped).await.unwrap();
}

#[tokio::test]
async fn no_key_is_lost_when_a_root_rollover_is_killed_at_any_moment() {
    let mut random = Random(Random::seed());
    println!("HOLDFAST_CRASH_SEED={}", random.0);
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("dev");
    let mut server = DevServer::start(&directory);
    let channel = server.connect().await;
    let mut wrapped = Vec::new();
    for number in 0..KEYS {
        wrapped.push(create(&channel, number).await);
    }
    drop(channel);
    server.process.kill();
    let (mut kills, mut late, mut newest) = (0, 0, 1);
    while kills < KILLS {
        newest += 1;
        stage(&directory, newest);
        while kills < KILLS {
            let mut server = DevServer::start(&directory);
            let channel = server.connect().await;
            let life = Duration::from_millis(random.below(MAX_LIFE_MS) as u64);
            let using = async {
                loop {
                    let wrapped = &wrapped[random.below(KEYS)];
                    opens(&channel, wrapped).await.unwrap();
                    // Pauses, so that it is not always the pace of a busy server.
                    tokio::time::timeout(
                        Duration::from_millis(random.below(20) as u64),
                        std::future::pending::<()>(),
                    )
                    .await
                    .unwrap_err();
                }
            };
            assert!(tokio::time::timeout(life, using).await.is_err());
            server.process.kill();
            if retire(&directory, newest - 1) {
                late += 1;
                break;
            }
            kills += 1;
        }
    }
    println!("{kills} kills, {late} more after the end, {newest} generations");
    verify_store(&directory);
    let server = DevServer::start(&directory);
    let channel = server.connect().await;
    for wrapped in &wrapped {
        opens(&channel, wrapped).await.unwrap();
    }
    let keys = key_client(&channel)
        .list_keys(proto::ListKeysRequest {
            parent: TENANT.to_owned(),
            page_size: 1000,
            ..proto::ListKeysRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(keys.keys.len(), KEYS);
}

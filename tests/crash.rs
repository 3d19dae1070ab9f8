//! `kill -9` at random moments under load: what a client was told is true after the restart.
//!
//! Clients keep lists of what was acknowledged. After each restart on the same directory every key, version and
//! ciphertext on them is there, and every operation has its audit record; a change that was cut off is repeated with its
//! request id and is done exactly once. At the end the audit chain verifies from its first entry, every mutation that
//! began in the log has an outcome there, every version in the database that of its own mutation (the record of a repeat
//! does not count), and the token holds no key that neither the database nor a record names. What a kill leaves agrees with
//! the log as `verify-store` sees it. What kill -9 cannot show, fsync, is in durability.rs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test program: a failure here is a failed test"
)]

mod support_crash;
mod support_dev;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kms_testkit::Postgres;
use support_crash::Random;
use support_crash::client::Client;
use support_crash::examiner::Examiner;
use support_crash::residents;
use support_dev::{DevServer, LIMIT, postgres_file, spawn};

/// How often a server is killed while clients work.
const KILLS_UNDER_LOAD: usize = 32;
/// The same with PostgreSQL: what the database survives is not ours to show again.
const KILLS_ON_POSTGRES: usize = 8;
/// How often a server is killed while it starts, on a directory that a killed one left.
const KILLS_AT_START: usize = 10;
/// How many directories see their first start killed, three times each.
const KILLS_AT_FIRST_START: usize = 8;
/// About how long a first start takes.
const FIRST_START_MS: usize = 600;
const CLIENTS: usize = 4;
/// The longest a server lives under load.
const MAX_LOAD_MS: usize = 1_000;
/// About how long a start takes, so that kills hit all of it.
const START_MS: usize = 400;

/// Waits for a random time, in which the process is expected to live on.
async fn random_while<F: Future>(random: &mut Random, most_ms: usize, meanwhile: F) {
    let time = Duration::from_millis(random.below(most_ms) as u64);
    let ended = tokio::time::timeout(time, meanwhile).await;
    assert!(ended.is_err(), "the clients stopped before their server was killed");
}

#[test]
fn what_was_acknowledged_survives_kills_under_load() {
    // SOFTHSM2_CONF for the look into the token at the end; dev mode writes this very file.
    kms_testkit::isolated_with(
        "what_was_acknowledged_survives_kills_under_load",
        &[("SOFTHSM2_CONF", "{root}/dev/softhsm2.conf")],
        |token| {
            let seed = Random::seed();
            println!("HOLDFAST_CRASH_SEED={seed}");
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let killing = kill_and_examine(token.root(), KILLS_UNDER_LOAD, Random(seed));
            let examiner = runtime.block_on(killing);
            log_and_token_agree(&token.root().join("dev"), &examiner);
        },
    );
}

/// The database goes on while servers die: what they had begun is ended by the next one, and its lock on the database
/// is not in the way of that.
#[test]
fn what_was_acknowledged_survives_kills_on_postgres() {
    kms_testkit::isolated_with(
        "what_was_acknowledged_survives_kills_on_postgres",
        &[("SOFTHSM2_CONF", "{root}/dev/softhsm2.conf")],
        |token| {
            let seed = Random::seed();
            println!("HOLDFAST_CRASH_SEED={seed}");
            let directory = token.root().join("dev");
            let database = residents::POSTGRES.get_or_init(|| Postgres::shared().fresh_database());
            std::fs::write(postgres_file(&directory), database.toml()).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let killing = kill_and_examine(token.root(), KILLS_ON_POSTGRES, Random(seed));
            let examiner = runtime.block_on(killing);
            assert!(!directory.join("store.db").exists(), "nothing is in a file");
            log_and_token_agree(&directory, &examiner);
        },
    );
}

async fn kill_and_examine(root: &Path, kills: usize, mut random: Random) -> Examiner {
    let directory = root.join("dev");
    let ledgers: Vec<_> = (0..CLIENTS).map(|n| root.join(format!("ledger-{n}"))).collect();
    let numbered = ledgers.iter().enumerate();
    let mut clients: Vec<_> = numbered
        .map(|(number, ledger)| Client::new(number, Random(random.next()), ledger))
        .collect();
    let mut examiner = Examiner::new(&directory, &ledgers);
    let mut server = DevServer::start(&directory);
    for round in 0..kills {
        let mut working = tokio::task::JoinSet::new();
        for client in clients.drain(..) {
            working.spawn(client.work(server.connect().await));
        }
        random_while(&mut random, MAX_LOAD_MS, working.join_next()).await;
        server.process.kill();
        let stopped = kms_testkit::deadline::within(LIMIT, "the clients' end", working.join_all());
        clients = stopped.await;
        if round % (KILLS_UNDER_LOAD / KILLS_AT_START) == 0 {
            verify_store(&directory);
            let mut starting = spawn(&directory);
            random_while(&mut random, START_MS, std::future::pending::<()>()).await;
            starting.kill();
        }
        server = DevServer::start(&directory);
        examiner.examine(&server.connect().await, &mut random).await;
    }
    let channel = server.connect().await;
    for client in &mut clients {
        client.settle(&channel).await;
    }
    examiner.examine_all(&channel).await;
    if kills == KILLS_UNDER_LOAD {
        // In fewer runs chance may leave a step out.
        examiner.keys_lived();
    }
    let operations = examiner.acknowledged.len();
    assert!(operations > kills * CLIENTS, "too little load: {operations}");
    assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
    verify_store(&directory);
    examiner
}

/// Whatever the moment of the kill: rows, manifests, counters and log agree, as far as open intents say.
fn verify_store(directory: &Path) {
    if residents::POSTGRES.get().is_some() {
        // It reads files. The next start compares manifests and log all the same.
        return;
    }
    let mut command = Command::new(kms_testkit::process::binary("kms-server"));
    command.args(["verify-store", "--module"]).arg(kms_testkit::softhsm::module());
    let output = command.arg("--dir").arg(directory).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn log_and_token_agree(directory: &Path, examiner: &Examiner) {
    let report = kms_server::audit::verify::verify(&directory.join("audit"), None).unwrap();
    assert_eq!(report.first_seq, Some(1));
    let (in_versions, _) = residents::in_store(directory);
    assert!(!in_versions.is_empty(), "no resident key was made");
    examiner.versions_were_told();
    every_key_is_named(directory, examiner);
}

/// Every key of the token has a row, an intent, a pin, or a record that nobody knows it.
fn every_key_is_named(directory: &Path, examiner: &Examiner) {
    let (in_versions, in_intents) = residents::in_store(directory);
    let in_token = residents::in_token(directory);
    let lost: Vec<_> = in_versions.difference(&in_token).collect();
    assert!(lost.is_empty(), "the token lost {lost:?}");
    let mut named = residents::roots(directory);
    named.extend(in_versions.into_iter().chain(in_intents));
    named.extend(examiner.orphans.iter().cloned());
    let unnamed: Vec<_> = in_token.difference(&named).collect();
    assert!(unnamed.is_empty(), "nobody reported {unnamed:?}");
}

#[test]
fn a_first_start_that_was_killed_is_resumed() {
    // SOFTHSM2_CONF for the look into each token at its end: the module reads the file whenever it is initialised.
    kms_testkit::isolated_with(
        "a_first_start_that_was_killed_is_resumed",
        &[("SOFTHSM2_CONF", "{root}/look.conf")],
        |token| {
            let seed = Random::seed();
            println!("HOLDFAST_CRASH_SEED={seed}");
            let mut random = Random(seed);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            for _ in 0..KILLS_AT_FIRST_START {
                let home = tempfile::tempdir().unwrap();
                let directory = home.path().join("dev");
                let examiner = runtime.block_on(kill_first_starts(&directory, &mut random));
                let configuration = directory.join("softhsm2.conf");
                std::fs::copy(configuration, token.root().join("look.conf")).unwrap();
                every_key_is_named(&directory, &examiner);
            }
        },
    );
}

/// Kills a server three times while it makes its directory, and examines what the fourth one serves.
async fn kill_first_starts(directory: &Path, random: &mut Random) -> Examiner {
    for most_ms in [FIRST_START_MS, FIRST_START_MS, START_MS] {
        let mut starting = spawn(directory);
        random_while(random, most_ms, std::future::pending::<()>()).await;
        starting.kill();
    }
    let mut server = DevServer::start(directory);
    let channel = server.connect().await;
    let ledger = directory.with_extension("ledger");
    let mut client = Client::new(0, random.clone(), &ledger);
    client.create(&channel).await.unwrap();
    client.wrap(&channel, 0).await.unwrap();
    let mut examiner = Examiner::new(directory, &[ledger]);
    examiner.examine_all(&channel).await;
    assert_eq!(examiner.acknowledged.len(), 2);
    assert_eq!(server.process.terminate(LIMIT).code(), Some(0));
    examiner
}

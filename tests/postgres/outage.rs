//! The database is away for a while, under load: what needs it says so, and all goes on without a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kms_testkit::Postgres;
use kms_testkit::deadline::eventually;
use kms_testkit::postgres::Stop;
use tonic::Code;

use crate::common::calls::new_key;
use crate::common::{Client, LIMIT, Rig, Server, refusal};

/// Clients that change keys and use them.
const CLIENTS: usize = 4;

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    created: Vec<String>,
    unavailable: usize,
}

/// Creates keys until told to stop; each answer is a key, or that the database is away.
async fn work(
    client: Client,
    number: usize,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
) -> Seen {
    let mut seen = Seen::default();
    for count in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        match client.keys().create_key(new_key(&format!("load-{number}-{count}"))).await {
            Ok(answer) => {
                seen.created.push(answer.into_inner().name);
                made.fetch_add(1, Ordering::AcqRel);
            }
            Err(status) => {
                let refused = crate::common::Refusal::of(&status);
                let away =
                    refused.code == Code::Unavailable && refused.reason == "STORE_UNAVAILABLE";
                let unknown = refused.reason == "OUTCOME_UNKNOWN";
                assert!(away || unknown, "{refused:?}");
                assert!(refused.retryable || unknown, "{refused:?}");
                seen.unavailable += 1;
            }
        }
    }
    seen
}

fn is_ready(server: &Server) -> bool {
    server.get("/readyz").0 == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_and_over_when_the_database_is_back() {
    let cluster = Postgres::start();
    let server = Rig::on_postgres(&cluster.fresh_database()).start();
    let client = server.operator().await;
    let key = client.create("before").await.name;
    let wrapped = client.wrap(&key, b"secret", &[]).await.unwrap().ciphertext;
    eventually(LIMIT, "readiness", || is_ready(&server));
    for how in [Stop::Immediate, Stop::Fast] {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut working = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let number = number + if how == Stop::Fast { CLIENTS } else { 0 };
            let client = server.operator().await;
            working.spawn(work(client, number, Arc::clone(&stop), Arc::clone(&made)));
        }
        let so_far = made.load(Ordering::Acquire);
        eventually(LIMIT, "load", || made.load(Ordering::Acquire) > so_far + CLIENTS);
        cluster.stop(how);
        eventually(LIMIT, "the outage in readiness", || !is_ready(&server));
        let report = server.get("/readyz").1;
        assert!(report.contains("\"store\":false") && report.contains("\"hsm\":true"), "{report}");
        let refused = refusal(client.keys().create_key(new_key("during")).await);
        assert!(refused.is(Code::Unavailable, "STORE_UNAVAILABLE").retryable);
        // What is loaded and has invocations leased needs no database.
        assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"secret");

        cluster.start_again();
        eventually(LIMIT, "the end of the outage in readiness", || is_ready(&server));
        let so_far = made.load(Ordering::Acquire);
        eventually(LIMIT, "load again", || made.load(Ordering::Acquire) > so_far + CLIENTS);
        stop.store(true, Ordering::Release);
        let seen = working.join_all().await;
        assert!(seen.iter().all(|seen| !seen.created.is_empty()));
        assert!(seen.iter().any(|seen| seen.unavailable > 0), "nobody saw the outage");
        for key in seen.iter().flat_map(|seen| &seen.created) {
            client.wrap(key, b"x", &[]).await.unwrap();
        }
    }
    let rig = server.stop().await;
    // And what was acknowledged is what the log says.
    rig.start().stop().await;
}

/// As a failover or a firewall does it: the server of the database is there, its sessions are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_were_ended_are_opened_again() {
    let database = Postgres::shared().fresh_database();
    let server = Rig::on_postgres(&database).start();
    let client = server.operator().await;
    for number in 0..5 {
        assert!(database.end_sessions() > 0);
        let id = format!("after-{number}");
        let mut made = None;
        for _ in 0..100 {
            match client.keys().create_key(new_key(&id)).await {
                Ok(answer) => {
                    made = Some(answer.into_inner().name);
                    break;
                }
                Err(status) => {
                    let reason = crate::common::Refusal::of(&status).reason;
                    assert!(["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"].contains(&reason.as_str()));
                }
            }
        }
        client.wrap(&made.unwrap(), b"x", &[]).await.unwrap();
    }
    server.stop().await;
}

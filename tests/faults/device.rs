//! An HSM that fails, hangs or loses its sessions while the server serves: callers get a typed error in time, and all
//! works again without a restart.

use kms_testkit::deadline::eventually;
use tonic::{Code, Status};

use crate::common::{Client, LIMIT, Rig, Server, refusal};

fn ready(server: &Server) -> bool {
    server.get("/readyz").0 == 200
}

/// Calls until it is answered with a success; errors before must be of an HSM that is not back yet.
async fn until_it_is_back(client: &Client, key: &str, wrapped: &[u8]) {
    let waiting = async {
        loop {
            match client.unwrap(key, wrapped, &[]).await {
                Ok(plaintext) => return assert_eq!(plaintext, b"before"),
                Err(status) => is_away(status),
            }
            tokio::task::yield_now().await;
        }
    };
    kms_testkit::deadline::within(LIMIT, "the HSM is back", waiting).await;
}

fn is_away(status: Status) {
    let refused = refusal::<()>(Err(status));
    assert!(refused.is(Code::Unavailable, "HSM_UNAVAILABLE").retryable);
    assert_eq!(refused.message, "the hsm is unavailable", "no PKCS#11 code for callers");
}

#[tokio::test]
async fn a_device_error_is_unavailable_and_passes_without_a_restart() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("device-error").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let dead = [
        "C_EncryptInit * return CKR_DEVICE_ERROR",
        "C_GetSessionInfo * return CKR_DEVICE_ERROR",
        "C_OpenSession * return CKR_DEVICE_ERROR",
        "C_Initialize * return CKR_DEVICE_ERROR",
    ];
    faulty.script(&dead);
    is_away(client.wrap(&key, b"x", &[]).await.unwrap_err());
    eventually(LIMIT, "readiness says no", || !ready(&server));
    is_away(client.wrap(&key, b"x", &[]).await.unwrap_err());
    assert!(server.process.stderr().contains("C_EncryptInit: DeviceError"), "operators are told");
    let records = server.records();
    assert!(records.iter().any(|record| record["result"] == "HSM_UNAVAILABLE"));

    faulty.heal();
    until_it_is_back(&client, &key, &wrapped).await;
    eventually(LIMIT, "readiness says yes again", || ready(&server));
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_lost_session_is_not_seen_by_callers() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("lost-session").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let mark = faulty.mark();
    faulty.script(&["C_DecryptInit 1 return CKR_SESSION_HANDLE_INVALID"]);
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    assert!(faulty.count_since(mark, "C_DecryptInit") >= 2, "it was tried again");
    server.stop().await;
}

#[tokio::test]
async fn a_hanging_call_is_answered_at_its_deadline_and_others_go_on() {
    let mut rig = Rig::new();
    rig.max_request_ms = 2_000;
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("hang").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let mark = faulty.mark();
    faulty.script(&["C_Encrypt 1 hang"]);
    let refused = refusal(client.wrap(&key, b"x", &[]).await);
    assert!(refused.is(Code::DeadlineExceeded, "HSM_DEADLINE").retryable);
    faulty.await_hang(mark, "C_Encrypt", LIMIT);
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    let records = server.records();
    assert!(records.iter().any(|record| record["result"] == "HSM_DEADLINE"));
    faulty.heal();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_hanging_call_one_waits_for_its_time_and_one_more_is_refused_at_once() {
    let mut rig = Rig::new();
    (rig.hsm_workers, rig.queue_capacity, rig.max_request_ms) = (1, 1, 2_000);
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("saturated").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let mark = faulty.mark();
    faulty.script(&["C_Encrypt 1 hang"]);
    let (one, name) = (client.clone(), key.clone());
    let hanging = tokio::spawn(async move { one.wrap(&name, b"x", &[]).await });
    faulty.await_hang(mark, "C_Encrypt", LIMIT);
    let (a, b) = tokio::join!(client.wrap(&key, b"x", &[]), client.wrap(&key, b"x", &[]));
    let mut behind = [refusal(a), refusal(b)];
    behind.sort_by_key(|refused| refused.reason.clone());
    let [saturated, waited] = &behind;
    assert!(saturated.is(Code::ResourceExhausted, "HSM_SATURATED").retryable, "{saturated:?}");
    assert!(waited.is(Code::DeadlineExceeded, "QUEUE_DEADLINE").retryable, "{waited:?}");
    refusal(hanging.await.unwrap()).is(Code::DeadlineExceeded, "HSM_DEADLINE");
    let records = server.records();
    for result in ["HSM_SATURATED", "QUEUE_DEADLINE", "HSM_DEADLINE"] {
        assert!(records.iter().any(|record| record["result"] == result), "{result}");
    }
    faulty.heal();
    let waiting = async {
        while client.unwrap(&key, &wrapped, &[]).await.ok().as_deref() != Some(b"before") {
            tokio::task::yield_now().await;
        }
    };
    kms_testkit::deadline::within(LIMIT, "the worker is back", waiting).await;
    server.stop().await;
}

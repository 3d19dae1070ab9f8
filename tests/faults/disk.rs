//! A disk without room: refused, nothing half done, and all works again when there is room.
//!
//! RLIMIT_FSIZE stands for the full disk: files of the running server cannot grow (EFBIG where a disk says ENOSPC, which
//! kms-server/tests/disk_faults.rs injects). It needs no rights, and can be set and lifted from outside at any moment.

use kms_proto::v1 as proto;
use kms_testkit::deadline::eventually;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tonic::Code;

use crate::common::calls::{key_name, new_key};
use crate::common::{LIMIT, Rig, Server, refusal};

/// Starts a server that gets an error, not a signal, when a file must not grow.
fn start() -> Server {
    let mut rig = Rig::new();
    let ignore = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    rig.wrapper = ignore.map(str::to_owned).to_vec();
    rig.start()
}

/// Starts a server whose calls on one file fail as `fault` says (strace's `inject`).
fn start_with(file: &str, fault: &str) -> Server {
    let mut rig = Rig::new();
    let path = rig.path(file).to_str().unwrap().to_owned();
    // With -D the server stays our child, and strace hangs on to it.
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", &path, "-e"];
    rig.wrapper = strace.map(str::to_owned).to_vec();
    rig.wrapper.push(format!("inject={fault}"));
    rig.start()
}

fn limit_files(server: &Server, bytes: Option<u64>) {
    let id = i32::try_from(server.process.id()).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(id, Resource::Fsize, limit).unwrap();
}

fn ready(server: &Server) -> bool {
    server.get("/readyz").0 == 200
}

#[tokio::test]
async fn on_a_full_disk_everything_is_refused_and_nothing_is_half_done() {
    let server = start();
    let client = server.operator().await;
    let key = client.create("full-disk").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let before = server.records();

    limit_files(&server, Some(1));
    for _ in 0..3 {
        let refused = refusal(client.wrap(&key, b"x", &[]).await);
        assert!(refused.is(Code::Unavailable, "AUDIT_UNAVAILABLE").retryable);
        assert_eq!(refused.message, "the audit log is unavailable");
        let refused = refusal(client.unwrap(&key, &wrapped, &[]).await);
        refused.is(Code::Unavailable, "AUDIT_UNAVAILABLE");
    }
    let creating = new_key("half-done");
    let refused = refusal(client.keys().create_key(creating.clone()).await);
    assert!(refused.retryable, "{refused:?}");
    assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
    let rotating = proto::RotateKeyRequest {
        name: key.clone(),
        reason: String::new(),
        request_id: crate::common::request_id(),
    };
    let refused = refusal(client.keys().rotate_key(rotating.clone()).await);
    assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
    eventually(LIMIT, "readiness says no", || !ready(&server));
    assert_eq!(server.records(), before, "what was refused left no record that says otherwise");

    limit_files(&server, None);
    eventually(LIMIT, "readiness says yes again", || ready(&server));
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    let describing = proto::DescribeKeyRequest { name: key_name("half-done") };
    refusal(client.keys().describe_key(describing).await).is(Code::NotFound, "KEY_NOT_FOUND");
    let describing = proto::DescribeKeyRequest { name: key.clone() };
    let now = client.keys().describe_key(describing).await.unwrap().into_inner();
    assert_eq!((now.primary_version, now.version_count), (1, 1));

    // The same requests again are good now.
    assert!(client.keys().create_key(creating).await.is_ok());
    let rotated = client.keys().rotate_key(rotating).await.unwrap().into_inner();
    assert_eq!(rotated.version.unwrap().version, 2);
    let rig = server.stop().await;
    let server = rig.start();
    let client = server.operator().await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    server.stop().await;
}

#[tokio::test]
async fn with_a_read_only_audit_log_nothing_is_used_or_changed() {
    // Two records of the creation, one of the lease and one of the wrap are written; all later ones are not.
    let fault = "pwrite64:error=EROFS:when=5+";
    let server = start_with("audit/audit-00000001.jsonl", fault);
    let client = server.operator().await;
    let key = client.create("read-only").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let before = server.records();
    assert_eq!(before.len(), 4);

    let unavailable = |refused: crate::common::Refusal| {
        assert!(refused.is(Code::Unavailable, "AUDIT_UNAVAILABLE").retryable);
    };
    unavailable(refusal(client.unwrap(&key, &wrapped, &[]).await));
    unavailable(refusal(client.keys().create_key(new_key("never")).await));
    let rotating = proto::RotateKeyRequest {
        name: key.clone(),
        reason: String::new(),
        request_id: crate::common::request_id(),
    };
    unavailable(refusal(client.keys().rotate_key(rotating.clone()).await));
    eventually(LIMIT, "readiness says no", || !ready(&server));
    let (_, body) = server.get("/readyz");
    assert!(body.contains("\"audit\":false") && body.contains("\"store\":true"), "{body}");

    // The process may not be able to leave in order; what it left is finished or undone at the next start.
    let mut rig = server.stop().await;
    rig.wrapper.clear();
    let server = rig.start();
    let client = server.operator().await;
    assert_eq!(server.records()[..4], before);
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    let describing = proto::DescribeKeyRequest { name: key_name("never") };
    refusal(client.keys().describe_key(describing).await).is(Code::NotFound, "KEY_NOT_FOUND");
    let rotated = client.keys().rotate_key(rotating).await.unwrap().into_inner();
    assert_eq!(rotated.version.unwrap().version, 2, "the refused one left no version behind");
    server.stop().await;
}

#[tokio::test]
async fn an_audit_log_that_is_writable_again_is_used_again_without_a_restart() {
    // The four records before the fault, and then as many attempts to write or to mend as fail.
    let fault = "pwrite64:error=EROFS:when=5..8";
    let server = start_with("audit/audit-00000001.jsonl", fault);
    let client = server.operator().await;
    let key = client.create("read-only-for-now").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    let before = server.records();
    assert_eq!(before.len(), 4);
    let creating = new_key("while-read-only");
    let refused = refusal(client.keys().create_key(creating.clone()).await);
    assert!(refused.is(Code::Unavailable, "AUDIT_UNAVAILABLE").retryable);
    eventually(LIMIT, "readiness says no", || !ready(&server));
    assert_eq!(server.records(), before);

    eventually(LIMIT, "readiness says yes again", || ready(&server));
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    assert!(client.keys().create_key(creating).await.is_ok(), "the same request again");
    let records = server.records();
    assert_eq!(records[..4], before);
    assert!(records.len() >= 7, "the unwrap's and the two of the creation: {records:?}");
    server.stop().await;
}

#[tokio::test]
async fn with_a_full_database_loaded_keys_work_and_changes_are_refused() {
    let server = start();
    let client = server.operator().await;
    let key = client.create("full-database").await.name;
    let wrapped = client.wrap(&key, b"before", &[]).await.unwrap().ciphertext;
    // Room for some records of the log, and none for the database: its files are longer already.
    let longest = std::fs::metadata(server.rig.path("store.db-wal")).unwrap().len();
    let log = std::fs::metadata(server.rig.path("audit/audit-00000001.jsonl")).unwrap().len();
    assert!(log + 8192 < longest, "{log} {longest}");
    limit_files(&server, Some(log + 8192));

    let refused = refusal(client.keys().create_key(new_key("never")).await);
    assert!(refused.is(Code::Unavailable, "STORE_UNAVAILABLE").retryable);
    assert_eq!(refused.message, "the store is unavailable");
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap(), b"before");
    assert!(client.wrap(&key, b"x", &[]).await.is_ok(), "its lease covers it");
    eventually(LIMIT, "readiness says no", || !ready(&server));
    let (_, body) = server.get("/readyz");
    assert!(body.contains("\"store\":false") && body.contains("\"audit\":true"), "{body}");

    limit_files(&server, None);
    eventually(LIMIT, "readiness says yes again", || ready(&server));
    let describing = proto::DescribeKeyRequest { name: key_name("never") };
    refusal(client.keys().describe_key(describing).await).is(Code::NotFound, "KEY_NOT_FOUND");
    assert!(client.keys().create_key(new_key("never")).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn on_a_full_token_one_key_is_refused_and_all_others_work() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    let server = rig.start();
    let client = server.operator().await;
    let key = client.create("wrapped").await.name;
    let resident = |key_id: &str| {
        let mut request = new_key(key_id);
        request.protection = proto::Protection::HsmResident.into();
        request
    };
    let old = client.keys().create_key(resident("old")).await.unwrap().into_inner().name;
    let mut sealed = vec![];
    for name in [&key, &old] {
        let wrapped = client.wrap(name, b"before", &[]).await.unwrap();
        sealed.push((name, wrapped.ciphertext));
    }

    // What SoftHSM 2.6.1 says when the disk under its token directory is full; all else goes on.
    faulty.script(&["C_GenerateKey * return CKR_FUNCTION_FAILED"]);
    for number in 0..3 {
        let creating = resident(&format!("never-{number}"));
        let refused = refusal(client.keys().create_key(creating).await);
        refused.is(Code::ResourceExhausted, "HSM_FULL");
        assert!(ready(&server), "the token is there for all others");
        for (name, wrapped) in &sealed {
            assert_eq!(client.unwrap(name, wrapped, &[]).await.unwrap(), b"before");
            assert!(client.wrap(name, b"x", &[]).await.is_ok());
        }
    }

    faulty.heal();
    assert!(client.keys().create_key(resident("never-0")).await.is_ok());
    let told = server.process.stderr();
    assert!(!told.contains("the HSM is unavailable"), "{told}");
    server.stop().await;
}

//! A wrong PIN, a module that is not one, a token that is away, and a token that is another.

use std::process::Command;

use kms_testkit::deadline::eventually;
use kms_testkit::{Process, softhsm};
use rustix::process::Signal;
use serde_json::Value;
use tonic::Code;

use crate::common::calls::key_name;
use crate::common::rig::{admin_address, get, serving};
use crate::common::{LIMIT, Rig, Server, refusal};

/// Exit status for a wrong configuration, and for a module that cannot be used.
const EXIT_CONFIG: i32 = 78;
const EXIT_HSM: i32 = 69;

fn readiness(admin: std::net::SocketAddr) -> (u16, Value) {
    let (code, body) = get(admin, "/readyz");
    (code, serde_json::from_str(&body).unwrap())
}

/// Makes a rig whose database has a key, `earlier`.
async fn with_key() -> Rig {
    let server = Server::fresh();
    server.operator().await.create("earlier").await;
    server.stop().await
}

/// Asserts that everything is refused because the HSM is latched, and that readiness says so.
async fn is_latched(server: &Server) {
    let client = server.operator().await;
    for _ in 0..10 {
        let refused = refusal(client.wrap(&key_name("earlier"), b"x", &[]).await);
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        assert_eq!(refused.message, "the hsm is unavailable", "no more for callers");
        let creating = crate::common::calls::new_key("any");
        assert_eq!(refusal(client.keys().create_key(creating).await).code, Code::Unavailable);
    }
    let (code, body) = readiness(server.admin);
    assert_eq!((code, &body["ready"], &body["hsm"]), (503, &false.into(), &false.into()));
    assert_eq!(server.get("/livez").0, 200, "it lives, so nothing restarts it");
    let told = server.process.stderr();
    assert!(told.contains("listening, but not ready") && !told.contains(" serving "), "{told}");
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_latched_and_the_right_one_still_opens_the_token() {
    let mut rig = with_key().await;
    let faulty = rig.use_faulty_module();
    let right = rig.pin_file.clone();
    rig.pin_file = rig.secret_file("wrong-pin", "WRONG-PIN-CANARY");
    let process = rig.spawn();
    let server = serving(process, rig);
    is_latched(&server).await;
    assert_eq!(faulty.count_since(0, "C_Login"), 1);
    let errors = server.process.stderr();
    let told = errors.lines().find(|line| line.contains("ERROR") && line.contains("latched"));
    let told = told.unwrap_or_else(|| panic!("nobody was told:\n{errors}"));
    assert!(told.to_lowercase().contains("pin"), "{told}");
    assert!(!errors.contains("WRONG-PIN-CANARY"), "{errors}");

    // One attempt does not lock a token, so the operator who mends the file is done.
    let mut rig = server.stop().await;
    assert_eq!(faulty.count_since(0, "C_Login"), 1, "not at the end either");
    rig.pin_file = right;
    let server = rig.start();
    assert_eq!(readiness(server.admin).0, 200);
    server.operator().await.create("mended").await;
    server.stop().await;
}

/// A flood of failures that has ended has no next failure that could tell how many there were.
#[tokio::test]
async fn failures_that_were_only_counted_are_told_at_the_end() {
    let mut rig = with_key().await;
    rig.pin_file = rig.secret_file("wrong-pin", "WRONG-PIN-CANARY");
    let mut server = rig.start();
    let client = server.operator().await;
    for _ in 0..40 {
        let refused = refusal(client.wrap(&key_name("earlier"), b"x", &[]).await);
        refused.is(Code::Unavailable, "HSM_LATCHED");
    }
    drop(client);
    server.process.signal(Signal::TERM);
    let line = server.process.await_line("more failed than were told", LIMIT);
    assert!(line.contains("HSM_LATCHED") && line.contains("counted=24"), "{line}");
    assert_eq!(server.process.await_end(LIMIT).code(), Some(0));
}

fn ends_with(rig: &Rig, status: i32) -> String {
    let mut process = rig.spawn();
    let ended = process.await_end(LIMIT);
    assert_eq!(ended.code(), Some(status), "{}", process.stderr());
    process.stderr()
}

/// 78, so that a service manager does not have the PIN tried again, and locked.
#[test]
fn missing_roots_are_told_with_what_was_looked_for_and_a_refused_pin_before_them() {
    let mut rig = Rig::new();
    std::fs::rename(rig.path("store.db"), rig.path("store.away")).unwrap();
    let told = ends_with(&rig, EXIT_CONFIG);
    let error = told.lines().find(|line| line.starts_with("error: ")).unwrap();
    let (store, module) = (rig.path("store.db"), rig.module.clone());
    assert!(error.starts_with("error: no root set is pinned in the database"), "{error}");
    for part in [store.to_str().unwrap(), module.to_str().unwrap(), &rig.token_serial] {
        assert!(error.contains(part), "{part}: {error}");
    }
    rig.pin_file = rig.secret_file("wrong-pin", "WRONG-PIN-CANARY");
    let told = ends_with(&rig, EXIT_CONFIG);
    assert!(told.contains("error: the hsm is latched: the token refused the PIN"), "{told}");
    assert!(told.contains("besides, no root set is pinned"), "{told}");
}

#[test]
fn a_missing_module_is_a_wrong_configuration() {
    let mut rig = Rig::new();
    rig.module = rig.path("no-module.so");
    let told = ends_with(&rig, EXIT_CONFIG);
    assert!(told.contains("hsm.module") && told.contains("no-module.so is not a file"), "{told}");
}

#[test]
fn a_file_that_is_no_module_cannot_be_used() {
    let mut rig = Rig::new();
    rig.module = rig.secret_file("text.so", "this is no shared object\n");
    let told = ends_with(&rig, EXIT_HSM);
    assert!(told.contains("error: hsm:"), "{told}");
}

#[test]
fn a_pin_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = Rig::new();
    rig.pin_file = rig.secret_file("open-pin", &rig.pin());
    std::fs::set_permissions(&rig.pin_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let told = ends_with(&rig, EXIT_CONFIG);
    assert!(told.contains("hsm.pin") && told.contains("run `chmod 0600 "), "{told}");
    assert!(!told.contains(&rig.pin()), "{told}");
}

/// Starts a server whose token is not there, and asserts that it waits and says so.
fn waits_for_token(rig: &Rig) -> Process {
    let mut process = rig.spawn();
    let admin = admin_address(&mut process);
    process.await_line("root sets cannot be opened yet", LIMIT);
    // What is not the token's fault is well, and said to be.
    eventually(LIMIT, "the other parts", || {
        let (code, body) = readiness(admin);
        let parts = ["ready", "hsm", "store", "audit", "serving"].map(|part| body[part] == true);
        (code, parts) == (503, [false, false, true, true, false])
    });
    process
}

#[tokio::test]
async fn a_token_that_is_away_is_waited_for() {
    let rig = Rig::new();
    let (here, away) = (rig.path("tokens"), rig.path("tokens-away"));
    std::fs::rename(&here, &away).unwrap();
    std::fs::create_dir(&here).unwrap();
    let mut process = waits_for_token(&rig);
    process.signal(Signal::HUP);
    process.await_line("certificates reloaded", LIMIT);
    std::fs::remove_dir(&here).unwrap();
    std::fs::rename(&away, &here).unwrap();
    let server = serving(process, rig);
    assert_eq!(readiness(server.admin).0, 200);
    let client = server.operator().await;
    let key = client.create("came-back").await.name;
    assert!(client.wrap(&key, b"x", &[]).await.is_ok());
    server.stop().await;
}

#[test]
fn a_serial_that_no_token_has_is_waited_for() {
    let mut rig = Rig::new();
    rig.token_serial = "0123456789abcdef".to_owned();
    let mut process = waits_for_token(&rig);
    let told = process.stderr();
    assert!(told.contains(&format!("no token with serial `{}`", rig.token_serial)), "{told}");
    assert_eq!(process.terminate(LIMIT).code(), Some(0), "SIGTERM ends the wait");
}

#[tokio::test]
async fn signals_during_the_login_are_heeded() {
    let mut rig = Rig::new();
    let faulty = rig.use_faulty_module();
    faulty.script(&["C_Login 1 hang"]);
    let mut process = rig.spawn();
    faulty.await_hang(0, "C_Login", LIMIT);
    process.signal(Signal::TERM);
    assert_eq!(process.await_end(LIMIT).code(), Some(0), "{}", process.stderr());

    let mark = faulty.mark();
    let mut process = rig.spawn();
    faulty.await_hang(mark, "C_Login", LIMIT);
    process.signal(Signal::HUP);
    faulty.heal();
    let server = serving(process, rig);
    assert_eq!(readiness(server.admin).0, 200);
    server.stop().await;
}

#[tokio::test]
async fn another_token_is_latched_and_nothing_is_made_on_it() {
    let mut rig = with_key().await;
    let faulty = rig.use_faulty_module();
    let before = serials(&rig);
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "another", "--so-pin", "so-pin-0815"])
        .args(["--pin", &rig.pin()])
        .env("SOFTHSM2_CONF", rig.path("softhsm2.conf"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let serial = serials(&rig).into_iter().find(|serial| !before.contains(serial)).unwrap();
    rig.token_serial = serial;
    let server = serving(rig.spawn(), rig);
    is_latched(&server).await;
    // Nor is it shown the PIN, although it would be the right one.
    for function in ["C_Login", "C_GenerateKey", "C_CreateObject", "C_UnwrapKey", "C_InitToken"] {
        assert_eq!(faulty.count_since(0, function), 0, "{function}");
    }
    server.stop().await;
}

/// Returns the serial numbers of all tokens in the token directory.
fn serials(rig: &Rig) -> Vec<String> {
    let shown = Command::new("softhsm2-util")
        .args(["--show-slots", "--module"])
        .arg(softhsm::module())
        .env("SOFTHSM2_CONF", rig.path("softhsm2.conf"))
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("Serial number:"));
    lines.map(|serial| serial.trim().to_owned()).filter(|serial| !serial.is_empty()).collect()
}

//! The binary: dev mode from nothing, again, and refused; check-config; exit statuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test helpers"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use kms_proto::v1 as proto;
use kms_testkit::deadline::within;
use kms_testkit::pki::Identity;
use kms_testkit::{Faulty, Process, SoftHsm, faulty, softhsm};
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_mins(1);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kms-server"));
    command.args(arguments).env_remove("SOFTHSM2_CONF");
    command
}

fn dev(directory: &Path) -> Command {
    let module = softhsm::module();
    let mut command = command(&["dev", "--listen", "127.0.0.1:0"]);
    command.arg("--dir").arg(directory).arg("--module").arg(module);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn ready(process: &mut Process, directory: &Path) -> serde_json::Value {
    serde_json::from_str(&process.await_file(&directory.join("ready.json"), LIMIT)).unwrap()
}

fn pinned(directory: &Path) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    (read("token-serial"), read("pki/ca.pem"))
}

#[test]
fn a_dev_server_starts_from_nothing_and_again_with_the_same_keys() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let mut first = Process::start(&mut dev(&directory));
    let told = ready(&mut first, &directory);
    assert!(first.await_line("*** DEV MODE ***", LIMIT).contains("Never for production"));
    let context = std::fs::read_to_string(directory.join("cli.toml")).unwrap();
    let listen = told["listen"].as_str().unwrap();
    assert!(context.contains(&format!("server = \"https://{listen}\"")), "{context}");
    let before = pinned(&directory);
    assert_eq!(first.terminate(LIMIT).code(), Some(0));
    assert!(!directory.join("ready.json").exists());

    let mut second = Process::start(&mut dev(&directory));
    ready(&mut second, &directory);
    assert_eq!(pinned(&directory), before);
    assert_eq!(std::fs::read_dir(directory.join("tokens")).unwrap().count(), 1);
    assert_eq!(second.terminate(LIMIT).code(), Some(0));
}

#[test]
fn a_directory_is_held_by_one_process_even_when_it_is_killed() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let mut first = Process::start(&mut dev(&directory));
    ready(&mut first, &directory);
    let refused = dev(&directory).output().unwrap();
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    first.kill();
    let mut second = Process::start(&mut dev(&directory));
    second.await_line("serving", LIMIT);
    assert_eq!(second.terminate(LIMIT).code(), Some(0));
}

/// Has the database of a dev server verified.
fn verify_store(directory: &Path) -> Output {
    let mut command = command(&["verify-store", "--dir"]);
    command.arg(directory).arg("--module").arg(softhsm::module()).output().unwrap()
}

#[test]
fn the_database_of_a_dev_server_is_verified_when_nobody_holds_it() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let nothing = verify_store(&directory);
    assert_eq!(nothing.status.code(), Some(78), "{nothing:?}");
    assert!(!directory.exists(), "nothing was made");
    let mut server = Process::start(&mut dev(&directory));
    let told = ready(&mut server, &directory);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        wrap(&connect(&directory, &told).await).await;
    });
    let held = verify_store(&directory);
    assert_eq!(held.status.code(), Some(77), "{held:?}");
    server.terminate(LIMIT);
    let verified = verify_store(&directory);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let text = String::from_utf8(verified.stdout).unwrap();
    for line in [
        "verified 1 tenants, 1 keys, 1 versions, 1 counters, 0 consumers, 0 aliases, 0 import jobs, 1 entries of histories, 1 rows of uses, 0 intents, 1 requests",
        "the database agrees with its MACs, its manifests and the log",
    ] {
        assert!(text.lines().any(|told| told == line), "{text}");
    }
}

#[test]
fn a_dev_server_refuses_a_database_that_was_put_back_until_it_is_accepted() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let (database, kept) = (directory.join("store.db"), parent.path().join("kept.db"));
    let mut server = Process::start(&mut dev(&directory));
    ready(&mut server, &directory);
    server.terminate(LIMIT);
    std::fs::copy(&database, &kept).unwrap();
    let mut server = Process::start(&mut dev(&directory));
    let told = ready(&mut server, &directory);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        wrap(&connect(&directory, &told).await).await;
    });
    server.terminate(LIMIT);
    std::fs::copy(&kept, &database).unwrap();
    let refused = dev(&directory).output().unwrap();
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    let told = String::from_utf8(refused.stderr).unwrap();
    let (_, code) = told.trim_end().rsplit_once("--accept-restored-store ").unwrap();
    let mut server = Process::start(dev(&directory).args(["--accept-restored-store", code]));
    ready(&mut server, &directory);
    assert_eq!(server.terminate(LIMIT).code(), Some(0));
    let mut server = Process::start(&mut dev(&directory));
    ready(&mut server, &directory);
}

#[test]
fn a_wrong_pin_is_tried_once_and_the_server_stays_to_say_so() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let mut first = Process::start(&mut dev(&directory));
    ready(&mut first, &directory);
    first.terminate(LIMIT);
    let pin_file = directory.join("user-pin");
    let pin = std::fs::read_to_string(&pin_file).unwrap();
    std::fs::write(&pin_file, "canary-wrong-pin").unwrap();
    let mut latched = Process::start(&mut dev(&directory));
    latched.await_line("the token refused the PIN", LIMIT);
    latched.await_line("listening, but not ready", LIMIT);
    assert!(!directory.join("ready.json").exists());
    assert_eq!(latched.terminate(LIMIT).code(), Some(0));
    assert!(!latched.stderr().contains("canary-wrong-pin"));
    std::fs::write(&pin_file, pin).unwrap();
    let mut mended = Process::start(&mut dev(&directory));
    ready(&mut mended, &directory);
}

#[test]
fn a_directory_without_its_token_and_database_says_what_belongs_together() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let mut first = Process::start(&mut dev(&directory));
    ready(&mut first, &directory);
    assert_eq!(first.terminate(LIMIT).code(), Some(0));
    std::fs::remove_dir_all(directory.join("tokens")).unwrap();
    std::fs::remove_file(directory.join("store.db")).unwrap();
    let refused = dev(&directory).output().unwrap();
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    let told = String::from_utf8(refused.stderr).unwrap();
    let (serial, _) = pinned(&directory);
    assert!(told.contains(&format!("no token with serial `{}`", serial.trim())), "{told}");
    assert!(told.contains("start anew with another --dir"), "{told}");
}

/// A dev server that was killed when it was ready, and the ready file that it left.
fn killed(directory: &Path) -> String {
    let mut server = Process::start(&mut dev(directory));
    let told = ready(&mut server, directory);
    assert_eq!(told["pid"], server.id());
    assert!(told["started_unix_ms"].as_i64().unwrap() > 1_700_000_000_000, "{told}");
    server.kill();
    std::fs::read_to_string(directory.join("ready.json")).unwrap()
}

#[test]
fn what_a_killed_server_left_does_not_say_that_the_next_one_is_ready() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let old = killed(&directory);
    let file = |name: &str| directory.join(name);
    let faulty = Faulty::of(&SoftHsm::existing(&directory));
    faulty.script(&["C_Login 1 hang"]);
    let mut next = command(&["dev", "--listen", "127.0.0.1:0", "--dir"]);
    next.arg(&directory).arg("--module").arg(faulty::module());
    next.env("HOLDFAST_FAULTY_REAL", softhsm::module());
    next.env("HOLDFAST_FAULTY_PLAN", file("faulty.plan"));
    next.env("HOLDFAST_FAULTY_LOG", file("faulty.log"));
    let mut next = Process::start(&mut next);
    faulty.await_hang(0, "C_Login", LIMIT);
    assert!(!file("ready.json").exists(), "it does not listen yet");
    faulty.heal();
    let told = ready(&mut next, &directory);
    assert_eq!(told["pid"], next.id());
    assert_ne!(told, serde_json::from_str::<serde_json::Value>(&old).unwrap());
    next.kill();
    // A start that fails early has removed it, too.
    std::fs::remove_file(file("token-serial")).unwrap();
    std::fs::remove_file(file("so-pin")).unwrap();
    std::fs::create_dir(file("so-pin")).unwrap();
    assert!(file("ready.json").exists());
    let refused = dev(&directory).output().unwrap();
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(!file("ready.json").exists());
}

/// The lines of the README that start a dev server and wait for it, with the server and the directory of a test.
fn documented_start(directory: &Path) -> String {
    let readme = include_str!("../../README.md");
    let (_, lines) = readme.split_once("cargo build --release\n").unwrap();
    let (lines, _) = lines.split_once("\nexport ").unwrap();
    let module = softhsm::module();
    let options = format!("--listen 127.0.0.1:0 --module {} --dir", module.display());
    lines
        .replace("target/release/kms-server", env!("CARGO_BIN_EXE_kms-server"))
        .replacen("--dir", &options, 1)
        .replace("/tmp/holdfast", directory.to_str().unwrap())
}

#[test]
fn the_documented_wait_ends_with_the_server_that_is_ready_and_with_one_that_does_not_start() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    killed(&directory);
    let script = |then: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{}\n{then}", documented_start(&directory))]);
        Process::start(command.env_remove("SOFTHSM2_CONF"))
    };
    // `wait` gives the status of the server: 0 after the signal that it was ready for.
    let mut good = script("kill -TERM $server && wait $server");
    assert_eq!(good.await_end(LIMIT).code(), Some(0), "{}", good.stderr());
    killed(&directory);
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut bad = script("wait $server");
    assert_eq!(bad.await_end(LIMIT).code(), Some(77), "{}", bad.stderr());
}

/// What the table of exit statuses says of dev mode; 65, 75 and 143 have tests of their own.
#[test]
fn a_dev_server_ends_with_the_status_of_the_table() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let ends = |status: i32, more: &[&str]| {
        let output = dev(&directory).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{more:?}: {output:?}");
    };
    let module = parent.path().join("text.so");
    std::fs::write(&module, "this is no shared object").unwrap();
    let with_text = |name: &str| {
        let mut command = command(&["dev", "--listen", "127.0.0.1:0", "--dir"]);
        command.arg(parent.path().join(name)).arg("--module").arg(&module).output().unwrap()
    };
    assert_eq!(with_text("first").status.code(), Some(69), "at the first start");
    let mut server = Process::start(&mut dev(&directory));
    ready(&mut server, &directory);
    ends(77, &[]);
    assert_eq!(server.terminate(LIMIT).code(), Some(0));
    assert_eq!(with_text("dev").status.code(), Some(69), "at a later one");
    ends(2, &["--nonsense"]);
    let others = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    ends(71, &["--admin-listen", &others.local_addr().unwrap().to_string()]);
    let (pin, database) = (directory.join("user-pin"), directory.join("store.db"));
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o644)).unwrap();
    ends(78, &[]);
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&pin, "canary-wrong-pin").unwrap();
    assert_eq!(verify_store(&directory).status.code(), Some(69), "a server stays instead");
    std::fs::write(&database, "no database").unwrap();
    ends(74, &[]);
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    ends(77, &[]);
}

/// Connects as the dev client.
async fn connect(directory: &Path, told: &serde_json::Value) -> Channel {
    let pki = |name: &str| directory.join("pki").join(name);
    let client = Identity::existing(pki("client.pem"), pki("client.key"));
    let address = told["listen"].as_str().unwrap().parse().unwrap();
    let ca = pki("ca.pem");
    let connecting = kms_testkit::client::connect(address, &ca, Some(&client));
    within(LIMIT, "a connection", connecting).await.unwrap()
}

const KEY: &str = "tenants/dev/keys/k";

/// Makes a key and wraps with it.
async fn wrap(channel: &Channel) -> proto::WrapResponse {
    let key = proto::CreateKeyRequest {
        parent: "tenants/dev".to_owned(),
        key_id: "k".to_owned(),
        purpose: proto::Purpose::Wrap.into(),
        owner: "tests".to_owned(),
        sensitivity: proto::Sensitivity::Low.into(),
        usage: "tests of dev mode".to_owned(),
        cryptoperiod: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        recipient_usage_period: None,
        request_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        ..Default::default()
    };
    kms_testkit::client::key_client(channel).create_key(key).await.unwrap();
    let plaintext = b"before".to_vec().into();
    let request = proto::WrapRequest { key: KEY.to_owned(), plaintext, ..Default::default() };
    kms_testkit::client::crypto_client(channel).wrap(request).await.unwrap().into_inner()
}

async fn unwrap(channel: &Channel, wrapped: proto::WrapResponse) -> Vec<u8> {
    let ciphertext = wrapped.ciphertext;
    let request = proto::UnwrapRequest { key: KEY.to_owned(), ciphertext, ..Default::default() };
    let answer = kms_testkit::client::crypto_client(channel).unwrap(request).await.unwrap();
    answer.into_inner().plaintext.to_vec()
}

fn tokens(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("tokens")).unwrap().count()
}

/// Starts a dev server that serves `work`, and stops it.
async fn serve_once<T>(directory: &Path, work: impl AsyncFnOnce(Channel) -> T) -> T {
    let mut process = Process::start(&mut dev(directory));
    let told = ready(&mut process, directory);
    let done = work(connect(directory, &told).await).await;
    assert_eq!(process.terminate(LIMIT).code(), Some(0));
    done
}

#[tokio::test]
async fn a_start_that_was_interrupted_anywhere_is_resumed_with_the_same_token_and_keys() {
    for lost in ["token-serial", "pki", "audit"] {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("dev");
        let wrapped = serve_once(&directory, async |channel| wrap(&channel).await).await;
        let (serial, _) = pinned(&directory);
        let path = directory.join(lost);
        if path.is_dir() {
            std::fs::rename(&path, directory.join("pki.tmp")).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let opened = serve_once(&directory, async |channel| unwrap(&channel, wrapped).await).await;
        assert_eq!(opened, b"before", "without {lost}");
        assert_eq!((tokens(&directory), pinned(&directory).0), (1, serial), "without {lost}");
    }
}

#[test]
fn a_start_that_was_interrupted_before_there_was_a_database_keeps_the_token() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("dev");
    let mut first = Process::start(&mut dev(&directory));
    ready(&mut first, &directory);
    first.terminate(LIMIT);
    let before = pinned(&directory);
    let roots = root_ids(&directory);
    std::fs::remove_file(directory.join("store.db")).unwrap();
    let mut second = Process::start(&mut dev(&directory));
    ready(&mut second, &directory);
    assert_eq!((tokens(&directory), pinned(&directory)), (1, before));
    // The root keys that no database tells of are left alone, and named with what to do about them.
    let told =
        second.await_line("root keys were made on a token that has other secret keys", LIMIT);
    for part in ["objects=2", "remove them (pkcs11-tool", "bring them back"] {
        assert!(told.contains(part), "{told}");
    }
    for root in roots {
        assert!(told.contains(&root), "{root}: {told}");
        second.await_line(&format!("cka-id:{root}"), LIMIT);
    }
    second.terminate(LIMIT);
    let mut third = Process::start(&mut dev(&directory));
    ready(&mut third, &directory);
    assert!(!third.stderr().contains("root keys were made"), "{}", third.stderr());
}

/// Returns the CKA_IDs of the pinned root set.
fn root_ids(directory: &Path) -> [String; 2] {
    let database = rusqlite::Connection::open(directory.join("store.db")).unwrap();
    let ids = "SELECT lower(hex(wrap_id)), lower(hex(mac_id)) FROM roots";
    database.query_row(ids, [], |row| Ok([row.get(0)?, row.get(1)?])).unwrap()
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = dev(parent.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
}

#[test]
fn a_wrong_configuration_exits_with_78_and_names_every_problem() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("c.toml");
    std::fs::write(&path, "[limits]\nmax_streams = 0\n[store]\npath = \"/nowhere/x\"\n").unwrap();
    for arguments in [&["check-config", "--config"][..], &["--config"]] {
        let output = command(arguments).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains("limits.max_streams"), "{errors}");
        assert!(errors.contains("store.path"), "{errors}");
    }
    std::fs::write(&path, "[limits]\nmax_steams = 1\n").unwrap();
    let output = command(&["check-config", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    assert_eq!(run(&["check-config"]).status.code(), Some(2));
    assert_eq!(run(&["--log-level", "info"]).status.code(), Some(2));
}

#[test]
fn what_ends_the_server_is_told_in_the_form_of_the_log() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("c.toml");
    std::fs::write(&path, "[log]\nformat = \"json\"\n[store]\npath = \"/nowhere/x\"\n").unwrap();
    let output = command(&["--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let lines = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = &lines.last().unwrap()["fields"];
    assert!(last["error"].as_str().unwrap().contains("store.path"), "{last}");
    assert_eq!(last["status"], 78);
}

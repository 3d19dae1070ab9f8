//! What `kms` does without a server: contexts, inspect, bad flags, bad files, and their exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::common::{kms, kms_with};
use kms_cli::backup::{KmsStanza, SIDE_SUFFIX, Side, WrappedFileKey};
use kms_core::envelope::{self, Header, Suite};
use kms_core::id::{KeyUid, KeyVersion};
use kms_testkit::Pki;

fn envelope() -> Vec<u8> {
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_random([7; 16]),
        version: KeyVersion::new(3).unwrap(),
    };
    header.seal(&[1; 12], &[2; 16 + 32])
}

/// A context `test` for a server at `address`, with certificates of `pki`.
fn context(home: &Path, pki: &Pki, address: &str) -> kms_testkit::pki::Identity {
    let (_, client) = pki.usual();
    let added = kms(
        home,
        &[
            "context",
            "add",
            "test",
            "--server",
            address,
            "--tenant",
            "t1",
            "--ca",
            pki.ca().to_str().unwrap(),
            "--cert",
            client.certificate.to_str().unwrap(),
            "--key-file",
            client.key.to_str().unwrap(),
        ],
    );
    assert_eq!(added.code, 0, "{}", added.stderr);
    client
}

#[test]
fn inspect_reads_both_forms_without_a_server() {
    let home = tempfile::tempdir().unwrap();
    let text = envelope::to_text(&envelope()) + "\n";
    let of_text = kms_with(home.path(), &["inspect", "--output", "json"], text.as_bytes());
    let of_binary = kms_with(home.path(), &["inspect", "--output", "json"], &envelope());
    assert_eq!(of_text.json(), of_binary.json());
    assert_eq!(of_text.json()["version"], 3);
    assert_eq!(of_text.json()["plaintext_length_bytes"], 32);
    let table = kms_with(home.path(), &["inspect"], &envelope());
    assert!(table.text().contains("07070707-0707-4707-8707-070707070707"));
}

#[test]
fn what_is_no_envelope_ends_with_5() {
    let home = tempfile::tempdir().unwrap();
    let cut = &envelope()[..40];
    let mut other_format = envelope();
    other_format[2] = 9;
    for (input, reason) in [
        (&b"hello"[..], "CIPHERTEXT_INVALID"),
        (cut, "CIPHERTEXT_INVALID"),
        (b"hfenv1:S1c", "CIPHERTEXT_INVALID"),
        (b"", "LENGTH"),
        (&other_format, "ENVELOPE_UNSUPPORTED"),
    ] {
        let run = kms_with(home.path(), &["inspect"], input);
        assert_eq!(run.code, 5, "{}", run.stderr);
        assert!(run.stderr.starts_with(&format!("error: {reason}: ")), "{}", run.stderr);
        assert!(run.stdout.is_empty());
    }
}

#[test]
fn contexts_are_added_listed_used_and_shown() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://a.test:1");
    let file = home.path().join(".config/holdfast/cli.toml");
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str("\n[contexts.other]\nserver = \"https://b.test:2\"\nca = \"ca.pem\"\n");
    fs::write(&file, text).unwrap();
    let listed = kms(home.path(), &["context", "list", "--output", "json"]).json();
    assert_eq!(listed["contexts"][1]["name"], "test");
    assert_eq!(listed["contexts"][1]["current"], true);
    assert_eq!(kms(home.path(), &["context", "use", "other"]).code, 0);
    let flags = ["context", "show", "--output", "json", "--cert", "c", "--key-file", "k"];
    let shown = kms(home.path(), &flags).json();
    assert_eq!(shown["server"], "https://b.test:2");
    // Paths in the file count from the file, those of flags from here.
    assert_eq!(shown["ca"], file.with_file_name("ca.pem").to_str().unwrap());
    assert_eq!(shown["cert"], "c");
    let picked = kms(home.path(), &["context", "show", "--context", "test", "--output", "json"]);
    assert_eq!(picked.json()["tenant"], "t1");
}

#[test]
fn unknown_duplicate_and_broken_contexts_have_their_own_ends() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://a.test:1");
    assert_eq!(kms(home.path(), &["context", "use", "no"]).code, 4);
    assert_eq!(kms(home.path(), &["health", "--context", "no"]).code, 4);
    let again = [
        "context",
        "add",
        "test",
        "--server",
        "https://a:1",
        "--ca",
        "x",
        "--cert",
        "x",
        "--key-file",
        "x",
    ];
    assert_eq!(kms(home.path(), &again).code, 6);
    fs::write(home.path().join("bad.toml"), "contexts = 7").unwrap();
    let run = kms(home.path(), &["context", "list", "--config", "bad.toml"]);
    assert_eq!(run.code, 10);
    assert!(run.stderr.starts_with("error: CONTEXT: "), "{}", run.stderr);
}

#[test]
fn without_a_context_the_error_says_what_is_missing_and_how_to_give_it() {
    let home = tempfile::tempdir().unwrap();
    let run = kms(home.path(), &["health"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("no server is given: use `--server`"), "{}", run.stderr);
    assert!(run.stderr.contains("kms context add"), "{}", run.stderr);
}

#[test]
fn a_context_file_that_is_named_must_be_there() {
    let home = tempfile::tempdir().unwrap();
    let by_flag = kms(home.path(), &["health", "--config", "typo.toml"]);
    let mut command = super::common::command(home.path(), &["health"]);
    let by_environment = command.env("KMS_CONFIG", "typo.toml").output().unwrap();
    assert_eq!((by_flag.code, by_environment.status.code()), (10, Some(10)));
    assert!(by_flag.stderr.contains("there is no context file `typo.toml`"), "{}", by_flag.stderr);
    assert_eq!(by_flag.stderr.as_bytes(), by_environment.stderr);
}

#[test]
fn the_name_of_a_file_cannot_move_the_cursor() {
    let home = tempfile::tempdir().unwrap();
    let run = kms(home.path(), &["inspect", "--in", "a\u{1b}[2Jb\nc"]);
    assert_eq!(run.code, 10);
    assert!(run.stderr.contains("a\u{fffd}[2Jb\u{fffd}c"), "{}", run.stderr);
}

#[test]
fn a_server_that_is_silent_is_given_up_after_the_timeout() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    // The system accepts for us; nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    context(home.path(), &pki, &format!("https://{}", silent.local_addr().unwrap()));
    let run = kms(home.path(), &["health", "--timeout", "200ms"]);
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert!(run.stderr.contains("not connected within 200ms"), "{}", run.stderr);
}

#[test]
fn bad_command_lines_end_with_2_and_print_nothing_to_stdout() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://a.test:1");
    for words in [
        &["nonsense"][..],
        &["wrap"],
        &["wrap", "--key", "A B"],
        &["wrap", "--key", "k", "--bind", "novalue"],
        &["wrap", "--key", "tenants/t/keys"],
        &["wrap", "--key", "k/versions/0"],
        &["random", "0"],
        &["random", "1025"],
        &["datakey", "--key", "k"],
        &["datakey", "--key", "k", "--plaintext-out", "-"],
        &["datakey", "--key", "k", "--plaintext-out", "a", "--out", "a"],
        &["datakey", "--key", "k", "--without-plaintext", "--length", "15"],
        &["key", "suspend", "k", "0", "--reason", "x"],
        &["key", "update", "k"],
        &[
            "key",
            "create",
            "k",
            "--owner",
            "o",
            "--sensitivity",
            "low",
            "--usage",
            "u",
            "--cryptoperiod",
            "soon",
        ],
        &["bench", "--concurrency", "0"],
        &["bench", "--concurrency", "4097"],
        &["bench", "--connections", "9", "--concurrency", "8"],
        &["bench", "--key-count", "10001"],
        &["bench", "--size", "65537"],
        &["bench", "--batch-size", "1001"],
        &["bench", "--duration", "86401s"],
        &["bench", "--op", "decrypt"],
        &["health", "--server", "http://a:1"],
        &["health", "--timeout", "0s"],
        &[],
    ] {
        let run = kms(home.path(), words);
        assert_eq!(run.code, 2, "{words:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn a_private_key_that_others_may_read_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    let client = context(home.path(), &pki, "https://127.0.0.1:1");
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&client.key, fs::Permissions::from_mode(mode)).unwrap();
        let run = kms(home.path(), &["health"]);
        assert_eq!(run.code, 10, "{mode:o}");
        assert!(run.stderr.contains("others may read"), "{}", run.stderr);
    }
    fs::set_permissions(&client.key, fs::Permissions::from_mode(0o600)).unwrap();
    // Now it gets as far as the network, where nobody listens on port 1.
    let run = kms(home.path(), &["health"]);
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert!(run.stderr.starts_with("error: UNREACHABLE: "), "{}", run.stderr);
}

#[test]
fn missing_and_wrong_certificate_files_end_with_10() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    let client = context(home.path(), &pki, "https://127.0.0.1:1");
    let key = client.key.to_str().unwrap();
    fs::write(home.path().join("empty"), "").unwrap();
    for flags in [["--cert", "no"], ["--cert", "empty"], ["--ca", key], ["--key-file", "no"]] {
        let run = kms(home.path(), &["health", flags[0], flags[1]]);
        assert_eq!(run.code, 10, "{flags:?}: {}", run.stderr);
    }
}

#[test]
fn an_existing_output_file_is_refused_before_anything_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://127.0.0.1:1");
    fs::write(home.path().join("out"), "old").unwrap();
    let words = ["wrap", "--key", "k", "--out", "out"];
    let run = kms_with(home.path(), &words, b"secret");
    assert_eq!(run.code, 10);
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
    assert_eq!(fs::read(home.path().join("out")).unwrap(), b"old");
}

#[test]
fn a_failed_call_leaves_no_output_file() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://127.0.0.1:1");
    let before = fs::read_dir(home.path()).unwrap().count();
    let run = kms_with(home.path(), &["wrap", "--key", "k", "--out", "out"], b"secret");
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), before);
}

#[test]
fn errors_are_json_when_json_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let run = kms_with(home.path(), &["inspect", "--output", "json"], b"x");
    let error: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "CIPHERTEXT_INVALID");
    assert_eq!(error["error"]["exit_code"], 5);
}

#[test]
fn a_wrong_command_line_is_told_as_json_when_json_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    for words in [
        &["wrap", "--output", "json"][..],
        &["--output=json", "nonsense"],
        &["random", "1025", "--output", "json"],
        &["--output", "json"],
        &["health", "--output", "json"],
    ] {
        let run = kms(home.path(), words);
        assert_eq!(run.code, 2, "{words:?}");
        let told: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains("Usage:"), "{words:?}: {message}");
        assert_eq!(told["error"]["exit_code"], 2);
    }
    let no_verb = kms(home.path(), &["--output", "json", "key"]);
    assert!(no_verb.stderr.contains("a command is missing"), "{}", no_verb.stderr);
    let missing = kms(home.path(), &["wrap", "--output", "json"]);
    let told: serde_json::Value = serde_json::from_str(&missing.stderr).unwrap();
    assert_eq!(told["error"]["reason"], "USAGE");
    assert!(told["error"]["message"].as_str().unwrap().contains("--key"), "{told}");
    assert!(kms(home.path(), &["wrap"]).stderr.contains("Usage:"));
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_print() {
    let home = tempfile::tempdir().unwrap();
    let mut child = super::common::command(home.path(), &["completions", "bash"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty());
}

#[test]
fn bindings_over_their_bounds_end_with_5() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://127.0.0.1:1");
    for bind in [format!("{}=v", "k".repeat(129)), "kms:x=v".into()] {
        let run = kms_with(home.path(), &["wrap", "--key", "k", "--bind", &bind], b"x");
        assert_eq!(run.code, 5, "{}", run.stderr);
    }
    let at_the_bound = format!("{}=v", "k".repeat(128));
    let run = kms_with(home.path(), &["wrap", "--key", "k", "--bind", &at_the_bound], b"x");
    assert_eq!(run.code, 9, "{}", run.stderr);
}

/// A sealed file at version 1, and the side file and torn file of a reseal to version 2 that was cut off.
fn torn_backup() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let stanza = |version: u32| {
        let header = Header {
            suite: Suite::Aes256Gcm,
            key_uid: KeyUid::from_random([7; 16]),
            version: KeyVersion::new(version).unwrap(),
        };
        KmsStanza::new(WrappedFileKey::new(&header.seal(&[1; 12], &[2; 32])).unwrap())
    };
    let mac = "A".repeat(43);
    let text = ["age-encryption.org/v1\n".as_bytes(), &stanza(1).encode(), b"--- "].concat();
    let old = [&text, mac.as_bytes(), b"\n"].concat();
    let header = kms_cli::backup::Header::read(&mut &old[..]).unwrap();
    let file_key = age_core::format::FileKey::new(Box::new([3; 16]));
    let new = header.with_stanza(stanza(2), &file_key).unwrap().encode();
    let payload = [9; 100];
    let side = Side {
        file_bytes: (old.len() + payload.len()) as u64,
        payload_nonce: [9; 16],
        old: old.clone(),
        new: new.clone(),
    };
    let torn = [&new[..90], &old[90..], &payload].concat();
    (torn, side.encode(), new)
}

#[test]
fn an_interrupted_reseal_is_finished_while_no_server_can_be_reached() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://127.0.0.1:1");
    let (torn, side, new) = torn_backup();
    for name in ["a.age", "b.age"] {
        fs::write(home.path().join(name), &torn).unwrap();
        fs::write(home.path().join(format!("{name}{SIDE_SUFFIX}")), &side).unwrap();
    }
    let run = kms(home.path(), &["reseal", "a.age", "b.age", "--output", "json"]);
    // The server is needed for what comes next: the current version.
    assert_eq!(run.code, 9, "{}", run.stderr);
    for (index, name) in ["a.age", "b.age"].into_iter().enumerate() {
        let report = &run.json()["files"][index];
        assert_eq!(
            (&report["status"], &report["recovery"]),
            (&"failed".into(), &"finished".into())
        );
        assert_eq!(fs::read(home.path().join(name)).unwrap()[..new.len()], new);
        assert!(!home.path().join(format!("{name}{SIDE_SUFFIX}")).exists());
    }
    let shown = kms(home.path(), &["reseal", "a.age"]);
    assert_eq!(shown.code, 9, "{}", shown.stderr);
}

#[test]
fn what_a_bench_could_only_be_refused_is_refused_before_it_connects() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    context(home.path(), &pki, "https://127.0.0.1:1");
    // 4 MiB are 63 items of 64 KiB, or 1000 of 3758 bytes, with what stands around each.
    for (op, flags, past) in [
        ("datakey", &["--size", "16"][..], &["--size", "15"][..]),
        ("datakey", &["--size", "1024"], &["--size", "1025"]),
        ("wrap", &["--size", "65536"], &["--size", "65537"]),
        (
            "batch",
            &["--size", "65536", "--batch-size", "63"],
            &["--size", "65536", "--batch-size", "64"],
        ),
        (
            "batch",
            &["--size", "3758", "--batch-size", "1000"],
            &["--size", "3759", "--batch-size", "1000"],
        ),
        ("wrap", &["--connections", "1"], &["--connections", "0"]),
        ("wrap", &["--connections", "64"], &["--connections", "65"]),
        ("wrap", &["--warmup", "0s"], &["--warmup", "86401s"]),
    ] {
        let run = |flags: &[&str]| kms(home.path(), &[&["bench", "--op", op], flags].concat());
        let (inside, outside) = (run(flags), run(past));
        assert_eq!(inside.code, 9, "{op} {flags:?}: {}", inside.stderr);
        assert_eq!(outside.code, 2, "{op} {past:?}: {}", outside.stderr);
        assert!(outside.stderr.contains("must be"), "{}", outside.stderr);
    }
}

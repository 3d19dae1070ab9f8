//! What `kms` does with a server: one that answers, one that refuses, one that is not ours.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use kms_testkit::Pki;
use kms_testkit::pki::Kind;
use tempfile::TempDir;
use tonic::Code;

use super::common::{Run, command, kms, kms_with};
use super::fake::{Fake, refusal};

/// A home directory with a context for a running fake.
pub(crate) struct World {
    pub(crate) home: TempDir,
    pub(crate) pki: Pki,
    pub(crate) fake: Fake,
}

impl World {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let pki = Pki::create(&home.path().join("pki"));
        let fake = Fake::start(&pki);
        let world = Self { home, pki, fake };
        add_context(world.home.path(), "test", &world.pki, &world.fake.address.to_string());
        world
    }

    pub(crate) fn kms(&self, args: &[&str], stdin: &[u8]) -> Run {
        kms_with(self.home.path(), args, stdin)
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    fn refuse(&self, code: Code, reason: &str, retry: Option<Duration>, times: usize) {
        let errors = std::iter::repeat_with(|| refusal(code, reason, retry)).take(times);
        self.fake.script().errors.extend(errors);
    }
}

/// Adds a context for a server at `address`, with new client certificates of `pki`.
pub(crate) fn add_context(home: &Path, name: &str, pki: &Pki, address: &str) {
    let (_, client) = pki.usual();
    let (ca, cert, key) = (pki.ca(), client.certificate, client.key);
    let paths = [&ca, &cert, &key].map(|path| path.to_str().unwrap());
    let added = kms(
        home,
        &[
            "context",
            "add",
            name,
            "--server",
            address,
            "--tenant",
            "t1",
            "--ca",
            paths[0],
            "--cert",
            paths[1],
            "--key-file",
            paths[2],
        ],
    );
    assert_eq!(added.code, 0, "{}", added.stderr);
}

#[test]
fn a_secret_wrapped_and_unwrapped_through_files_is_the_same() {
    let world = World::new();
    fs::write(world.path("secret"), b"s3cret\0").unwrap();
    let wrap = [
        "wrap", "--key", "k", "--in", "secret", "--out", "wrapped", "--bind", "b=2", "--bind",
        "a=1",
    ];
    let run = world.kms(&wrap, b"");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.is_empty());
    let pairs = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(world.fake.script().bindings, [pairs.to_vec()]);
    let unwrap = ["unwrap", "--key", "k", "--in", "wrapped", "--out", "opened"];
    assert_eq!(world.kms(&unwrap, b"").code, 0);
    assert_eq!(fs::read(world.path("opened")).unwrap(), b"s3cret\0");
    assert_eq!(world.path("opened").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_secret_wrapped_and_unwrapped_through_pipes_is_the_same_in_each_form() {
    let world = World::new();
    for (form, start) in [("auto", &b"KW\x01"[..]), ("binary", b"KW\x01"), ("text", b"hfenv1:")] {
        let wrapped = world.kms(&["wrap", "--key", "k", "--form", form], b"s3cret");
        assert!(wrapped.stdout.starts_with(start), "{form}");
        let opened = world.kms(&["unwrap", "--key", "tenants/t1/keys/k"], &wrapped.stdout);
        assert_eq!(opened.stdout, b"s3cret", "{form}");
    }
}

#[test]
fn json_carries_the_data_unless_a_file_takes_it() {
    let world = World::new();
    let wrapped = world.kms(&["wrap", "--key", "k", "--output", "json"], b"s3cret").json();
    assert_eq!(wrapped["key_version"], "tenants/t1/keys/k/versions/2");
    let text = wrapped["ciphertext"].as_str().unwrap();
    let opened = world.kms(&["unwrap", "--key", "k", "--output", "json"], text.as_bytes()).json();
    assert_eq!(opened["plaintext_base64"], "czNjcmV0");
    let to_file = ["unwrap", "--key", "k", "--output", "json", "--out", "f"];
    let facts = world.kms(&to_file, text.as_bytes()).json();
    assert_eq!(facts, serde_json::json!({ "key_version": "tenants/t1/keys/k/versions/2" }));
    assert_eq!(fs::read(world.path("f")).unwrap(), b"s3cret");
}

#[test]
fn rewrap_says_whether_anything_changed() {
    let world = World::new();
    let wrapped = world.kms(&["wrap", "--key", "k"], b"s3cret");
    let run = world.kms(&["rewrap", "--key", "k", "--output", "json"], &wrapped.stdout);
    assert_eq!(run.json()["changed"], false);
}

#[test]
fn a_data_key_goes_to_two_files_or_comes_wrapped_only() {
    let world = World::new();
    let both = ["datakey", "--key", "k", "--plaintext-out", "clear", "--out", "wrapped"];
    assert_eq!(world.kms(&both, b"").code, 0);
    assert_eq!(fs::read(world.path("clear")).unwrap(), [9; 32]);
    assert_eq!(fs::read(world.path("wrapped")).unwrap(), b"KW-wrapped");
    let wrapped = world.kms(&["datakey", "--key", "k", "--without-plaintext"], b"");
    assert_eq!(wrapped.stdout, b"KW-wrapped");
}

#[test]
fn a_data_key_is_not_asked_for_when_one_of_its_files_cannot_be_written() {
    let world = World::new();
    fs::write(world.path("there"), "before").unwrap();
    fs::create_dir(world.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", world.path("dangling")).unwrap();
    let before = fs::read_dir(world.home.path()).unwrap().count();
    for (out, plaintext_out) in [
        ("wrapped", "no/clear"),
        ("wrapped", "dir"),
        ("wrapped", "there/clear"),
        ("wrapped", "there"),
        ("wrapped", "dangling"),
        ("no/wrapped", "clear"),
        ("there", "clear"),
    ] {
        let run = world
            .kms(&["datakey", "--key", "k", "--out", out, "--plaintext-out", plaintext_out], b"");
        assert_eq!(run.code, 10, "{out} {plaintext_out}: {}", run.stderr);
    }
    assert_eq!(world.fake.script().calls, 0);
    assert_eq!(fs::read_dir(world.home.path()).unwrap().count(), before);
    assert_eq!(fs::read(world.path("there")).unwrap(), b"before");
}

#[test]
fn a_data_key_that_cannot_be_given_takes_its_wrapped_copy_back() {
    let world = World::new();
    for clear in ["/dev/full", "-"] {
        let words = ["datakey", "--key", "k", "--out", "wrapped", "--plaintext-out", clear];
        let mut kms = command(world.home.path(), &words);
        kms.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let run = kms.output().unwrap();
        assert_eq!(run.status.code(), Some(10), "{clear}: {run:?}");
        assert!(!world.path("wrapped").exists(), "{clear}");
    }
    assert_eq!(world.fake.script().calls, 2);
}

#[test]
fn a_data_key_never_takes_the_place_of_its_wrapped_copy() {
    let world = World::new();
    fs::create_dir(world.path("sub")).unwrap();
    std::os::unix::fs::symlink("dk", world.path("alias")).unwrap();
    fs::write(world.path("dk"), "before").unwrap();
    for (out, plaintext_out) in [("./dk", "dk"), ("dk", "sub/../dk"), ("dk", "alias")] {
        let args =
            ["datakey", "--key", "k", "--out", out, "--plaintext-out", plaintext_out, "--force"];
        let run = world.kms(&args, b"");
        assert_eq!(run.code, 2, "{out} {plaintext_out}: {}", run.stderr);
    }
    assert_eq!(world.fake.script().calls, 0);
    assert_eq!(fs::read(world.path("dk")).unwrap(), b"before");
}

#[test]
fn what_force_replaces_is_a_file_and_never_a_pipe_a_device_or_a_link() {
    let world = World::new();
    fs::write(world.path("file"), "before").unwrap();
    std::os::unix::fs::symlink("file", world.path("link")).unwrap();
    let wrapped = world.kms(&["wrap", "--key", "k"], b"s3cret").stdout;
    let (wrap, unwrap, rewrap) =
        (["wrap", "--key", "k"], ["unwrap", "--key", "k"], ["rewrap", "--key", "k"]);
    let verbs: [(&[&str], &[u8]); 5] = [
        (&wrap, b"s3cret"),
        (&unwrap, &wrapped),
        (&rewrap, &wrapped),
        (&["datakey", "--key", "k", "--without-plaintext"], b""),
        (&["random", "9"], b""),
    ];
    for (verb, stdin) in verbs {
        for out in ["link", "/dev/null"] {
            let run = world.kms(&[verb, &["--out", out, "--force"]].concat(), stdin);
            assert_eq!(run.code, 0, "{verb:?} {out}: {}", run.stderr);
        }
        assert!(world.path("link").is_symlink(), "{verb:?}");
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file(), "{verb:?}");
        assert_ne!(fs::read(world.path("file")).unwrap(), b"before", "{verb:?}");
        fs::write(world.path("file"), "before").unwrap();
    }
}

#[test]
fn random_bytes_are_as_many_as_asked_for() {
    let world = World::new();
    assert_eq!(world.kms(&["random", "1024"], b"").stdout, vec![5; 1024]);
}

#[test]
fn a_label_that_is_given_twice_is_refused() {
    let world = World::new();
    let create = ["key", "create", "k", "--owner", "o", "--sensitivity", "low", "--usage", "u"];
    let twice = ["--cryptoperiod", "90d", "--label", "a=b", "--label", "a=c"];
    for words in [
        &[&create[..], &twice[..]].concat(),
        &["key", "update", "k", "--label", "a=b", "--label", "a=c"][..],
    ] {
        let run = world.kms(words, b"");
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains("label `a` is given twice"), "{}", run.stderr);
    }
    assert!(world.fake.script().masks.is_empty(), "nothing was asked");
}

#[test]
fn a_mutation_is_repeated_with_the_same_request_id() {
    let world = World::new();
    world.refuse(Code::Unavailable, "HSM_UNAVAILABLE", Some(Duration::ZERO), 2);
    let run = world.kms(&["key", "rotate", "k"], b"");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let script = world.fake.script();
    assert_eq!(script.request_ids.len(), 3);
    assert!(script.request_ids.iter().all(|id| *id == script.request_ids[0]));
}

#[test]
fn the_given_request_id_is_sent() {
    let world = World::new();
    let id = "6f1e2a30-8f5c-4c3e-9d55-0123456789ab";
    assert_eq!(world.kms(&["key", "rotate", "k", "--request-id", id], b"").code, 0);
    assert_eq!(world.fake.script().request_ids, [id]);
}

#[test]
fn four_attempts_are_made_and_not_five() {
    let world = World::new();
    world.refuse(Code::ResourceExhausted, "HSM_SATURATED", Some(Duration::ZERO), 9);
    let run = world.kms(&["random", "1"], b"");
    assert_eq!(run.code, 7);
    assert!(run.stderr.starts_with("error: HSM_SATURATED: said the server"), "{}", run.stderr);
    assert_eq!(world.fake.script().calls, 4);
}

#[test]
fn what_does_not_get_better_is_asked_once_and_has_its_exit_code() {
    let world = World::new();
    for (code, reason, exit) in [
        (Code::PermissionDenied, "ACCESS_DENIED", 3),
        (Code::Unauthenticated, "CERT_UNTRUSTED", 3),
        (Code::NotFound, "KEY_NOT_FOUND", 4),
        (Code::InvalidArgument, "CIPHERTEXT_INVALID", 5),
        (Code::FailedPrecondition, "VERSION_SUSPENDED", 6),
        (Code::AlreadyExists, "RESOURCE_EXISTS", 6),
        (Code::Aborted, "ETAG_MISMATCH", 6),
        (Code::DataLoss, "KEY_INTEGRITY", 8),
        (Code::Unimplemented, "MECHANISM_UNSUPPORTED", 11),
        (Code::Internal, "INTERNAL", 1),
    ] {
        let before = world.fake.script().calls;
        world.refuse(code, reason, None, 1);
        let run = world.kms(&["random", "1", "--out", "f"], b"");
        assert_eq!(run.code, exit, "{reason}: {}", run.stderr);
        assert!(run.stderr.starts_with(&format!("error: {reason}: ")), "{}", run.stderr);
        assert_eq!(world.fake.script().calls, before + 1, "{reason}");
        assert!(!world.path("f").exists(), "{reason}");
    }
}

#[test]
fn a_server_of_another_ca_is_not_talked_to() {
    let world = World::new();
    let other = Pki::create(&world.path("other"));
    let run = world.kms(&["random", "1", "--ca", other.ca().to_str().unwrap()], b"");
    assert_eq!(run.code, 9);
    assert!(run.stderr.starts_with("error: SERVER_CERTIFICATE: "), "{}", run.stderr);
    assert_eq!(world.fake.script().calls, 0);
}

#[test]
fn a_client_of_another_ca_is_told_so() {
    let world = World::new();
    let other = Pki::create(&world.path("other"));
    let client = other.issue("stranger", &Kind::Dns("stranger.test"));
    let (cert, key) = (client.certificate.to_str().unwrap(), client.key.to_str().unwrap());
    let run = world.kms(&["random", "1", "--cert", cert, "--key-file", key], b"");
    assert_eq!(run.code, 9);
    assert!(run.stderr.starts_with("error: CLIENT_CERTIFICATE: "), "{}", run.stderr);
    assert_eq!(world.fake.script().calls, 0);
}

#[test]
fn what_does_not_speak_tls_is_told_apart_from_nobody() {
    let home = tempfile::tempdir().unwrap();
    let pki = Pki::create(&home.path().join("pki"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    add_context(home.path(), "test", &pki, &address);
    let run = kms(home.path(), &["health"]);
    assert_eq!(run.code, 9);
    assert!(run.stderr.starts_with("error: TLS: "), "{}", run.stderr);
    drop(server.join().unwrap());
}

#[test]
fn bench_reports_throughput_latency_and_errors() {
    let world = World::new();
    let brief =
        ["--duration", "150ms", "--warmup", "50ms", "--concurrency", "4", "--connections", "2"];
    for op in ["wrap", "unwrap", "datakey", "rewrap"] {
        let run =
            world.kms(&[&["bench", "--op", op, "--output", "json"], &brief[..]].concat(), b"");
        assert_eq!(run.code, 0, "{op}: {}", run.stderr);
        let report = run.json();
        assert!(report["requests"].as_u64().unwrap() > 0, "{op}: {report}");
        assert!(report["latency_us"]["p99_9"].as_u64().unwrap() > 0, "{op}");
        assert_eq!(report["errors"], serde_json::json!({}), "{op}");
    }
    let run =
        world.kms(&[&["bench", "--op", "batch", "--output", "json"], &brief[..]].concat(), b"");
    assert!(run.json()["errors"]["Unimplemented"].as_u64().unwrap() > 0, "{}", run.stderr);
    // The fake has no batches: a run in which nothing succeeded is a failure.
    assert_eq!(run.code, 7, "{}", run.stderr);
    assert!(run.stderr.contains("NO_SUCCESS"), "{}", run.stderr);
}

#[test]
fn bench_takes_as_many_connections_as_it_has_calls_in_flight_and_eight_at_most() {
    let world = World::new();
    for (concurrency, connections) in [("1", 1), ("8", 8), ("9", 8)] {
        let args = ["bench", "--duration", "50ms", "--warmup", "0s", "--output", "json"];
        let run = world.kms(&[&args[..], &["--concurrency", concurrency]].concat(), b"");
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(run.json()["connections"], connections);
    }
}

#[test]
fn bench_leaves_keys_alone_that_it_did_not_make() {
    let world = World::new();
    for op in ["wrap", "rewrap"] {
        let args = ["bench", "--op", op, "--key-prefix", "payroll", "--duration", "50ms"];
        let run = world.kms(&args, b"");
        assert_eq!(run.code, 6, "{}", run.stderr);
        assert!(run.stderr.starts_with("error: FOREIGN_KEY: "), "{}", run.stderr);
    }
    assert!(world.fake.script().request_ids.is_empty(), "a key was created or rotated");
}

#[test]
fn a_file_sealed_and_opened_is_the_same_and_inspect_knows_it() {
    let world = World::new();
    let plaintext = vec![3; 200_000];
    let sealed = world.kms(&["seal", "--key", "k", "--out", "f.age"], &plaintext);
    assert_eq!(sealed.code, 0, "{}", sealed.stderr);
    let inspected = world.kms(&["inspect", "--in", "f.age", "--output", "json"], b"").json();
    assert_eq!(inspected["kind"], "sealed file");
    assert_eq!(inspected["file_key"]["version"], 2);
    let opened = world.kms(&["open", "--in", "f.age"], b"");
    assert!(opened.stdout == plaintext, "{}", opened.stderr);
    let resealed = world.kms(&["reseal", "f.age", "--output", "json"], b"");
    assert_eq!(resealed.json()["files"][0]["status"], "current");
}

#[test]
fn backups_that_are_none_or_changed_have_their_own_ends_and_leave_no_file() {
    let world = World::new();
    assert_eq!(world.kms(&["seal", "--key", "k", "--out", "f.age"], b"secret").code, 0);
    let mut changed = fs::read(world.path("f.age")).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    for (input, code, reason) in [(&b"hello"[..], 5, "NOT_AGE"), (&changed, 8, "PAYLOAD_TRUNCATED")]
    {
        let run = world.kms(&["open", "--out", "opened"], input);
        assert_eq!(run.code, code, "{}", run.stderr);
        assert!(run.stderr.starts_with(&format!("error: {reason}: ")), "{}", run.stderr);
        assert!(!world.path("opened").exists());
    }
    fs::write(world.path("none"), b"hello").unwrap();
    let run = world.kms(&["reseal", "f.age", "none", "--output", "json"], b"");
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert_eq!(run.json()["files"][1]["status"], "failed");
}

#[test]
fn what_is_wrong_with_a_backup_names_the_file() {
    let world = World::new();
    fs::write(world.path("odd"), "odd").unwrap();
    let told = |words: &[&str]| {
        let run = world.kms(words, b"");
        assert_ne!(run.code, 0);
        run.stderr
    };
    let gone = told(&["seal", "--key", "k", "--in", "gone", "--out", "new"]);
    assert!(gone.contains("cannot open the input `gone`: "), "{gone}");
    let none = told(&["open", "--in", "odd", "--out", "new"]);
    assert!(none.contains("NOT_AGE: `odd`: not an age file"), "{none}");
    let there = told(&["seal", "--key", "k", "--in", "odd", "--out", "odd"]);
    assert!(there.contains("FILE_EXISTS: `odd` exists already\n  use --force"), "{there}");
    let full = told(&["seal", "--key", "k", "--in", "odd", "--out", "/dev/full"]);
    assert!(full.contains("cannot write the header `/dev/full`: No space left"), "{full}");
    let all = told(&["reseal", "gone", "odd"]);
    assert!(all.contains("2 of 2 files, the first `gone`: "), "{all}");
    assert!(!all.contains("the others are done"), "{all}");
}

//! What `kms` advises: something that helps, about what the caller named.

use std::fs;
use std::time::Duration;

use kms_testkit::pki::Kind;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::fake::{Fake, refusal};
use super::online::World;

#[test]
fn an_expired_server_is_told_apart_from_a_server_of_another_ca() {
    let world = World::new();
    let expired = Fake::start_as(&world.pki, world.pki.issue("expired", &Kind::ExpiredServer));
    let run = world.kms(&["random", "1", "--server", &expired.address.to_string()], b"");
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert!(run.stderr.contains("SERVER_CERTIFICATE: "), "{}", run.stderr);
    assert!(run.stderr.contains("the server's certificate is expired\n"), "{}", run.stderr);
    assert!(run.stderr.contains("to renew it; is the clock"), "{}", run.stderr);
    assert!(!run.stderr.contains("another CA"), "{}", run.stderr);
}

#[test]
fn a_latched_hsm_is_no_reason_to_try_again_and_a_reused_id_has_its_advice() {
    let world = World::new();
    for (code, reason, advice) in [
        (Code::Unavailable, "HSM_LATCHED", "its operators must act; retrying does not help"),
        (Code::ResourceExhausted, "HSM_FULL", "its operators must act; retrying does not help"),
        (Code::FailedPrecondition, "HSM_REFUSED", "their HSM refuses it by a policy of its own"),
        (Code::InvalidArgument, "REQUEST_ID_REUSED", "or leave --request-id out"),
        (Code::Unavailable, "HSM_UNAVAILABLE", "try again later"),
    ] {
        world.fake.script().errors = vec![refusal(code, reason, None::<Duration>)];
        let run = world.kms(&["key", "rotate", "k"], b"");
        assert!(run.stderr.contains(advice), "{reason}: {}", run.stderr);
        let later = run.stderr.contains("try again later");
        assert_eq!(later, reason == "HSM_UNAVAILABLE", "{}", run.stderr);
    }
}

#[test]
fn a_wrong_field_is_told_once() {
    let world = World::new();
    let told = |message: &str, fields: &[(&str, &str)]| {
        let mut details = ErrorDetails::new();
        details.set_error_info("FIELD_VIOLATION", "holdfast.dev", [] as [(String, String); 0]);
        for (field, description) in fields {
            details.add_bad_request_violation(*field, *description);
        }
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        world.fake.script().errors = vec![status];
        world.kms(&["random", "1"], b"").stderr
    };
    let once = told("`owner`: must be 1 to 256 bytes", &[("owner", "must be 1 to 256 bytes")]);
    assert_eq!(once, "error: FIELD_VIOLATION: `owner`: must be 1 to 256 bytes\n");
    let two = told("two fields are wrong", &[("owner", "is long"), ("usage", "is empty")]);
    assert!(two.contains("field `owner`: is long\n  field `usage`: is empty\n"), "{two}");
}

#[test]
fn a_file_that_cannot_be_used_has_its_advice_and_the_name_that_was_given() {
    let world = World::new();
    fs::create_dir(world.path("dir")).unwrap();
    let told = |words: &[&str]| {
        let run = world.kms(words, b"s3cret");
        assert_eq!(run.code, 10, "{}", run.stderr);
        assert!(run.stderr.contains("FILE: cannot "), "{}", run.stderr);
        assert!(!run.stderr.contains("partial") && !run.stderr.contains(".tmp"), "{}", run.stderr);
        run.stderr
    };
    let missing = told(&["random", "1", "--out", "no/out"]);
    assert!(missing.contains("`no/out`: No such file or directory"), "{missing}");
    assert!(missing.contains("\n  is the path right, and its directory there?\n"), "{missing}");
    let directory = told(&["random", "1", "--out", "dir"]);
    assert!(directory.contains("\n  name a file, or a pipe or device\n"), "{directory}");
    std::os::unix::fs::symlink("nowhere", world.path("link")).unwrap();
    for words in [&["random", "1", "--out", "link"][..], &["seal", "--key", "k", "--out", "link"]] {
        let link = told(words);
        assert!(link.contains("`link`: it is a link that leads nowhere: "), "{link}");
    }
    let unread = told(&["wrap", "--key", "k", "--in", "no"]);
    assert!(unread.contains("`no`: No such file"), "{unread}");
    let full = told(&["random", "1", "--out", "/dev/full"]);
    assert!(full.contains("\n  make room, or give another place\n"), "{full}");
    let seal = told(&["seal", "--key", "k", "--out", "no/out"]);
    assert!(seal.contains("`no/out`: No such file or directory"), "{seal}");
}

#[test]
fn what_is_no_key_or_no_version_is_told_with_the_form_that_is_expected() {
    let world = World::new();
    let suspend = ["key", "suspend", "--reason", "r"];
    let wrap = ["wrap", "--key"];
    for (verb, name, told) in [
        (&wrap[..], "K", "`K` is no key: give its id, as in `backups`"),
        (&wrap, "a/b", "`a/b` is no key: "),
        (&wrap, "k/versions/x", "`k/versions/x` is no version: they are numbered from 1"),
        (&wrap, "k/versions/0", "is no version: "),
        (&wrap, "K/versions/1", "`K` is no key: "),
        (&["key", "rotate"], "k/versions/3", "names a version, here a key is expected: "),
        (&["unwrap", "--key"], "tenants/t1/keys/k/versions/3", "here a key is expected: "),
        (&suspend, "k", "names no version, here one is expected: as in `backups/versions/3`"),
        (&suspend, "tenants/t1/keys/k", "names no version, "),
        (&suspend, "K", "`K` is no key: "),
    ] {
        let run = world.kms(&[verb, &[name]].concat(), b"s3cret");
        assert_eq!(run.code, 2, "{name}: {}", run.stderr);
        assert!(run.stderr.starts_with("error: KEY_NAME: "), "{}", run.stderr);
        assert!(run.stderr.contains(told), "{name}: {}", run.stderr);
    }
    assert_eq!(world.fake.script().calls, 0);
}

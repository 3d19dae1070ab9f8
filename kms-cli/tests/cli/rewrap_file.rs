//! `kms rewrap-file`: each format, what stays byte for byte, what is refused, and what is counted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kms_core::envelope::{Header, Suite, to_text};
use kms_core::id::{KeyUid, KeyVersion};
use kms_proto::v1::ItemStatus;
use serde_json::json;
use tonic::Code;

use super::common::Run;
use super::online::World;

/// The text form that a plaintext has under a version, as the fake server makes it.
pub(crate) fn text(plaintext: &str, version: u32) -> String {
    let header = Header {
        suite: Suite::Aes256Gcm,
        key_uid: KeyUid::from_random([7; 16]),
        version: KeyVersion::new(version).unwrap(),
    };
    let iv = u8::try_from(version).unwrap();
    to_text(&header.seal(&[iv; 12], &[plaintext.as_bytes(), &[0; 16]].concat()))
}

/// Runs `kms rewrap-file` on a file `in` with this content.
pub(crate) fn rewrap(world: &World, content: impl AsRef<[u8]>, args: &[&str]) -> Run {
    fs::write(world.path("in"), content).unwrap();
    world.kms(&[&["rewrap-file", "--key", "k", "--in", "in"], args].concat(), b"")
}

/// The names that the directory has besides those that every world has.
pub(crate) fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.home.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "pki" && name != ".config").collect();
    names.sort();
    names
}

/// The reason of a refusal that was told as JSON.
fn reason(run: &Run) -> String {
    let told: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    told["error"]["reason"].as_str().unwrap().to_owned()
}

fn status(code: Code, reason: &str, retry_delay_ms: u32) -> ItemStatus {
    let (code, reason, message) = (code.into(), reason.into(), "said the server".into());
    ItemStatus { code, message, reason, retry_delay_ms }
}

const LINES: [&str; 4] = ["--format", "lines", "--out", "out"];

#[test]
fn lines_are_rewrapped_and_everything_around_them_stays() {
    let world = World::new();
    let (a, b, c) = (text("a", 1), text("b", 2), text("c", 1));
    let content = format!("\u{feff}{a}\r\n\n  {b}\t\n \r\n{c}");
    let run = rewrap(&world, &content, &[&LINES[..], &["--output", "json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let expected = content.replace(&a, &text("a", 2)).replace(&c, &text("c", 2));
    assert_eq!(fs::read_to_string(world.path("out")).unwrap(), expected);
    let expected = json!({
        "output": "out", "items": 3, "rewrapped": 2, "current": 1, "blank": 2, "failed": 0, "failures": [],
        "input_length_bytes": content.len(), "output_length_bytes": content.len(), "resumed": false,
    });
    assert_eq!(run.json(), expected);
    assert_eq!(names(&world), ["in", "out"]);
    assert_eq!(world.path("out").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn json_lines_change_in_the_one_string_only() {
    let world = World::new();
    let (a, b) = (text("a", 1), text("b", 1));
    let line = |secret: &str| {
        format!(
            "{{ \"n\" : 1.50e3,\t\"o\":{{\"secret\": {secret} ,\"x\":\"\\u00e9\"}},\"secret\":\"no\"}}\r\n"
        )
    };
    // An escape is read, and not written again.
    let escaped = format!("\"\\u0068{}\"", a.strip_prefix('h').unwrap());
    let content = [line(&escaped), line("null"), "\n".into(), line(&format!("\"{b}\""))].concat();
    let args = ["--format", "jsonl", "--field", "o.secret", "--in-place"];
    let run = rewrap(&world, &content, &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let quoted = |plaintext| line(&format!("\"{}\"", text(plaintext, 2)));
    let expected = [quoted("a"), line("null"), "\n".into(), quoted("b")].concat();
    assert_eq!(fs::read_to_string(world.path("in")).unwrap(), expected);
    assert_eq!(names(&world), ["in"]);
}

#[test]
fn csv_fields_are_replaced_in_their_quotes_by_name_and_by_number() {
    let world = World::new();
    let (a, b) = (text("a", 1), text("b", 1));
    let content = |a: &str, b: &str| {
        format!("id,\"the \"\"secret\"\"\",note\r\n1,\"{a}\",\"x\ny,\"\n2,{b},\n3,,\"\"\n\n")
    };
    let csv = ["--format", "csv", "--out", "out", "--force", "--column"];
    let expected = content(&text("a", 2), &text("b", 2));
    for column in ["the \"secret\"", "2"] {
        let run = rewrap(&world, content(&a, &b), &[&csv[..], &[column]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(fs::read_to_string(world.path("out")).unwrap(), expected, "{column}");
    }
    let run = rewrap(&world, format!("1,{a}\n"), &[&csv[..], &["2", "--no-header"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(fs::read_to_string(world.path("out")).unwrap(), format!("1,{}\n", text("a", 2)));
}

#[test]
fn broken_csv_quoting_names_line_and_column_and_writes_nothing() {
    let world = World::new();
    let a = text("a", 1);
    for (content, place) in [
        (format!("id,s\n1,{a}\n2,\"{a}\"x\n"), format!("line 3, column {}", a.len() + 5)),
        (format!("id,s\n1,{a}\n2,\"{a}\n3,b\n"), "line 3, column 3".to_owned()),
    ] {
        let run = rewrap(
            &world,
            content,
            &["--format", "csv", "--column", "s", "--out", "out", "--keep-going"],
        );
        assert_eq!(run.code, 5);
        assert!(
            run.stderr.contains("CSV_QUOTING") && run.stderr.contains(&place),
            "{}",
            run.stderr
        );
        assert_eq!(names(&world), ["in"]);
    }
    assert_eq!(world.fake.script().calls, 0);
}

#[test]
fn an_item_that_is_none_stops_all_before_anything_is_written_or_kept_as_it_is() {
    let world = World::new();
    let a = text("a", 1);
    let content =
        format!("{{\"s\":\"{a}\"}}\n{{\"t\":\"x\"}}\n{{\"s\":7}}\n{{\"s\":\"hfenv1:!\"}}\nhello\n");
    let args = ["--format", "jsonl", "--field", "s", "--out", "out", "--output", "json"];
    let run = rewrap(&world, &content, &args);
    assert_eq!((run.code, reason(&run).as_str()), (5, "ITEM_FAILED"));
    assert!(run.stderr.contains("line 2: there is no field `s`"), "{}", run.stderr);
    assert_eq!((names(&world), world.fake.script().calls), (vec!["in".to_owned()], 0));

    let run = rewrap(&world, &content, &[&args[..], &["--keep-going"]].concat());
    assert_eq!((run.code, reason(&run).as_str()), (12, "ITEMS_FAILED"));
    let view = run.json();
    assert_eq!(
        (&view["items"], &view["rewrapped"], &view["failed"]),
        (&json!(5), &json!(1), &json!(4))
    );
    let failures = view["failures"].as_array().unwrap().iter();
    let failures: Vec<_> = failures.map(|f| (f["line"].clone(), f["reason"].clone())).collect();
    let expected =
        [(2, "FIELD_MISSING"), (3, "FIELD_NOT_STRING"), (4, "CIPHERTEXT_INVALID"), (5, "NOT_JSON")];
    assert_eq!(failures, expected.map(|(line, reason)| (json!(line), json!(reason))));
    let written = fs::read_to_string(world.path("out")).unwrap();
    assert_eq!(written, content.replace(&a, &text("a", 2)));
}

#[test]
fn an_item_that_the_server_refuses_stops_the_run_which_goes_on_after_the_fix() {
    let world = World::new();
    let content: Vec<_> = ["a", "b", "bad", "d"].map(|item| text(item, 1)).into();
    let refused = (b"bad".to_vec(), status(Code::FailedPrecondition, "VERSION_SUSPENDED", 0));
    world.fake.script().refused_items.push(refused.clone());
    let args = [&LINES[..], &["--batch-size", "1"]].concat();
    let run = rewrap(&world, content.join("\n"), &args);
    assert_eq!(run.code, 6);
    assert!(run.stderr.contains("line 3: said the server"), "{}", run.stderr);
    assert_eq!(names(&world), ["in", "out.kms-rewrap", "out.kms-rewrap.json"]);
    // What the server refused once it takes now. The two that were done are not sent again.
    world.fake.script().batches.clear();
    let run = rewrap(&world, content.join("\n"), &[&args[..], &["--output", "json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!((&run.json()["items"], &run.json()["resumed"]), (&json!(4), &json!(true)));
    assert_eq!(world.fake.script().batches, [1, 1]);
    let expected: Vec<_> = ["a", "b", "bad", "d"].map(|item| text(item, 2)).into();
    assert_eq!(fs::read_to_string(world.path("out")).unwrap(), expected.join("\n"));

    world.fake.script().refused_items.push(refused);
    let run =
        rewrap(&world, content.join("\n"), &[&args[..], &["--force", "--keep-going"]].concat());
    assert_eq!(run.code, 12);
    assert!(run.text().contains("VERSION_SUSPENDED: said the server"), "{}", run.text());
    let kept = fs::read_to_string(world.path("out")).unwrap();
    assert_eq!(kept.lines().nth(2), Some(content[2].as_str()));
    assert_eq!(names(&world), ["in", "out"]);
}

#[test]
fn what_may_succeed_later_is_sent_again_and_what_is_not_of_one_item_stops_even_what_keeps_going() {
    let world = World::new();
    let busy = (b"b".to_vec(), status(Code::ResourceExhausted, "HSM_SATURATED", 1));
    world.fake.script().refused_items.push(busy.clone());
    let content = format!("{}\n{}\n", text("a", 1), text("b", 1));
    let run = rewrap(&world, &content, &LINES);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(world.fake.script().batches, [2, 1]);
    world.fake.script().refused_items.extend(vec![busy; 4]);
    let run = rewrap(&world, &content, &[&LINES[..], &["--force", "--keep-going"]].concat());
    assert_eq!(run.code, 7, "{}", run.stderr);
    assert_eq!(names(&world), ["in", "out", "out.kms-rewrap", "out.kms-rewrap.json"]);
}

#[test]
fn a_dry_run_counts_by_version_without_a_server_or_a_context() {
    let world = World::new();
    let content = [text("a", 1), text("b", 2), text("c", 1), "no".into(), String::new()].join("\n");
    fs::write(world.path("in"), content).unwrap();
    let args = ["rewrap-file", "--in", "in", "--format", "lines", "--dry-run", "--output", "json"];
    let run = world.kms(&[&args[..], &["--config", "nowhere"]].concat(), b"");
    assert_eq!((run.code, reason(&run).as_str()), (12, "ITEMS_FAILED"));
    let view = run.json();
    let key_uid = KeyUid::from_random([7; 16]).to_string();
    let count = |version: u32, items: u32| json!({ "key_uid": key_uid, "version": version, "items": items });
    assert_eq!(view["versions"], json!([count(1, 2), count(2, 1)]));
    assert_eq!((&view["items"], &view["failed"]), (&json!(4), &json!(1)));
    assert_eq!((names(&world), world.fake.script().calls), (vec!["in".to_owned()], 0));
}

#[test]
fn a_line_of_1_mib_is_copied_and_one_byte_more_refused() {
    let world = World::new();
    let args = ["--format", "jsonl", "--field", "s", "--out", "out", "--force"];
    let line = |bytes: usize| {
        let head = format!("{{\"s\":\"{}\",\"x\":\"", text("a", 1));
        let rest = bytes - head.len() - 3;
        format!("{head}{}\"}}\n", "y".repeat(rest))
    };
    let run = rewrap(&world, line(1 << 20), &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let expected = line(1 << 20).replace(&text("a", 1), &text("a", 2));
    assert!(fs::read_to_string(world.path("out")).unwrap() == expected);
    let run = rewrap(&world, ["\n", &line((1 << 20) + 1)].concat(), &args);
    assert_eq!(run.code, 5);
    assert!(
        run.stderr.contains("line 2: the record is longer than 1048576 bytes"),
        "{}",
        run.stderr
    );
}

#[test]
fn large_items_are_spread_over_calls_that_fit_a_message() {
    let world = World::new();
    let large = "x".repeat(64 << 10);
    let content = vec![text(&large, 1); 100].join("\n");
    let run = rewrap(&world, content, &[&LINES[..], &["--batch-size", "1000"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let expected = vec![text(&large, 2); 100].join("\n");
    assert!(fs::read_to_string(world.path("out")).unwrap() == expected);
    let batches = world.fake.script().batches.clone();
    assert_eq!((batches.len(), batches.iter().sum::<usize>()), (3, 100), "{batches:?}");
}

#[test]
fn in_place_keeps_permissions_and_follows_a_link() {
    let world = World::new();
    fs::write(world.path("real"), text("a", 1)).unwrap();
    fs::set_permissions(world.path("real"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real", world.path("in")).unwrap();
    let args = ["rewrap-file", "--key", "k", "--in", "in", "--format", "lines", "--in-place"];
    let run = world.kms(&args, b"");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(world.path("in").is_symlink());
    assert_eq!(fs::read_to_string(world.path("real")).unwrap(), text("a", 2));
    assert_eq!(world.path("real").metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(&world), ["in", "real"]);
}

#[test]
fn outputs_that_cannot_be_and_options_of_other_formats_are_refused() {
    let world = World::new();
    fs::write(world.path("there"), "x").unwrap();
    let content = text("a", 1);
    for (code, args) in [
        (10, &["--format", "lines", "--out", "there"][..]),
        (2, &["--format", "lines", "--out", "in", "--force"]),
        (10, &["--format", "lines", "--out", "pki", "--force"]),
        (10, &["--format", "lines", "--out", "new", "--resume"]),
        (2, &["--format", "lines", "--out", "new", "--field", "s"]),
        (2, &["--format", "jsonl", "--out", "new", "--field", "s."]),
        (2, &["--format", "csv", "--out", "new", "--column", "s", "--no-header"]),
        (5, &["--format", "csv", "--out", "new", "--column", "s"]),
        (2, &["--format", "lines"]),
        (2, &["--format", "jsonl", "--out", "new"]),
        (2, &["--format", "lines", "--out", "new", "--in-place"]),
        (2, &["--format", "lines", "--out", "new", "--batch-size", "1001"]),
    ] {
        let run = rewrap(&world, &content, args);
        assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
        assert_eq!(names(&world), ["in", "there"], "{args:?}");
    }
    assert_eq!(world.fake.script().calls, 0);
}

//! `kms rewrap-file` on files that an earlier run left, or that stand where it keeps its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use rustix::process::geteuid;
use serde_json::json;

use super::online::World;
use super::rewrap_cut::{ARGS, ITEMS, again, complete, content, cut, reason};
use super::rewrap_file::{names, rewrap, text};

/// Somebody who is not root.
const OTHER: u32 = 4711;

#[test]
fn an_output_that_still_has_the_partial_files_name_is_never_written_to() {
    let world = World::new();
    let more = |version| content(version) + &text("more", version) + "\n";
    for (args, expected) in [
        (&["--in", "in", "--out", "out", "--force"][..], more(2)),
        (&["--in", "out", "--in-place"], content(2)),
    ] {
        let _ = fs::remove_file(world.path("out"));
        complete(&world, &ARGS, "out");
        fs::write(world.path("in"), more(1)).unwrap();
        // The kill came when the output had its name and the partial file still had its own.
        fs::hard_link(world.path("out"), world.path("out.kms-rewrap")).unwrap();
        // Keeps what was published in sight.
        fs::hard_link(world.path("out"), world.path("published")).unwrap();
        let rewrap = ["rewrap-file", "--key", "k", "--format", "lines", "--restart"];
        let run = world.kms(&[&rewrap[..], args].concat(), b"");
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        assert!(fs::read_to_string(world.path("published")).unwrap() == content(2), "{args:?}");
        assert!(fs::read_to_string(world.path("out")).unwrap() == expected, "{args:?}");
        assert_eq!(names(&world), ["in", "out", "published"]);
        fs::remove_file(world.path("published")).unwrap();
        world.fake.script().batches.clear();
    }
}

#[test]
fn a_partial_file_with_a_further_name_is_left_to_that_name() {
    let world = World::new();
    cut(&world, &ARGS, "out");
    let partial = fs::read(world.path("out.kms-rewrap")).unwrap();
    fs::hard_link(world.path("out.kms-rewrap"), world.path("kept")).unwrap();
    // Another run's files are not even unlinked.
    let run = again(&world, &[&ARGS[..], &["--bind", "a=b"]].concat());
    assert_eq!((run.code, reason(&run)), (6, "CHECKPOINT_FOREIGN"), "{}", run.stderr);
    assert!(fs::read(world.path("out.kms-rewrap")).unwrap() == partial);
    let run = again(&world, &[&ARGS[..], &["--restart"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read(world.path("kept")).unwrap() == partial);
    assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
}

#[test]
fn an_input_that_stands_where_a_run_keeps_its_own_files_is_refused_and_kept() {
    let world = World::new();
    for name in ["out.kms-rewrap", "out.kms-rewrap.json", "out.kms-rewrap.json.new"] {
        fs::write(world.path(name), text("a", 1)).unwrap();
        for more in [&[][..], &["--restart"]] {
            let args = ["rewrap-file", "--key", "k", "--in", name, "--format", "lines"];
            let run = world.kms(&[&args[..], &["--out", "out"], more].concat(), b"");
            assert_eq!((run.code, reason(&run)), (2, "USAGE"), "{}", run.stderr);
            assert!(run.stderr.contains("is the input"), "{}", run.stderr);
            assert_eq!(fs::read_to_string(world.path(name)).unwrap(), text("a", 1));
            assert_eq!(names(&world), [name]);
        }
        fs::remove_file(world.path(name)).unwrap();
    }
    // The same file under another name.
    fs::write(world.path("in"), text("a", 1)).unwrap();
    fs::hard_link(world.path("in"), world.path("out.kms-rewrap")).unwrap();
    let run = rewrap(&world, text("a", 1), &[&ARGS[..], &["--restart"]].concat());
    assert_eq!((run.code, reason(&run)), (2, "USAGE"), "{}", run.stderr);
    assert_eq!(fs::read_to_string(world.path("in")).unwrap(), text("a", 1));
    assert_eq!(names(&world), ["in", "out.kms-rewrap"]);
}

#[test]
fn an_end_that_a_crash_left_open_tells_nothing_of_an_input_that_changed_since() {
    let world = World::new();
    let longer = |version| content(version) + &text("more", version) + "\n";
    let other = |version| content(version).replacen(&text("x", version), &text("y", version), 1);
    for (changed, after) in [(longer(1), longer(2)), (other(1), other(2))] {
        let _ = fs::remove_file(world.path("out"));
        complete(&world, &ARGS, "out");
        // What was published stays, and the leftovers of its run go.
        let run = rewrap(&world, &changed, &ARGS);
        assert_eq!(run.code, 10, "{}", run.stderr);
        assert!(fs::read_to_string(world.path("out")).unwrap() == content(2));
        assert_eq!(names(&world), ["in", "out"]);
        let run = again(&world, &[&ARGS[..], &["--force", "--output", "json"]].concat());
        assert_eq!((run.code, &run.json()["resumed"]), (0, &json!(false)), "{}", run.stderr);
        let done = fs::read_to_string(world.path("out")).unwrap();
        assert!(done == after, "{done}");
        world.fake.script().batches.clear();
    }
}

#[test]
fn an_end_in_place_that_a_crash_left_open_is_looked_at_again() {
    let world = World::new();
    for more in [&[][..], &["--resume"]] {
        let args = ["--format", "lines", "--in-place", "--output", "json"];
        complete(&world, &args, "in");
        let run = again(&world, &[&args[..], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let told = run.json();
        assert_eq!((&told["items"], &told["resumed"]), (&json!(ITEMS), &json!(false)));
        assert!(fs::read_to_string(world.path("in")).unwrap() == content(2));
        assert_eq!(names(&world), ["in"]);
        world.fake.script().batches.clear();
    }
}

#[test]
fn root_goes_on_in_place_when_the_partial_file_is_the_owners_already() {
    if !geteuid().is_root() {
        return;
    }
    let world = World::new();
    let args = ["--format", "lines", "--in-place", "--batch-size", "10"];
    fs::write(world.path("in"), "").unwrap();
    chown(world.path("in"), Some(OTHER), None).unwrap();
    cut(&world, &args, "in");
    let partial = world.path("in.kms-rewrap");
    // Neither the input's owner nor root: whose it is, is told.
    chown(&partial, Some(OTHER + 1), None).unwrap();
    let run = again(&world, &args);
    assert_eq!((run.code, reason(&run)), (10, "FILE"), "{}", run.stderr);
    assert!(run.stderr.contains("belongs to another user"), "{}", run.stderr);
    // As a cut after the last write leaves it.
    chown(&partial, Some(OTHER), None).unwrap();
    let run = again(&world, &[&args[..], &["--resume"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read_to_string(world.path("in")).unwrap() == content(2));
    assert_eq!(world.path("in").metadata().unwrap().uid(), OTHER);
    assert_eq!(names(&world), ["in"]);
}

#[test]
fn a_partial_file_of_another_user_is_refused_for_a_new_output() {
    if !geteuid().is_root() {
        return;
    }
    let world = World::new();
    fs::write(world.path("in"), "").unwrap();
    chown(world.path("in"), Some(OTHER), None).unwrap();
    fs::write(world.path("out.kms-rewrap"), "theirs").unwrap();
    chown(world.path("out.kms-rewrap"), Some(OTHER), None).unwrap();
    let run = rewrap(&world, text("a", 1), &ARGS);
    assert_eq!((run.code, reason(&run)), (10, "FILE"), "{}", run.stderr);
    assert!(run.stderr.contains("belongs to another user"), "{}", run.stderr);
    assert_eq!(fs::read_to_string(world.path("out.kms-rewrap")).unwrap(), "theirs");
}

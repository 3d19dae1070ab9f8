//! What `kms alias` sends and shows.

use super::online::World;

const JSON: [&str; 2] = ["--output", "json"];

#[test]
fn aliases_are_made_moved_deleted_described_and_listed() {
    let world = World::new();
    let run = |words: &[&str]| world.kms(&[&["alias"], words, &JSON[..]].concat(), b"").json();
    let made = run(&["create", "payments", "--key", "k", "--reason", "r"]);
    assert_eq!(made["name"], "tenants/t1/aliases/payments");
    assert_eq!((&made["key"], &made["reason"]), (&"tenants/t1/keys/k".into(), &"r".into()));
    // The revision that is there is taken, unless another is given.
    let to = ["--key", "other", "--reason", "r"];
    let moved = run(&[&["update", "payments"], &to[..]].concat());
    assert_eq!((&moved["key"], &moved["revision"]), (&"tenants/t1/keys/other".into(), &42.into()));
    let moved = run(&[&["update", "aliases/payments", "--revision", "9"], &to[..]].concat());
    assert_eq!(moved["revision"], 10);
    let gone = run(&["delete", "tenants/t1/aliases/payments", "--reason", "r"]);
    assert_eq!(gone["revision"], 41);
    assert_eq!(run(&["describe", "payments"])["key"], "tenants/t1/keys/k");
    assert_eq!(run(&["list"])["aliases"][1]["name"], "tenants/t1/aliases/billing");
    let of_key = run(&["list", "--key", "tenants/t2/keys/x"]);
    assert_eq!(of_key["aliases"][0]["name"], "tenants/t2/aliases/payments");
    assert_eq!(of_key["aliases"][0]["key"], "tenants/t2/keys/x");
}

#[test]
fn aliases_are_shown_as_tables() {
    let world = World::new();
    let shown = world.kms(&["alias", "describe", "payments"], b"");
    insta::assert_snapshot!("alias_describe", shown.text());
    let listed = world.kms(&["alias", "list"], b"");
    assert!(!listed.text().contains('\u{1b}'));
    insta::assert_snapshot!("alias_list", listed.text());
}

#[test]
fn what_is_no_alias_is_told_before_anything_is_sent() {
    let world = World::new();
    for wrong in ["", "UPPER", "a/b", "tenants/t1/keys/k", "aliases/", "k/versions/1"] {
        for verb in ["describe", "delete"] {
            let words = ["alias", verb, wrong];
            let more: &[&str] = if verb == "delete" { &["--reason", "r"] } else { &[] };
            let run = world.kms(&[&words, more].concat(), b"");
            assert_eq!(run.code, 2, "{verb} {wrong}: {}", run.stderr);
        }
    }
}

#[test]
fn an_alias_stands_for_a_key_where_something_is_protected_and_nowhere_else() {
    let world = World::new();
    for named in ["aliases/payments", "tenants/t1/aliases/payments"] {
        let described = world.kms(&[&["key", "describe", named], &JSON[..]].concat(), b"");
        assert_eq!(described.json()["name"], "tenants/t1/aliases/payments");
        assert_eq!(world.kms(&["wrap", "--key", named], b"x").code, 0, "{named}");
        for verb in [&["unwrap", "--key"][..], &["rewrap", "--key"], &["key", "rotate"]] {
            let run = world.kms(&[verb, &[named]].concat(), b"x");
            assert_eq!(run.code, 2, "{verb:?} {named}: {}", run.stderr);
        }
    }
    let pinned = world.kms(&["wrap", "--key", "aliases/payments/versions/1"], b"x");
    assert_eq!(pinned.code, 2, "{}", pinned.stderr);
}

//! What `kms key` sends and shows.

use super::online::World;

#[test]
fn keys_are_created_described_rotated_and_suspended() {
    let world = World::new();
    let create = [
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
        "90d",
        "--output",
        "json",
    ];
    let created = world.kms(&create, b"");
    assert_eq!(created.json()["name"], "tenants/t1/keys/k", "{}", created.stderr);
    assert!(world.kms(&["key", "describe", "k"], b"").text().contains("tenants/t1/keys/k"));
    let version = world.kms(&["key", "describe", "k/versions/3", "--output", "json"], b"");
    assert_eq!(version.json()["state"], "DEACTIVATED");
    let rotated = world.kms(&["key", "rotate", "k", "--output", "json"], b"");
    assert_eq!(rotated.json()["version"]["version"], 3);
    let suspended =
        world.kms(&["key", "suspend", "k", "3", "--reason", "r", "--output", "json"], b"");
    assert_eq!(suspended.json()["state"], "SUSPENDED");
    assert_eq!(suspended.json()["name"], "tenants/t1/keys/k/versions/3");
    // Either way of naming a version.
    let resume = ["key", "resume", "k/versions/3", "--reason", "r", "--output", "json"];
    assert_eq!(world.kms(&resume, b"").json()["state"], "ACTIVE");
    for wrong in [&["k"][..], &["k/versions/3", "3"]] {
        let words = [&["key", "resume", "--reason", "r"], wrong].concat();
        assert_eq!(world.kms(&words, b"").code, 2, "{words:?}");
    }
}

#[test]
fn versions_are_deactivated_compromised_and_their_destruction_planned() {
    let world = World::new();
    let run = |words: &[&str]| {
        let more = ["--reason", "r", "--output", "json"];
        world.kms(&[&["key"], words, &more].concat(), b"").json()
    };
    assert_eq!(run(&["deactivate", "k", "3"])["state"], "DEACTIVATED");
    let compromised = run(&["compromise", "k/versions/3"]);
    assert_eq!(compromised["version"]["state"], "COMPROMISED");
    assert_eq!(compromised["replacement"]["name"], "tenants/t1/keys/k/versions/4");
    // The window that is sent comes back as a time.
    let scheduled = run(&["schedule-destruction", "k", "3"]);
    assert_eq!(scheduled["state"], "DESTROY_SCHEDULED");
    assert_eq!(scheduled["destroy_time"], "1970-01-31T00:00:00.000Z", "30 days");
    let longer = run(&["schedule-destruction", "k", "3", "--window", "7d"]);
    assert_eq!(longer["destroy_time"], "1970-01-08T00:00:00.000Z");
    assert_eq!(run(&["cancel-destruction", "k", "3"])["state"], "DEACTIVATED");
}

#[test]
fn a_key_is_disabled_and_enabled_for_a_reason() {
    let world = World::new();
    let more = ["--reason", "r", "--output", "json"];
    let disabled = world.kms(&[&["key", "disable", "k"], &more[..]].concat(), b"").json();
    assert_eq!((&disabled["state"], &disabled["primary_version"]), (&"DISABLED".into(), &0.into()));
    let enabled = world.kms(&[&["key", "enable", "k"], &more[..]].concat(), b"").json();
    assert_eq!(enabled["state"], "ENABLED");
    assert_eq!(enabled["name"], "tenants/t1/keys/k");
    assert_eq!(world.kms(&["key", "disable", "k"], b"").code, 2, "a reason must be given");
}

#[test]
fn the_destruction_of_a_whole_key_is_planned_and_given_up() {
    let world = World::new();
    let run = |words: &[&str]| {
        let more = ["--reason", "r", "--whole-key"];
        world.kms(&[&["key"], words, &more].concat(), b"")
    };
    let json = ["--output", "json"];
    let scheduled = run(&[&["schedule-destruction", "k"], &json[..]].concat()).json();
    assert_eq!(scheduled["name"], "tenants/t1/keys/k");
    assert_eq!(scheduled["state"], "DESTROY_SCHEDULED");
    assert_eq!(scheduled["destroy_time"], "1970-01-31T00:00:00.000Z", "30 days");
    assert_eq!(scheduled["destroy_despite"], serde_json::json!([]));
    let all = ["schedule-destruction", "k", "--window", "7d", "--allow-consumers"];
    let told = run(&[&all, &["--allow-recent-use"][..]].concat());
    let told = told.text();
    assert!(told.contains("1970-01-08") && told.contains("consumers and recent use"), "{told}");
    let cancelled = run(&[&["cancel-destruction", "k"], &json[..]].concat()).json();
    assert_eq!((&cancelled["state"], &cancelled["destroy_time"]), (&"DISABLED".into(), &"".into()));
    // A version beside it, or in the name, is a mistake that must not cost a key.
    for wrong in [&["k", "3"][..], &["k/versions/3"]] {
        for verb in ["schedule-destruction", "cancel-destruction"] {
            assert_eq!(run(&[&[verb], wrong].concat()).code, 2, "{verb} {wrong:?}");
        }
    }
}

#[test]
fn a_version_is_staged_activated_and_discarded() {
    let world = World::new();
    let more = ["--reason", "r", "--output", "json"];
    let at = ["key", "stage", "k", "--activate-at", "2027-01-31T09:00:00.5+01:00"];
    let staged = world.kms(&[&at, &more[..]].concat(), b"").json();
    assert_eq!(staged["version"]["state"], "PRE_ACTIVATION");
    assert_eq!(staged["version"]["activate_time"], "2027-01-31T08:00:00.500Z");
    let staged = world.kms(&["key", "stage", "k", "--reason", "r"], b"");
    assert!(staged.text().contains("by hand"), "{}", staged.text());
    for wrong in ["tomorrow", "2027-01-31", "2027-01-31T09:00:00", "2027-01-31T09:00:00.0001Z"] {
        let run = world.kms(&["key", "stage", "k", "--reason", "r", "--activate-at", wrong], b"");
        assert_eq!(run.code, 2, "{wrong}: {}", run.stderr);
        assert!(run.stderr.contains("RFC 3339"), "{}", run.stderr);
    }
    let active = world.kms(&[&["key", "activate", "k", "4"], &more[..]].concat(), b"").json();
    assert_eq!(active["version"]["name"], "tenants/t1/keys/k/versions/4");
    let gone = world.kms(&[&["key", "discard", "k/versions/4"], &more[..]].concat(), b"").json();
    assert_eq!(gone["state"], "DESTROYED");
    for verb in [&["stage", "k"][..], &["activate", "k", "4"], &["discard", "k", "4"]] {
        let words = [&["key"], verb].concat();
        assert_eq!(world.kms(&words, b"").code, 2, "a reason must be given");
    }
}

#[test]
fn consumers_are_registered_listed_and_removed() {
    let world = World::new();
    let json = ["--output", "json"];
    let add = ["key", "consumer", "add", "k", "backup", "--description", "storage team"];
    let added = world.kms(&[&add, &json[..]].concat(), b"").json();
    assert_eq!(added["name"], "tenants/t1/keys/k/consumers/backup");
    assert_eq!(added["description"], "storage team");
    let listed = world.kms(&[&["key", "consumer", "list", "k"], &json[..]].concat(), b"").json();
    assert_eq!(listed["consumers"][0]["name"], "tenants/t1/keys/k/consumers/backup");
    let table = world.kms(&["key", "consumer", "list", "k"], b"");
    assert!(table.text().contains("backup") && !table.text().contains('\u{1b}'));
    let remove = ["key", "consumer", "remove", "k", "backup", "--reason", "moved"];
    let removed = world.kms(&[&remove, &json[..]].concat(), b"").json();
    assert_eq!(removed["name"], "tenants/t1/keys/k/consumers/backup");
    for wrong in ["", "UPPER", "a/b"] {
        let words = ["key", "consumer", "add", "k", wrong, "--description", "x"];
        let run = world.kms(&words, b"");
        assert_eq!(run.code, 2, "{wrong}: {}", run.stderr);
    }
}

#[test]
fn rotation_by_period_is_set_and_ended_by_the_mask_alone() {
    let world = World::new();
    let set = ["key", "rotation", "set", "k", "--period", "90d", "--output", "json"];
    assert_eq!(world.kms(&set, b"").json()["revision"], 8);
    let off = ["key", "rotation", "set", "k", "--off", "--revision", "41", "--output", "json"];
    assert_eq!(world.kms(&off, b"").json()["revision"], 42);
    let path = || vec!["rotation_period".to_owned()];
    assert_eq!(world.fake.script().masks, [path(), path()]);
    let shown = world.kms(&["key", "rotation", "show", "k"], b"");
    assert!(shown.text().contains("on demand only"), "{}", shown.text());
    for wrong in [&["set", "k"][..], &["set", "k", "--off", "--period", "1d"]] {
        assert_eq!(world.kms(&[&["key", "rotation"], wrong].concat(), b"").code, 2, "{wrong:?}");
    }
}

#[test]
fn the_usage_of_a_version_is_shown_with_its_evidence() {
    let world = World::new();
    let json = world.kms(&["key", "usage", "k", "3", "--output", "json"], b"").json();
    assert_eq!(json["name"], "tenants/t1/keys/k/versions/3");
    assert_eq!((&json["retirement"], &json["protect"]["count"]), (&"QUIET".into(), &7.into()));
    let run = world.kms(&["key", "usage", "k/versions/3"], b"");
    for cell in ["QUIET", "7 ciphertexts", "backups", "never", "7, 1970-01-01T00:00:00.000Z to"] {
        assert!(run.text().contains(cell), "{cell}: {}", run.text());
    }
}

#[test]
fn a_history_is_shown_as_json_and_as_a_table() {
    let world = World::new();
    let json = world.kms(&["key", "history", "k", "--output", "json"], b"").json();
    let entries = json["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(
        (&entries[0]["old_state"], &entries[0]["new_state"]),
        (&serde_json::Value::Null, &"ACTIVE".into())
    );
    assert_eq!(entries[1]["detail"], r#"{"owner":["a","b"]}"#);
    let run = world.kms(&["key", "history", "k"], b"");
    let table = run.text();
    for cell in ["new, ACTIVE", r#"{"owner":["a","b"]}"#, "ACTIVE -> SUSPENDED", "because"] {
        assert!(table.contains(cell), "{cell}: {table}");
    }
}

#[test]
fn update_sends_only_what_is_given_on_the_revision_it_read() {
    let world = World::new();
    let run = world.kms(&["key", "update", "k", "--owner", "new", "--output", "json"], b"");
    assert_eq!(run.json()["revision"], 8, "{}", run.stderr);
    let pinned = ["key", "update", "k", "--no-labels", "--revision", "41", "--output", "json"];
    assert_eq!(world.kms(&pinned, b"").json()["revision"], 42);
    assert_eq!(world.fake.script().masks, [vec!["owner".to_owned()], vec!["labels".to_owned()]]);
}

#[test]
fn lists_turn_pages_up_to_the_limit() {
    let world = World::new();
    let all = world.kms(&["key", "list", "--output", "json"], b"").json();
    assert_eq!(all["keys"].as_array().unwrap().len(), 3);
    assert_eq!(all["next_page_token"], "");
    let some = world.kms(&["key", "list", "--limit", "1", "--output", "json"], b"").json();
    assert_eq!(some["keys"].as_array().unwrap().len(), 1);
    let token = some["next_page_token"].as_str().unwrap();
    let rest = world.kms(&["key", "list", "--page-token", token, "--output", "json"], b"").json();
    assert_eq!(rest["keys"].as_array().unwrap().len(), 2);
    // A table that is cut off says so.
    let cut = world.kms(&["key", "list", "--limit", "1"], b"");
    assert_eq!(cut.code, 0);
    assert!(cut.stderr.contains(&format!("--page-token {token}")), "{}", cut.stderr);
    assert_eq!(world.kms(&["key", "list"], b"").stderr, "");
}

#[test]
fn a_list_sends_its_filter_and_its_order_with_every_page() {
    let world = World::new();
    let words = ["key", "list", "--state", "enabled", "--owner", "a*", "--order-by", "name desc"];
    let listed = world.kms(&[&words[..], &["--output", "json"]].concat(), b"");
    assert_eq!(listed.json()["keys"].as_array().map(Vec::len), Some(3), "{}", listed.stderr);
    let sent = ("state = ENABLED AND owner = \"a*\"".to_owned(), "name desc".to_owned());
    assert_eq!(world.fake.script().lists, [sent.clone(), sent]);
}

#[test]
fn a_page_without_keys_does_not_end_a_list() {
    let world = World::new();
    let listed = world.kms(&["key", "list", "--filter", "owner = far", "--output", "json"], b"");
    assert_eq!(listed.json()["keys"].as_array().map(Vec::len), Some(3), "{}", listed.stderr);
    assert_eq!(listed.json()["next_page_token"], "");
}

#[test]
fn a_time_that_is_none_is_refused_before_anything_is_asked() {
    let world = World::new();
    for flag in ["--unused-since", "--rotation-due-before"] {
        let refused = world.kms(&["key", "list", flag, "yesterday"], b"");
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains("RFC 3339"), "{}", refused.stderr);
    }
    assert!(world.fake.script().lists.is_empty());
}

//! Aliases: made, moved, deleted; what they stand for, and what they never do.

use std::time::Duration;

use kms_core::alias::MAX_ALIASES_PER_KEY;
use kms_core::id::Revision;
use kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW;
use kms_core::name::{AliasName, KeyOrAlias};
use kms_server::authz::ActionKind;
use kms_server::service::{
    AliasDescription, AliasError, ChangeKeyState, CreateAlias, DeleteAlias, GenerateDataKey,
    ListAliases, ListKeyHistory, QUIET_PERIOD, ScheduleKeyDestruction, ServiceError, UpdateAlias,
    Wrapped,
};

use crate::mutations::check;
use crate::support::*;

const KEY: &str = "tenants/t/keys/k";
const OTHER: &str = "tenants/t/keys/other";
const ALIAS: &str = "tenants/t/aliases/a";
const WRAP: &str = "kms.v1.CryptoService/Wrap";
const CLERK: &str = "spiffe://td/clerk";

fn alias(text: &str) -> AliasName {
    text.parse().unwrap()
}

async fn make(world: &World, id: &str, key: &str) -> Result<AliasDescription, ServiceError> {
    let create = CreateAlias {
        name: alias(&format!("tenants/t/aliases/{id}")),
        key: name(key),
        reason: "made".into(),
        request_id: fresh_id(),
    };
    world.kms.create_alias(&world.request("kms.v1.KeyService/CreateAlias"), create).await
}

async fn move_to(
    world: &World,
    key: &str,
    revision: Revision,
) -> Result<AliasDescription, ServiceError> {
    let update = UpdateAlias {
        name: alias(ALIAS),
        key: name(key),
        revision,
        reason: "moved".into(),
        request_id: fresh_id(),
    };
    world.kms.update_alias(&world.request("kms.v1.KeyService/UpdateAlias"), update).await
}

async fn delete(world: &World, revision: Revision) -> Result<AliasDescription, ServiceError> {
    let delete =
        DeleteAlias { name: alias(ALIAS), revision, reason: "done".into(), request_id: fresh_id() };
    world.kms.delete_alias(&world.request("kms.v1.KeyService/DeleteAlias"), delete).await
}

async fn describe(world: &World) -> Result<AliasDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/DescribeAlias");
    world.kms.describe_alias(&request, &alias(ALIAS)).await
}

async fn use_alias(world: &World, principal: &str) -> Result<Wrapped, ServiceError> {
    world.kms.wrap(&world.request_of(principal, WRAP), wrap(ALIAS, b"secret")).await
}

async fn list(world: &World, list: ListAliases) -> Result<(Vec<String>, String), ServiceError> {
    let request = world.request("kms.v1.KeyService/ListAliases");
    let page = world.kms.list_aliases(&request, list).await?;
    let ids = page.items.iter().map(|alias| alias.name.alias_id().to_owned()).collect();
    Ok((ids, page.next_page_token))
}

fn all() -> ListAliases {
    let tenant = name(KEY).tenant().clone();
    ListAliases { tenant, key: None, page_size: 0, page_token: String::new() }
}

/// Two keys, and an alias of the first.
async fn world() -> (World, AliasDescription) {
    let world = World::new().await;
    world.create(KEY).await;
    world.create(OTHER).await;
    let made = make(&world, "a", KEY).await.unwrap();
    (world, made)
}

fn sql(world: &World, statement: &str) {
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database.execute_batch(statement).unwrap();
}

#[tokio::test]
async fn an_alias_is_made_moved_and_deleted() {
    let (world, made) = world().await;
    assert_eq!((&made.name, &made.key, &*made.actor), (&alias(ALIAS), &name(KEY), ADMIN));
    assert_eq!(describe(&world).await.unwrap(), made);
    let record = world.records().into_iter().rfind(|record| record.intent_id.is_some()).unwrap();
    assert_eq!(record.resource.unwrap().to_string(), ALIAS);
    assert_eq!(record.manifest.unwrap().revision, made.revision, "as the log has it");
    assert_eq!(record.reason.as_deref(), Some("made"));
    let moved = move_to(&world, OTHER, made.revision).await.unwrap();
    assert!(moved.revision > made.revision);
    assert_eq!((&moved.key, &*moved.reason), (&name(OTHER), "moved"));
    assert_eq!(describe(&world.restart()).await.unwrap(), moved);
    assert_eq!(delete(&world, moved.revision).await.unwrap(), moved);
    assert_eq!(describe(&world).await.unwrap_err().reason(), "ALIAS_NOT_FOUND");
    check(&world, "aliases").await;
}

#[tokio::test]
async fn the_history_of_both_keys_tells_of_it() {
    let (world, made) = world().await;
    world.clock.advance(Duration::from_secs(1));
    let moved = move_to(&world, OTHER, made.revision).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    delete(&world, moved.revision).await.unwrap();
    let came = r#"{"aliases/a":[null,{"key":"k","revision":3}]}"#;
    let went = r#"{"aliases/a":[{"key":"k","revision":3},{"key":"other","revision":4}]}"#;
    let gone = r#"{"aliases/a":[{"key":"other","revision":4},null]}"#;
    for (key, expected) in
        [(KEY, [(came, "made"), (went, "moved")]), (OTHER, [(went, "moved"), (gone, "done")])]
    {
        let list = ListKeyHistory { key: name(key), page_size: 0, page_token: String::new() };
        let request = world.request("kms.v1.KeyService/ListKeyHistory");
        let entries = world.kms.list_key_history(&request, list).await.unwrap().items;
        let told: Vec<_> = entries
            .iter()
            .filter(|entry| !entry.detail.is_empty())
            .inspect(|entry| assert_eq!(entry.actor, ADMIN))
            .map(|entry| (&*entry.detail, &*entry.reason))
            .collect();
        assert_eq!(told, expected, "{key}");
    }
}

#[tokio::test]
async fn an_alias_stands_for_its_key_and_a_moved_one_for_the_other_at_once() {
    let (world, made) = world().await;
    let first = use_alias(&world, ADMIN).await.unwrap();
    assert_eq!(&*first.key_version, "tenants/t/keys/k/versions/1");
    assert_eq!(world.last().resource.unwrap().to_string(), KEY, "the record names the key");
    assert!(world.last().key_uid.is_some());
    let loads = world.kms.counters().alias_loads.read();
    use_alias(&world, ADMIN).await.unwrap();
    assert_eq!(world.kms.counters().alias_loads.read(), loads, "it is cached");

    move_to(&world, OTHER, made.revision).await.unwrap();
    let second = use_alias(&world, ADMIN).await.unwrap();
    assert_eq!(&*second.key_version, "tenants/t/keys/other/versions/1");
    let data_key = GenerateDataKey {
        key: ALIAS.parse().unwrap(),
        length_bytes: 32,
        context: context("/a"),
        with_plaintext: false,
    };
    let request = world.request("kms.v1.CryptoService/GenerateDataKey");
    let data_key = world.kms.generate_data_key(&request, data_key).await.unwrap();
    assert_eq!(&*data_key.key_version, "tenants/t/keys/other/versions/1");
    let request = world.request("kms.v1.KeyService/DescribeKey");
    let described = world.kms.describe_key_of_alias(&request, &alias(ALIAS)).await.unwrap();
    assert_eq!(described.name, name(OTHER));
    let items = vec![Ok(wrap(ALIAS, b"a")), Ok(wrap(KEY, b"b"))];
    let request = world.request("kms.v1.CryptoService/BatchWrap");
    let results = world.kms.batch_wrap(&request, items).await.unwrap();
    let versions: Vec<_> = results.into_iter().map(|made| made.unwrap().key_version).collect();
    assert_eq!(*versions[0], *"tenants/t/keys/other/versions/1");
    assert_eq!(*versions[1], *"tenants/t/keys/k/versions/1");

    // What was wrapped before is the first key's for ever.
    let request = world.request("kms.v1.CryptoService/Unwrap");
    world.kms.unwrap(&request, unwrap(KEY, &first.ciphertext)).await.unwrap();
    let wrong = world.kms.unwrap(&request, unwrap(OTHER, &first.ciphertext)).await.unwrap_err();
    assert_eq!(wrong.reason(), "CIPHERTEXT_INVALID");
    delete(&world, describe(&world).await.unwrap().revision).await.unwrap();
    let gone = use_alias(&world, ADMIN).await.unwrap_err();
    assert_eq!(gone, AliasError::NotFound { name: alias(ALIAS) }.into());
    assert_eq!(world.last().resource.unwrap().to_string(), ALIAS, "there is no key to name");
}

#[tokio::test]
async fn a_permission_about_aliases_opens_no_key() {
    let (world, _) = world().await;
    let of_aliases = [
        ActionKind::CreateAlias,
        ActionKind::UpdateAlias,
        ActionKind::DeleteAlias,
        ActionKind::DescribeAlias,
        ActionKind::ListAliases,
    ];
    let world = world.restart_granting(&[grant(CLERK, "t", &of_aliases)]);
    assert_eq!(use_alias(&world, CLERK).await.unwrap_err(), ServiceError::AccessDenied);
    assert_eq!(world.kms.counters().alias_loads.read(), 0, "nothing was looked up for it");
    let request = world.request_of(CLERK, "kms.v1.KeyService/DescribeKey");
    let denied = world.kms.describe_key_of_alias(&request, &alias(ALIAS)).await.unwrap_err();
    assert_eq!(denied, ServiceError::AccessDenied);
    let request = world.request_of(CLERK, "kms.v1.KeyService/DescribeAlias");
    world.kms.describe_alias(&request, &alias(ALIAS)).await.unwrap();
    // And one about keys makes and moves no alias.
    let world = world.restart_granting(&[grant(CLERK, "t", &[ActionKind::Wrap])]);
    use_alias(&world, CLERK).await.unwrap();
    let missing = wrap("tenants/t/aliases/b", b"x");
    let hidden = world.kms.wrap(&world.request_of(CLERK, WRAP), missing).await.unwrap_err();
    assert_eq!(hidden, ServiceError::AccessDenied, "who may list nothing hears of nothing");
    let request = world.request_of(CLERK, "kms.v1.KeyService/CreateAlias");
    let create = CreateAlias {
        name: alias("tenants/t/aliases/b"),
        key: name(KEY),
        reason: "made".into(),
        request_id: fresh_id(),
    };
    let denied = world.kms.create_alias(&request, create).await.unwrap_err();
    assert_eq!(denied, ServiceError::AccessDenied);
    let elsewhere = wrap("tenants/u/aliases/a", b"x");
    let denied = world.kms.wrap(&world.request_of(CLERK, WRAP), elsewhere).await.unwrap_err();
    assert_eq!(denied, ServiceError::AccessDenied);
}

#[tokio::test]
async fn names_that_are_taken_or_taken_for_another_are_refused() {
    let (world, _) = world().await;
    make(&world, "prod-1", KEY).await.unwrap();
    let taken = make(&world, "a", OTHER).await.unwrap_err();
    assert_eq!(taken, AliasError::Exists { name: alias(ALIAS) }.into());
    for alike in ["prod-l", "prod.1", "prod_i", "pr0d-1"] {
        let refused = make(&world, alike, KEY).await.unwrap_err();
        let other = alias("tenants/t/aliases/prod-1");
        assert_eq!(refused, AliasError::Confusable { other }.into(), "{alike}");
    }
    let shadows = make(&world, "other", KEY).await.unwrap_err();
    assert_eq!(shadows, AliasError::ShadowsKey { key: name(OTHER) }.into());
    // Nor does a key come under the name of an alias.
    let request = world.request("kms.v1.KeyService/CreateKey");
    let refused = world.kms.create_key(&request, create("tenants/t/keys/a")).await.unwrap_err();
    assert_eq!(refused, AliasError::Exists { name: alias(ALIAS) }.into());
    // Another tenant has names of its own.
    world.create("tenants/u/keys/a").await;
    check(&world, "names").await;
}

#[tokio::test]
async fn an_alias_points_to_a_key_that_can_be_used_one_day_and_of_its_tenant() {
    let (world, made) = world().await;
    world.create("tenants/u/keys/far").await;
    let far = make(&world, "b", "tenants/u/keys/far").await.unwrap_err();
    assert_eq!(far, AliasError::Target.into());
    let far = move_to(&world, "tenants/u/keys/far", made.revision).await.unwrap_err();
    assert_eq!(far, AliasError::Target.into());
    let missing = make(&world, "b", "tenants/t/keys/none").await.unwrap_err();
    assert_eq!(missing.reason(), "KEY_NOT_FOUND");
    let unmoved = move_to(&world, KEY, made.revision).await.unwrap_err();
    assert_eq!(unmoved, AliasError::Unmoved.into());
    for text in ["tenants/t/aliases/a/versions/1", "tenants/t/aliases/", "aliases/a"] {
        assert!(text.parse::<KeyOrAlias>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_change_that_is_not_based_on_the_present_revision_is_refused() {
    let (world, made) = world().await;
    for wrong in [Revision::new(0), made.revision.next()] {
        let refused = move_to(&world, OTHER, wrong).await.unwrap_err();
        assert_eq!(refused, AliasError::RevisionMismatch.into());
        let refused = delete(&world, wrong).await.unwrap_err();
        assert_eq!(refused.reason(), "REVISION_MISMATCH");
    }
    // Not even when the name was given again: what was read was another alias.
    delete(&world, made.revision).await.unwrap();
    let again = make(&world, "a", KEY).await.unwrap();
    assert!(again.revision > made.revision);
    assert_eq!(delete(&world, made.revision).await.unwrap_err().reason(), "REVISION_MISMATCH");
    let gone = UpdateAlias {
        name: alias("tenants/t/aliases/none"),
        key: name(OTHER),
        revision: Revision::FIRST,
        reason: "moved".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/UpdateAlias");
    assert_eq!(
        world.kms.update_alias(&request, gone).await.unwrap_err().reason(),
        "ALIAS_NOT_FOUND"
    );
}

#[tokio::test]
async fn a_key_has_so_many_aliases_and_not_one_more() {
    let (world, made) = world().await;
    // Ids of two letters out of some that look like nothing else.
    let letters = ["a", "b", "d", "e", "f", "g", "h", "k"];
    let ids = letters.iter().flat_map(|one| letters.map(|other| format!("{one}{other}")));
    let ids: Vec<_> = ids.take(MAX_ALIASES_PER_KEY as usize).collect();
    for id in &ids[1..] {
        make(&world, id, KEY).await.unwrap();
    }
    let full = make(&world, &ids[0], KEY).await.unwrap_err();
    assert_eq!(full, AliasError::Full.into());
    // One that goes elsewhere makes room for one that comes.
    let moved = move_to(&world, OTHER, made.revision).await.unwrap();
    make(&world, &ids[0], KEY).await.unwrap();
    let full = move_to(&world, KEY, moved.revision).await.unwrap_err();
    assert_eq!(full, AliasError::Full.into());
    let of_key = ListAliases { key: Some(name(KEY)), ..all() };
    assert_eq!(list(&world, of_key).await.unwrap().0.len(), MAX_ALIASES_PER_KEY as usize);
}

#[tokio::test]
async fn aliases_are_listed_in_pages_and_by_key() {
    let (world, made) = world().await;
    for (id, key) in [("b", OTHER), ("d", KEY), ("e", OTHER)] {
        make(&world, id, key).await.unwrap();
    }
    assert_eq!(list(&world, all()).await.unwrap(), (ids(&["a", "b", "d", "e"]), String::new()));
    let of_key = |page_size| ListAliases { key: Some(name(OTHER)), page_size, ..all() };
    assert_eq!(list(&world, of_key(2)).await.unwrap(), (ids(&["b", "e"]), String::new()));
    let (first, page_token) = list(&world, ListAliases { page_size: 3, ..all() }).await.unwrap();
    assert_eq!(first, ids(&["a", "b", "d"]));
    // One that is moved meanwhile comes once more, and none is left out.
    move_to(&world, OTHER, made.revision).await.unwrap();
    let second = ListAliases { page_token: page_token.clone(), ..all() };
    assert_eq!(list(&world, second).await.unwrap(), (ids(&["e", "a"]), String::new()));
    let of_another_list = ListAliases { page_token, ..of_key(3) };
    assert_eq!(list(&world, of_another_list).await.unwrap_err().reason(), "FIELD_VIOLATION");
    let far = ListAliases { key: Some(name("tenants/u/keys/k")), ..all() };
    assert_eq!(list(&world, far).await.unwrap_err().reason(), "FIELD_VIOLATION");
    let missing = ListAliases { key: Some(name("tenants/t/keys/none")), ..all() };
    assert_eq!(list(&world, missing).await.unwrap_err().reason(), "KEY_NOT_FOUND");
    let too_many = ListAliases { page_size: 1001, ..all() };
    assert_eq!(list(&world, too_many).await.unwrap_err().reason(), "FIELD_VIOLATION");
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test]
async fn reasons_are_asked_for_and_bounded() {
    let (world, made) = world().await;
    let request = world.request("kms.v1.KeyService/DeleteAlias");
    let with = |reason: String| DeleteAlias {
        name: alias(ALIAS),
        revision: made.revision,
        reason,
        request_id: fresh_id(),
    };
    for reason in [String::new(), "r".repeat(257)] {
        let refused = world.kms.delete_alias(&request, with(reason)).await.unwrap_err();
        assert_eq!(refused.reason(), "FIELD_VIOLATION");
    }
    world.kms.delete_alias(&request, with("r".repeat(256))).await.unwrap();
}

#[tokio::test]
async fn an_edited_alias_is_refused_with_an_alert() {
    for edit in [
        "UPDATE aliases SET key_id = 'other'",
        "UPDATE aliases SET key_uid = (SELECT uid FROM keys WHERE key_id = 'other')",
        "UPDATE aliases SET revision = 9",
        "UPDATE aliases SET mac = zeroblob(32)",
        "UPDATE aliases SET skeleton = 'x'",
    ] {
        let (world, _) = world().await;
        sql(&world, "DROP TRIGGER aliases_guard");
        sql(&world, edit);
        for refused in [
            use_alias(&world, ADMIN).await.unwrap_err(),
            describe(&world).await.unwrap_err(),
            list(&world, all()).await.unwrap_err(),
        ] {
            assert_eq!(refused.reason(), "KEY_INTEGRITY", "{edit}");
        }
        assert!(world.kms.counters().integrity_failures.read() > 0, "{edit}");
    }
}

#[tokio::test]
async fn an_alias_that_was_put_back_or_taken_away_shows_against_the_manifest() {
    let tenant = name(KEY).tenant().clone();
    for edit in [
        "UPDATE aliases SET (key_id, key_uid, update_time, reason, revision, mac) =
            (SELECT key_id, key_uid, update_time, reason, revision, mac FROM old)",
        "DELETE FROM aliases",
    ] {
        let (world, made) = world().await;
        sql(&world, "CREATE TABLE old AS SELECT * FROM aliases; DROP TRIGGER aliases_guard");
        move_to(&world, OTHER, made.revision).await.unwrap();
        world.kms.verify_manifest(&tenant).await.unwrap();
        sql(&world, edit);
        let refused = world.kms.verify_manifest(&tenant).await.unwrap_err();
        assert_eq!(refused.reason(), "KEY_INTEGRITY", "{edit}");
    }
}

/// Plans the destruction of the key that the alias points to.
async fn schedule(world: &World) {
    let change = ChangeKeyState { name: name(KEY), reason: "x".into(), request_id: fresh_id() };
    let request = world.request("kms.v1.KeyService/DisableKey");
    world.kms.disable_key(&request, change).await.unwrap();
    world.clock.advance(QUIET_PERIOD);
    let plan = ScheduleKeyDestruction {
        name: name(KEY),
        window: DEFAULT_DESTRUCTION_WINDOW,
        allow_recent_use: true,
        allow_consumers: false,
        reason: "retired".into(),
        request_id: fresh_id(),
    };
    let request = world.request("kms.v1.KeyService/ScheduleKeyDestruction");
    world.kms.schedule_key_destruction(&request, plan).await.unwrap();
}

/// Lets it be destroyed.
async fn destroy(world: &World) {
    schedule(world).await;
    assert_eq!(use_alias(world, ADMIN).await.unwrap_err().reason(), "KEY_DESTROY_SCHEDULED");
    let none = make(world, "b", KEY).await.unwrap_err();
    assert_eq!(none.reason(), "KEY_DESTROY_SCHEDULED");
    world.clock.advance(DEFAULT_DESTRUCTION_WINDOW);
    world.kms.reconcile().await.unwrap();
    world.kms.reconcile().await.unwrap();
    assert_eq!(use_alias(world, ADMIN).await.unwrap_err().reason(), "KEY_DESTROYED");
    assert_eq!(make(world, "b", KEY).await.unwrap_err().reason(), "KEY_DESTROYED");
}

#[tokio::test]
async fn an_alias_of_a_destroyed_key_blocks_nothing_and_can_be_moved_away() {
    let (world, made) = world().await;
    destroy(&world).await;
    assert_eq!(describe(&world).await.unwrap(), made, "it points where it pointed");
    let moved = move_to(&world, OTHER, made.revision).await.unwrap();
    use_alias(&world, ADMIN).await.unwrap();
    let back = move_to(&world, KEY, moved.revision).await.unwrap_err();
    assert_eq!(back.reason(), "KEY_DESTROYED");
    world.kms.verify_manifest(name(KEY).tenant()).await.unwrap();
}

#[tokio::test]
async fn an_alias_of_a_destroyed_key_can_be_deleted() {
    let (world, made) = world().await;
    destroy(&world).await;
    delete(&world, made.revision).await.unwrap();
    assert_eq!(describe(&world).await.unwrap_err().reason(), "ALIAS_NOT_FOUND");
    world.kms.verify_manifest(name(KEY).tenant()).await.unwrap();
}

#[tokio::test]
async fn a_new_root_seals_aliases_too() {
    let (world, made) = world().await;
    let second = kms_core::id::RootGeneration::new(2).unwrap();
    world.open_root(second).await;
    assert_eq!(world.store.old_counts(second).await.unwrap().aliases, 1);
    let keyring = kms_server::keyring::KeyringConfig { generation: second, ..Default::default() };
    let world = world.restart_with(keyring);
    assert!(world.kms.root_pass().await.unwrap());
    assert_eq!(world.store.old_counts(second).await.unwrap().aliases, 0);
    assert_eq!(describe(&world).await.unwrap(), made);
    use_alias(&world, ADMIN).await.unwrap();
    world.kms.verify_manifest(name(KEY).tenant()).await.unwrap();
}

//! The conformance suite: everything that is true of every [`Store`](super::Store).
//!
//! `store_suite!(open)` makes one test of each public function of the files below; `open` is an expression that gives a fresh, empty
//! store and whatever keeps it alive. The store remembers [`MAX_REQUESTS`] requests of a tenant. A new function needs its name in the macro's list.

pub(crate) mod aliases;
pub(crate) mod consumers;
pub(crate) mod counters;
pub(crate) mod due;
pub(crate) mod import_jobs;
pub(crate) mod keys;
pub(crate) mod lists;
pub(crate) mod requests;
pub(crate) mod reseal;
pub(crate) mod usage;

use std::sync::Arc;
use std::time::Duration;

use kms_core::alias::AliasRow;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::key::{
    CheckBlob, CkaId, CounterRow, KeyRow, KeyState, MAX_INVOCATIONS, Material, Origin, Protection,
    Purpose, RowMac, Sealed, Sensitivity, VersionRow, WrappedKey,
};
use kms_core::lifecycle::{Destruction, HistoryChange, HistoryRow, KeyDestruction, Rotation};
use kms_core::manifest::{Manifest, RowSet};
use kms_core::name::{AliasName, KeyName, TenantName};
use kms_core::root::RootPin;
use kms_core::state::VersionState;
use kms_core::usage::{Tally, UsageRow, Uses};

use super::{
    Closing, ConsumerChange, ConsumerEdit, DuePosition, HistoryPosition, ImportJobEdit, Intent,
    IntentKind, JobPosition, KeyRef, ListPosition, Listed, MAX_LIST_ROWS, ManifestChange, NewKey,
    REQUEST_MEMORY, RequestRecord, Rollover, Staging, Store, StoreError, Successor, VersionChoice,
};

/// Makes a test of each case for one engine.
macro_rules! store_suite {
    ($open:expr) => {
        store_suite!(@cases $open;
            aliases::aliases_come_move_and_go_with_the_rows_of_their_keys,
            aliases::a_name_that_is_taken_or_looks_like_another_is_refused,
            aliases::aliases_are_read_by_name_by_looks_and_in_pages,
            aliases::an_alias_of_a_destroyed_key_goes_and_nothing_else_of_the_key_changes,
            counters::a_counter_gives_back_one_lease_and_no_more,
            counters::a_counter_reaches_its_limit_and_not_one_more,
            counters::counters_are_updated_each_by_its_own_revision,
            counters::of_parallel_leases_exactly_one_wins,
            due::due_activations_are_those_of_staged_versions_of_enabled_keys,
            due::due_activations_go_on_after_a_place,
            due::due_deactivations_and_rotations_go_on_after_a_place,
            due::due_deactivations_are_those_of_active_versions,
            due::due_destructions_are_those_planned_the_first_first,
            due::due_destructions_go_on_after_a_place,
            due::due_key_destructions_are_those_not_held_or_begun,
            due::due_key_destructions_go_on_after_a_place,
            due::due_rotations_are_those_of_active_primaries_of_enabled_keys,
            keys::a_destroyed_version_stays_destroyed,
            keys::a_destruction_that_has_begun_is_not_taken_back,
            keys::a_key_is_updated_only_at_its_revision,
            keys::a_key_reads_back_by_name_and_by_uid,
            consumers::consumers_come_and_go_with_their_key_row,
            consumers::a_destruction_waits_for_the_last_consumer,
            keys::a_key_without_its_primary_version_is_refused,
            keys::a_revision_that_does_not_grow_is_refused,
            keys::a_rollover_moves_the_primary,
            keys::a_staged_version_is_one_and_takes_the_place_of_the_primary,
            keys::a_stale_rollover_changes_nothing,
            keys::a_taken_name_is_refused_and_changes_nothing,
            keys::a_version_is_updated_only_at_its_revision,
            keys::of_parallel_updates_exactly_one_wins,
            keys::texts_at_their_bounds_are_stored_and_longer_ones_refused,
            lists::a_closed_store_refuses,
            lists::a_new_store_is_empty,
            lists::a_root_is_pinned_once,
            lists::history_is_paged_by_time_version_and_revision,
            lists::history_is_never_changed_and_has_one_entry_a_revision,
            lists::keys_are_paged_by_create_time_and_uid,
            lists::keys_are_paged_in_every_order,
            lists::lists_are_bounded,
            lists::manifests_are_paged_by_tenant,
            lists::resident_ids_leave_out_destroyed_ones,
            lists::the_probe_writes,
            lists::versions_are_listed_by_number,
            reseal::a_root_is_retired_when_nothing_is_sealed_under_it,
            reseal::a_manifest_is_sealed_anew_by_itself,
            reseal::a_row_that_was_changed_meanwhile_is_not_sealed_over,
            reseal::old_rows_are_found_key_by_key_within_the_limits,
            reseal::rows_are_sealed_anew_and_nothing_else_of_them_changes,
            import_jobs::import_jobs_come_and_go,
            import_jobs::an_import_job_goes_with_the_key_it_was_for,
            usage::uses_are_written_each_at_its_revision_and_never_go_back,
            requests::a_manifest_is_replaced_only_at_its_revision,
            requests::a_mutation_happens_once,
            requests::a_mutation_marks_its_intent_with_its_manifest,
            requests::a_mutation_needs_its_intent,
            requests::a_repeated_request_id_is_told_apart_and_changes_nothing,
            requests::a_request_id_can_be_used_again_after_its_memory,
            requests::an_intent_is_opened_once,
            requests::intents_are_listed_oldest_first_until_closed,
            requests::of_parallel_repeats_exactly_one_wins,
            requests::requests_before_a_time_are_forgotten,
            requests::as_many_requests_are_forgotten_as_the_limit_the_oldest_first,
            requests::requests_of_a_tenant_are_bounded,
        );
    };
    (@cases $open:expr; $($group:ident::$name:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _alive) = $open;
                $crate::store::suite::$group::$name(std::sync::Arc::new(store)).await;
            }
        )+
    };
}
pub(crate) use store_suite;

/// How many requests of a tenant the stores of the suite remember: few, so that the bound is soon reached.
pub(crate) const MAX_REQUESTS: u64 = 4;

const GENERATION: RootGeneration = RootGeneration::FIRST;

fn time(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

fn version_number(number: u32) -> KeyVersion {
    KeyVersion::new(number).unwrap()
}

fn tenant() -> TenantName {
    TenantName::from_id("t1").unwrap()
}

fn uid(number: u8) -> KeyUid {
    KeyUid::from_random([number; 16])
}

pub(crate) fn sealed<R>(row: R) -> Sealed<R> {
    Sealed { row, mac: RowMac([7; 32]), generation: GENERATION }
}

/// A key told apart by `number`.
pub(crate) fn key_row(number: u8) -> KeyRow {
    KeyRow {
        uid: uid(number),
        name: KeyName::new(tenant(), &format!("k{number}")).unwrap(),
        purpose: Purpose::Wrap,
        protection: Protection::HsmWrapped,
        state: KeyState::Enabled,
        owner: "team".into(),
        sensitivity: Sensitivity::High,
        usage: "backups".into(),
        cryptoperiod: Duration::from_hours(24 * 365),
        recipient_usage_period: Duration::from_hours(24 * 365 * 4),
        labels: [("env".to_owned(), "prod \"1\" \u{e4}".to_owned())].into(),
        create_time: time(1000),
        update_time: time(1001),
        revision: Revision::FIRST,
        primary: KeyVersion::FIRST,
        latest: KeyVersion::FIRST,
        consumers: 0,
        rotation: None,
        destruction: None,
    }
}

/// An alias of the key told apart by `number`.
pub(crate) fn alias(id: &str, number: u8, revision: u64) -> Sealed<AliasRow> {
    sealed(AliasRow {
        name: AliasName::new(tenant(), id).unwrap(),
        key: key_row(number).name,
        key_uid: uid(number),
        create_time: time(5),
        update_time: time(6),
        actor: "spiffe://holdfast.test/officer".into(),
        reason: "moved".into(),
        revision: Revision::new(revision),
    })
}

fn version_row(number: u8, version: u32) -> VersionRow {
    VersionRow {
        key_uid: uid(number),
        version: version_number(version),
        state: VersionState::Active,
        material: Material::Wrapped(WrappedKey(vec![number; 40])),
        check: CheckBlob { iv: [3; 12], ciphertext_and_tag: vec![4; 32] },
        origin: Origin::Imported,
        create_time: time(1000),
        state_time: time(1002),
        state_reason: "created".into(),
        state_actor: "spiffe://holdfast.test/officer".into(),
        activate_time: Some(time(1000)),
        deactivate_time: None,
        destruction: None,
        revision: Revision::FIRST,
    }
}

fn counter_row(number: u8, version: u32) -> CounterRow {
    CounterRow {
        key_uid: uid(number),
        version: version_number(version),
        leased: 1,
        revision: Revision::FIRST,
    }
}

/// A new key told apart by `number`.
pub(crate) fn new_key(number: u8) -> NewKey {
    NewKey {
        key: sealed(key_row(number)),
        version: sealed(version_row(number, 1)),
        counter: sealed(counter_row(number, 1)),
        import_job: None,
    }
}

fn intent_id(number: u8) -> IntentId {
    IntentId::from_bytes([number; 16])
}

/// The intent of the key told apart by `number`.
pub(crate) fn intent(number: u8) -> Intent {
    Intent {
        id: intent_id(number),
        kind: IntentKind::CreateKey,
        principal: "spiffe://holdfast.test/officer".into(),
        key_name: key_row(number).name,
        key_uid: uid(number),
        version: KeyVersion::FIRST,
        protection: Protection::HsmWrapped,
        resident_id: CkaId([number; 16]),
        time: time(i64::from(number)),
        applied: None,
    }
}

/// The same, when its mutation is committed.
pub(crate) fn applied(number: u8, manifest_revision: u64) -> Intent {
    closing(number, manifest_revision).intent.row
}

/// What a store without damage lists.
fn listed<R>(rows: Vec<R>) -> Listed<R> {
    Listed { rows, damaged: 0 }
}

/// What a store lists that holds just these intents, as [`intent`] and [`closing`] seal them.
pub(crate) fn listed_intents(intents: Vec<Intent>) -> Listed<Sealed<Intent>> {
    let seal = |intent: Intent| Sealed {
        mac: if intent.applied.is_some() { APPLIED_MAC } else { RowMac([7; 32]) },
        row: intent,
        generation: GENERATION,
    };
    listed(intents.into_iter().map(seal).collect())
}

/// The MAC of applied intents here: another one than before.
const APPLIED_MAC: RowMac = RowMac([8; 32]);

/// Applies an intent, taking the manifest from one revision to the next.
pub(crate) fn closing(number: u8, manifest_revision: u64) -> Closing {
    let mut rows = RowSet::empty();
    rows.insert(&RowMac([number; 32]));
    let revision = Revision::new(manifest_revision + 1);
    let manifest = Manifest { tenant: tenant(), revision, rows };
    let row = Intent { applied: Some(manifest.stamp()), ..intent(number) };
    Closing {
        intent: Sealed { row, mac: APPLIED_MAC, generation: GENERATION },
        manifest: ManifestChange {
            expected: Revision::new(manifest_revision),
            manifest: sealed(manifest),
        },
        history: Vec::new(),
        request: None,
    }
}

pub(crate) fn request(number: u8, ms: i64) -> RequestRecord {
    RequestRecord {
        tenant: tenant(),
        principal: "spiffe://holdfast.test/officer".into(),
        request_id: RequestId::from_bytes([number; 16]),
        method: "kms.v1.KeyService/CreateKey".into(),
        request_hash: [number; 32],
        result: vec![1, 2, 3],
        time: time(ms),
    }
}

/// Creates the key `number` when the manifest is at `manifest_revision`, and closes the intent.
async fn create(store: &Arc<impl Store>, number: u8, manifest_revision: u64) {
    store.open_intent(sealed(intent(number))).await.unwrap();
    store.create_key(new_key(number), closing(number, manifest_revision)).await.unwrap();
    store.close_intent(intent_id(number)).await.unwrap();
}

async fn stored_key(store: &Arc<impl Store>, number: u8) -> Sealed<KeyRow> {
    let found = store.key(KeyRef::Uid(uid(number)), VersionChoice::Primary).await.unwrap();
    found.unwrap().key
}

fn updated(mut key: Sealed<KeyRow>, owner: &str) -> Sealed<KeyRow> {
    key.row.owner = owner.into();
    key.row.revision = key.row.revision.next();
    key
}

//! Moves between states: every move from every state, the primary, compromise, and the history of it all.

use kms_core::key::Protection;
use kms_core::lifecycle::Transition;
use kms_core::state::VersionState;
use kms_server::authz::ActionKind;
use kms_server::service::{
    ChangeVersionState, Compromised, HistoryEntry, ListKeyHistory, ServiceError,
};

use crate::mutations::{Case, KEY, Kind};
use crate::support::*;

fn change(number: u32) -> ChangeVersionState {
    let name = format!("{KEY}/versions/{number}").parse().unwrap();
    ChangeVersionState { name, reason: "test".into(), request_id: fresh_id() }
}

/// Brings version 1, which is not the primary, into a state by moves alone; a staged one is version 2.
async fn world_in(state: VersionState) -> World {
    let path: &[Kind] = match state {
        VersionState::PreActivation | VersionState::Active => &[],
        VersionState::Suspended => &[Kind::Suspend],
        VersionState::Deactivated => &[Kind::Deactivate],
        VersionState::Compromised => &[Kind::CompromiseOld],
        VersionState::DestroyScheduled | VersionState::Destroyed => {
            &[Kind::Deactivate, Kind::Schedule]
        }
    };
    let kind = if state == VersionState::PreActivation { Kind::Activate } else { Kind::Deactivate };
    let case = Case { kind, protection: Protection::HsmWrapped };
    let world = case.world().await;
    for kind in path {
        Case { kind: *kind, ..case }.run(&world, fresh_id()).await.unwrap();
    }
    if state == VersionState::Destroyed {
        world.clock.advance(kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW);
        assert_eq!(world.kms.reconcile().await.unwrap().destroyed, 1);
    }
    world
}

#[tokio::test]
async fn every_move_from_every_state_does_what_the_table_says() {
    let moves = [
        (Transition::Activate, Kind::Activate),
        (Transition::Discard, Kind::Discard),
        (Transition::Suspend, Kind::Suspend),
        (Transition::Resume, Kind::Resume),
        (Transition::Deactivate, Kind::Deactivate),
        (Transition::Compromise, Kind::CompromiseOld),
        (Transition::ScheduleDestruction, Kind::Schedule),
        (Transition::CancelDestruction, Kind::Cancel),
    ];
    for from in VersionState::ALL {
        let number = if from == VersionState::PreActivation { 2 } else { 1 };
        for (step, kind) in moves {
            let world = world_in(from).await;
            let before = history(&world).await;
            // Entries of one moment stand by version, not as they came.
            world.clock.advance(std::time::Duration::from_millis(1));
            let case = Case { kind, protection: Protection::HsmWrapped };
            let result = case.run_on(number, &world, fresh_id()).await;
            let planned = kms_core::lifecycle::Destruction {
                time: kms_core::clock::Timestamp::from_unix_ms(0),
                returns_to: VersionState::Deactivated,
                despite_consumers: false,
                despite_recent_use: false,
            };
            let planned = (from == VersionState::DestroyScheduled).then_some(planned);
            let after = history(&world).await;
            if let Some(to) = step.leads(from, planned) {
                assert!(result.is_ok(), "{step:?} from {from}: {result:?}");
                let last = after.last().unwrap();
                assert_eq!((last.from, last.to), (Some(from), Some(to)), "{step:?}");
                assert_eq!(after.len(), before.len() + 1);
            } else {
                let to = step.aims_at();
                assert_eq!(result, Err(ServiceError::IllegalTransition { from, to }));
                assert_eq!(after, before, "nothing was changed");
            }
        }
    }
}

async fn history(world: &World) -> Vec<HistoryEntry> {
    let (mut entries, mut page_token) = (Vec::new(), String::new());
    loop {
        let list = ListKeyHistory { key: name(KEY), page_size: 2, page_token };
        let request = world.request("kms.v1.KeyService/ListKeyHistory");
        let page = world.kms.list_key_history(&request, list).await.unwrap();
        assert!(page.items.len() <= 2);
        entries.extend(page.items);
        if page.next_page_token.is_empty() {
            return entries;
        }
        page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn a_primary_is_not_deactivated_without_a_successor() {
    let world = World::new().await;
    world.create(KEY).await;
    let request = world.request("kms.v1.KeyService/DeactivateKeyVersion");
    for suspend in [false, true] {
        if suspend {
            let request = world.request("kms.v1.KeyService/SuspendKeyVersion");
            world.kms.suspend_key_version(&request, change(1)).await.unwrap();
        }
        let refused = world.kms.deactivate_key_version(&request, change(1)).await;
        assert_eq!(refused, Err(ServiceError::PrimaryVersion));
    }
    let request = world.request("kms.v1.KeyService/ResumeKeyVersion");
    world.kms.resume_key_version(&request, change(1)).await.unwrap();
    world.wrap(KEY).await;
}

#[tokio::test]
async fn a_compromised_primary_is_replaced_at_once_and_only_the_permitted_open_what_it_wrapped() {
    for protection in [Protection::HsmWrapped, Protection::HsmResident] {
        let actions: Vec<_> = ActionKind::ALL
            .iter()
            .copied()
            .filter(|action| *action != ActionKind::UnwrapCompromised)
            .collect();
        let world = World::new().await;
        let world = world.restart_granting(&[grant("spiffe://td/app", "t", &actions)]);
        Case { kind: Kind::Create, protection }.run(&world, fresh_id()).await.unwrap();
        let old = world.wrap(KEY).await;
        let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
        let Compromised { key, version, replacement } =
            world.kms.compromise_key_version(&request, change(1)).await.unwrap();
        assert_eq!((version.state, version.primary), (VersionState::Compromised, false));
        let replacement = replacement.unwrap();
        assert_eq!((replacement.version.get(), replacement.primary), (2, true));
        assert_eq!(key.primary_version, Some(replacement.version));
        assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/2"));
        let as_app = world.request_of("spiffe://td/app", "kms.v1.CryptoService/Unwrap");
        let refused = world.kms.unwrap(&as_app, unwrap(KEY, &old.ciphertext)).await.unwrap_err();
        let state = VersionState::Compromised;
        assert_eq!(refused, ServiceError::KeyNotActive { state });
        let as_admin = world.request("kms.v1.CryptoService/Unwrap");
        let opened = world.kms.unwrap(&as_admin, unwrap(KEY, &old.ciphertext)).await.unwrap();
        assert_eq!(opened.plaintext.expose(), b"secret");
        let entries: Vec<_> = history(&world)
            .await
            .into_iter()
            .map(|entry| (entry.version.unwrap().get(), entry.from, entry.to.unwrap()))
            .collect();
        let active = VersionState::Active;
        assert_eq!(
            entries,
            [(1, None, active), (1, Some(active), VersionState::Compromised), (2, None, active)]
        );
    }
}

#[tokio::test]
async fn a_history_tells_who_why_and_both_revisions_and_what_was_said_before() {
    let case = Case { kind: Kind::Create, protection: Protection::HsmWrapped };
    let world = World::new().await;
    for kind in [Kind::Create, Kind::Update, Kind::Suspend, Kind::Resume] {
        Case { kind, ..case }.run(&world, fresh_id()).await.unwrap();
        world.clock.advance(std::time::Duration::from_secs(1));
    }
    let entries = history(&world).await;
    let told: Vec<_> = entries
        .iter()
        .map(|entry| {
            let revisions = (entry.old_revision.get(), entry.revision.get());
            (entry.reason.as_str(), revisions, entry.detail.as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("created", (0, 1), ""),
            ("", (1, 2), r#"{"owner":["team","other"]}"#),
            ("test", (1, 2), ""),
            ("test", (2, 3), ""),
        ]
    );
    assert!(entries.iter().all(|entry| entry.actor == ADMIN));
    assert!(entries.is_sorted_by_key(|entry| entry.time));
}

#[tokio::test]
async fn a_history_entry_that_was_edited_is_refused_and_one_taken_away_shows() {
    let world = Case { kind: Kind::Resume, protection: Protection::HsmWrapped }.world().await;
    let list = || ListKeyHistory { key: name(KEY), page_size: 0, page_token: String::new() };
    let database = rusqlite::Connection::open(world.database()).unwrap();
    database
        .execute_batch(
            "DROP TRIGGER history_stands; DROP TRIGGER history_stays;
             UPDATE history SET actor = 'somebody else' WHERE revision = 2;",
        )
        .unwrap();
    let request = world.request("kms.v1.KeyService/ListKeyHistory");
    let refused = world.kms.list_key_history(&request, list()).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
    database.execute_batch("DELETE FROM history WHERE revision = 2;").unwrap();
    assert!(world.kms.list_key_history(&request, list()).await.is_ok(), "its MACs are good");
    let refused = world.kms.verify_manifest(name(KEY).tenant()).await.unwrap_err();
    assert_eq!(refused.reason(), "KEY_INTEGRITY");
}

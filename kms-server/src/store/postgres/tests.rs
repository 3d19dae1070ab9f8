//! The suite on PostgreSQL, and what is true of a server only: what it must be set to, who holds it, how it is lost.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::id::RootGeneration;
use kms_core::key::{CkaId, RowMac, Sealed};
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::secret::Password;
use kms_testkit::postgres::{Database, Postgres};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::error::Failure;
use super::holder::superseded;
use super::pool::{Dial, Pool};
use super::session::{Isolation, Session};
use super::sql::execute;
use super::{PostgresSettings, PostgresStore};
use crate::store::suite::{
    self, applied, closing, intent, listed_intents, new_key, sealed, store_suite,
};
use crate::store::{KeyRef, MAX_REMEMBERED_REQUESTS, Store, StoreError, VersionChoice};

/// A database of one test.
pub(super) struct Fresh {
    pub(super) database: Database,
    pub(super) settings: PostgresSettings,
}

/// Makes a database, reached by its socket.
pub(super) fn fresh() -> Fresh {
    of(Postgres::shared())
}

fn of(cluster: &Postgres) -> Fresh {
    let database = cluster.fresh_database();
    let host = database.socket_directory.to_str().unwrap().to_owned();
    let mut settings = PostgresSettings::new(host, database.name.clone(), database.user.clone());
    settings.port = database.port;
    settings.password = Some(Password::new(database.password.clone()));
    settings.pool_size = 4;
    Fresh { database, settings }
}

impl Fresh {
    pub(super) async fn open(&self) -> Result<PostgresStore, StoreError> {
        PostgresStore::open(self.settings.clone()).await
    }

    /// Waits until somebody waits for a lock.
    pub(super) async fn until_one_waits(&self) {
        let waits = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while self.database.sql(waits) == "0" {
            tokio::task::yield_now().await;
        }
    }

    /// Lends a connection of a pool of its own.
    pub(super) async fn session(&self) -> Session {
        let pool = Pool::new(&self.settings, Dial::new(&self.settings)).unwrap();
        pool.session().await.unwrap()
    }
}

/// As the suite wants it.
async fn small() -> (PostgresStore, Fresh) {
    let fresh = fresh();
    let store = PostgresStore::open_with(fresh.settings.clone(), suite::MAX_REQUESTS).await;
    (store.unwrap(), fresh)
}

store_suite!(small().await);

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1)
}

fn detail(refused: Result<PostgresStore, StoreError>) -> String {
    match refused.unwrap_err() {
        StoreError::Unavailable { detail }
        | StoreError::Unwritable { detail }
        | StoreError::Schema { detail } => detail,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    store.close().await;
    let store = fresh.open().await.unwrap();
    let name = KeyRef::Name(new_key(1).key.row.name);
    let found = store.key(name, VersionChoice::Primary).await.unwrap().unwrap();
    assert_eq!((found.key, found.version), (new_key(1).key, Some(new_key(1).version)));
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0)])));
}

/// TLS that trusts those who issued the certificates of a file; nobody without one.
fn tls(trusted: Option<&Path>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = trusted {
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

#[tokio::test]
async fn over_tls_the_servers_certificate_is_verified() {
    let mut fresh = fresh();
    fresh.settings.host = fresh.database.host.into();
    fresh.settings.tls = Some(tls(Some(&fresh.database.ca)));
    let store = fresh.open().await.unwrap();
    store.probe(now()).await.unwrap();
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'holdfast' AND datname = current_database()";
    assert_eq!(fresh.database.sql(encrypted), "t");
    store.close().await;

    fresh.settings.tls = Some(tls(None));
    let refused = detail(fresh.open().await);
    assert!(refused.contains("TLS") && refused.contains("certificate"), "{refused}");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_told() {
    let mut fresh = fresh();
    fresh.settings.password = Some(Password::new("canary".into()));
    let refused = detail(fresh.open().await);
    assert!(refused.contains("login was refused") && !refused.contains("canary"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let mut fresh = fresh();
    fresh.settings.port = 1;
    let refused = detail(fresh.open().await);
    assert!(refused.starts_with("cannot connect"), "{refused}");
}

#[tokio::test]
async fn a_server_that_may_forget_or_cannot_write_is_refused_with_what_to_set() {
    for (parameter, value) in
        [("synchronous_commit", "off"), ("default_transaction_read_only", "on")]
    {
        let fresh = fresh();
        fresh.database.set(parameter, value);
        let refused = fresh.open().await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Unwritable { detail } if detail.contains(parameter)),
            "{refused}"
        );
    }
    for value in ["on", "local", "remote_apply"] {
        let fresh = fresh();
        fresh.database.set("synchronous_commit", value);
        fresh.open().await.unwrap().close().await;
    }
}

#[tokio::test]
async fn sessions_run_with_the_safe_settings() {
    let fresh = fresh();
    for (default, set) in
        [("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")]
    {
        fresh.database.set("synchronous_commit", default);
        let session = fresh.session().await;
        for (name, value) in [
            ("synchronous_commit", set),
            ("search_path", "holdfast, pg_temp"),
            ("statement_timeout", "10s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "10s"),
        ] {
            let shown = session.client().unwrap().query_one(&format!("SHOW {name}"), &[]).await;
            assert_eq!(shown.unwrap().get::<_, String>(0), value, "{name}");
        }
    }
}

#[tokio::test]
async fn a_second_server_is_refused_until_the_first_closes() {
    let fresh = fresh();
    let first = fresh.open().await.unwrap();
    assert_eq!(detail(fresh.open().await), "another server holds the database");
    first.probe(now()).await.unwrap();
    first.close().await;
    fresh.open().await.unwrap();
}

/// Asks until the answer is not that the database is away.
async fn until_answered<R: Future<Output = Result<(), StoreError>>>(
    ask: impl Fn() -> R,
) -> Result<(), StoreError> {
    let asked = async {
        loop {
            match ask().await {
                Err(away @ StoreError::Unavailable { .. }) if away != superseded() => {
                    tokio::task::yield_now().await;
                }
                answered => return answered,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap()
}

#[tokio::test]
async fn after_all_sessions_were_ended_the_store_answers_again() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    assert!(fresh.database.end_sessions() >= 2);
    until_answered(|| store.create_key(new_key(1), closing(1, 0))).await.unwrap();
    until_answered(|| store.probe(now())).await.unwrap();
}

#[tokio::test]
async fn a_store_that_another_server_held_the_database_of_answers_nothing_any_more() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    // As the other would have signed, had it been there while the lock was lost.
    fresh.database.sql("UPDATE holdfast.holder SET instance = decode(repeat('00', 16), 'hex')");
    // Nothing is written any more, also before the loss of the lock is heard of.
    assert_eq!(store.probe(now()).await, Err(superseded()));
    assert_eq!(store.open_intent(sealed(intent(1))).await, Err(superseded()));
    fresh.database.end_sessions();
    let refused = until_answered(|| store.probe(now())).await.unwrap_err();
    assert_eq!(refused, superseded());
    let read = async {
        loop {
            if let Err(refused) = store.intents().await {
                return refused;
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
}

#[tokio::test]
async fn who_signs_waits_for_who_writes() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    let other = super::holder::unlocked(&Dial::new(&fresh.settings)).await;
    let (write, written) = tokio::sync::oneshot::channel();
    let signing = tokio::spawn(async move {
        written.await.unwrap();
        other.sign(&[9; 16]).await
    });
    let write = std::sync::Mutex::new(Some(write));
    let (write, fresh) = (&write, &fresh);
    let ended = store
        .write(|db| async move {
            super::write::probe(&db, now()).await?;
            write.lock().unwrap().take().unwrap().send(()).unwrap();
            fresh.until_one_waits().await;
            Ok(())
        })
        .await;
    assert_eq!(ended, Ok(()));
    signing.await.unwrap().unwrap();
    assert_eq!(store.probe(now()).await, Err(superseded()));
}

#[tokio::test]
async fn an_edited_value_outside_its_type_is_damage() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    fresh.database.sql("DROP TRIGGER keys_guard ON holdfast.keys");
    fresh.database.sql("UPDATE holdfast.keys SET key_id = 'Not A Name'");
    let reference = KeyRef::Uid(new_key(1).key.row.uid);
    let refused = store.key(reference, VersionChoice::Primary).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

#[tokio::test]
async fn refusals_of_rows_tell_no_value() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    let mut canary = new_key(1);
    canary.key.row.owner = "canary".repeat(100);
    let refused = store.create_key(canary, closing(1, 0)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    assert!(!refused.to_string().contains("canary"), "{refused}");
    assert!(refused.to_string().contains("keys_owner_check"), "{refused}");
}

#[tokio::test]
async fn a_key_whose_primary_is_not_there_is_found_at_the_commit_too() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    let broken = store
        .write(|db| async move {
            let sql = "UPDATE keys SET primary_version = 5, latest_version = 5, revision = 9";
            execute(&db, sql, &[]).await
        })
        .await;
    assert!(matches!(broken, Err(StoreError::Damaged { .. })), "{broken:?}");
    store.probe(now()).await.unwrap();
}

#[tokio::test]
async fn when_all_connections_are_lent_a_method_waits_and_is_refused() {
    let mut fresh = fresh();
    fresh.settings.pool_size = 1;
    fresh.settings.statement_timeout = Duration::from_millis(200);
    let store = fresh.open().await.unwrap();
    let lent = store.pool.borrow().await;
    assert_eq!(store.probe(now()).await, Err(StoreError::Saturated));
    drop(lent);
    store.probe(now()).await.unwrap();
}

#[tokio::test]
async fn as_many_methods_wait_as_the_bound_and_one_more_is_refused_at_once() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    let others = store.slots.acquire_many(super::QUEUE - 1).await.unwrap();
    store.probe(now()).await.unwrap();
    let last = store.slots.acquire().await.unwrap();
    assert_eq!(store.probe(now()).await, Err(StoreError::Saturated));
    drop((others, last));
    store.probe(now()).await.unwrap();
}

#[tokio::test]
async fn a_collision_is_tried_again_up_to_the_bound() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    for (collisions, expected) in
        [(super::transaction::MAX_ATTEMPTS - 1, true), (super::transaction::MAX_ATTEMPTS, false)]
    {
        let left = std::sync::atomic::AtomicU32::new(collisions);
        let left = &left;
        let ended = store
            .write(|db| async move {
                use std::sync::atomic::Ordering;
                let collide =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                if collide.is_ok() {
                    db.batch("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$")
                        .await?;
                }
                Ok(())
            })
            .await;
        assert_eq!(ended.is_ok(), expected, "{ended:?}");
    }
}

#[tokio::test]
async fn of_two_that_wait_for_each_other_both_succeed() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    store
        .write(|db| async move {
            db.batch(
                "CREATE TABLE two (id BIGINT PRIMARY KEY, n BIGINT);
        INSERT INTO two VALUES (1, 0), (2, 0)",
            )
            .await
        })
        .await
        .unwrap();
    let barrier = tokio::sync::Barrier::new(2);
    let barrier = &barrier;
    let first_try =
        [std::sync::atomic::AtomicBool::new(true), std::sync::atomic::AtomicBool::new(true)];
    let first_try = &first_try;
    let change = |mine: usize, first: &'static str, second: &'static str| {
        store.write(move |db| async move {
            db.batch(first).await?;
            if first_try[mine].swap(false, std::sync::atomic::Ordering::Relaxed) {
                barrier.wait().await;
            }
            db.batch(second).await
        })
    };
    let (one, two) =
        ("UPDATE two SET n = n + 1 WHERE id = 1", "UPDATE two SET n = n + 1 WHERE id = 2");
    let (left, right) = tokio::join!(change(0, one, two), change(1, two, one));
    assert_eq!((left, right), (Ok(()), Ok(())));
    assert_eq!(fresh.database.sql("SELECT sum(n) FROM holdfast.two"), "4");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_transaction_behind() {
    let mut fresh = fresh();
    fresh.settings.pool_size = 1;
    let store = Arc::new(fresh.open().await.unwrap());
    let (entered, inside) = tokio::sync::oneshot::channel();
    let entered = std::sync::Mutex::new(Some(entered));
    let held = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let entered = &entered;
            store
                .write(|db| async move {
                    db.batch("INSERT INTO probe VALUES (1, 7)").await?;
                    if let Some(entered) = entered.lock().unwrap().take() {
                        let _ = entered.send(());
                    }
                    std::future::pending::<Result<(), Failure>>().await
                })
                .await
        }
    });
    inside.await.unwrap();
    held.abort();
    // The one connection comes back, without what was written in it.
    store.probe(now()).await.unwrap();
    assert_eq!(fresh.database.sql("SELECT time FROM holdfast.probe"), "1");
}

#[tokio::test]
async fn a_retirement_waits_for_whoever_still_writes_under_the_root() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    let pin = RootPin {
        generation: RootGeneration::FIRST,
        token_serial: "0123456789abcdef".into(),
        wrap_id: CkaId([1; 16]),
        wrap_check: vec![2; 40],
        mac_id: CkaId([3; 16]),
        mac_check: vec![4; 32],
    };
    store.add_root_pin(pin, RowMac([1; 32])).await.unwrap();
    let writer = fresh.session().await;
    writer.begin(Isolation::Write).await.unwrap();
    super::write_closing::open_intent(&writer, &sealed(intent(1))).await.unwrap();
    let row = RetiredRoot {
        retired: RootGeneration::FIRST,
        time: now(),
        actor: "p".into(),
        reason: "rolled over".into(),
    };
    let generation = RootGeneration::new(2).unwrap();
    let retired = Sealed { row, mac: RowMac([6; 32]), generation };
    let (ended, ()) = tokio::join!(store.retire_root(retired), async {
        fresh.until_one_waits().await;
        writer.commit().await.unwrap();
    });
    assert_eq!(ended, Err(StoreError::RevisionMismatch), "a row is sealed under it");
}

#[tokio::test]
async fn a_store_remembers_a_hundred_thousand_requests_of_a_tenant_and_not_one_more() {
    let fresh = fresh();
    let store = fresh.open().await.unwrap();
    let one_less = MAX_REMEMBERED_REQUESTS - 1;
    fresh.database.sql(&format!("INSERT INTO holdfast.request_counts VALUES ('t1', {one_less})"));
    for number in [1, 2] {
        store.open_intent(sealed(intent(number))).await.unwrap();
    }
    let request = |number: u8| Some(sealed(suite::request(number, 100)));
    let last = crate::store::Closing { request: request(1), ..closing(1, 0) };
    store.create_key(new_key(1), last).await.unwrap();
    let one_more = crate::store::Closing { request: request(2), ..closing(2, 1) };
    let refused = store.create_key(new_key(2), one_more).await;
    assert_eq!(refused, Err(StoreError::RequestsFull));
}

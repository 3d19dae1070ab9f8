//! A small world: software token, a database, records in memory, a clock that stands still.
//!
//! The database is SQLite in a temporary directory, where tests may look at it and edit it; PostgreSQL for those that ask
//! for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_core::audit::AuditRecord;
use kms_core::clock::{Clock, ManualClock, Timestamp};
use kms_core::context::EncryptionContext;
use kms_core::id::{EventId, Randomness as _, RequestId, RootGeneration};
use kms_core::import_job::MAX_OPEN_IMPORT_JOBS;
use kms_core::key::{Protection, Purpose, Sensitivity};
use kms_core::name::KeyName;
use kms_core::secret::{Password, Plaintext};
use kms_hsm::{Hsm, HsmError};
use kms_hsm_soft::{SoftDevice, SoftToken};
use kms_server::audit::MemorySink;
use kms_server::authn::{AuthnMethod, Principal};
use kms_server::authz::{ActionKind, GrantConfig, StaticPolicy};
use kms_server::journal::{ClosedJournal, FileJournal, JournalStartError, Opening, SharedJournal};
use kms_server::keyring::KeyringConfig;
use kms_server::service::{
    CreateKey, Kms, Parts, RequestContext, SealedKey, SystemRandomness, Unwrap, Wrap, Wrapped,
};
use kms_server::store::Store;
use kms_server::store::postgres::{PostgresSettings, PostgresStore};
use kms_server::store::sqlite::SqliteStore;

use crate::faults::{Faults, FaultyHsm, FaultySink};
use crate::faulty_store::FaultyStore;

pub(crate) const ADMIN: &str = "spiffe://td/admin";

/// Everything that outlives a process, and one process on it.
pub(crate) struct World {
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) device: SoftDevice,
    pub(crate) hsm: Arc<dyn Hsm>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sink: Arc<MemorySink>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) kms: Kms,
    /// What was sealed to the import job that was created last, and its name.
    pub(crate) sealed: Arc<Mutex<Option<SealedKey>>>,
}

/// The file of a database that is one.
const FILE: &str = "kms.db";

fn empty_directory() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

/// Opens a fresh database of the PostgreSQL of this process.
async fn postgres() -> Arc<dyn Store> {
    let database = kms_testkit::Postgres::shared().fresh_database();
    let settings = PostgresSettings {
        host: database.socket_directory.display().to_string(),
        port: database.port,
        password: Some(Password::new(database.password)),
        pool_size: 2,
        ..PostgresSettings::new(String::new(), database.name, database.user)
    };
    Arc::new(PostgresStore::open(settings).await.unwrap())
}

pub(crate) fn grant(principal: &str, tenant: &str, actions: &[ActionKind]) -> GrantConfig {
    GrantConfig { principal: principal.into(), tenant: tenant.into(), actions: actions.to_vec() }
}

impl World {
    /// A world where [`ADMIN`] may do everything in tenants `t` and `u`.
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// The same, with more grants.
    pub(crate) async fn with(grants: &[GrantConfig]) -> Self {
        let directory = empty_directory();
        let store = SqliteStore::open(&directory.path().join(FILE)).unwrap();
        Self::made(grants, directory, Arc::new(store)).await
    }

    /// A world whose database is PostgreSQL.
    pub(crate) async fn on_postgres() -> Self {
        Self::made(&[], empty_directory(), postgres().await).await
    }

    async fn made(
        grants: &[GrantConfig],
        directory: Arc<tempfile::TempDir>,
        store: Arc<dyn Store>,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix_ms(1_700_000_000_000)));
        let device = SoftDevice::new("soft-1");
        let hsm: Arc<dyn Hsm> = Arc::new(SoftToken::new(device.clone(), clock.clone()));
        let deadline = clock.monotonic() + Duration::from_secs(10);
        let pin = hsm.create_root(RootGeneration::FIRST, deadline).await.unwrap();
        hsm.open_roots(vec![pin.clone()], deadline).await.unwrap();
        let macs = hsm.mac(RootGeneration::FIRST, vec![pin.mac_input()], deadline).await.unwrap();
        store.add_root_pin(pin, macs[0]).await.unwrap();
        let sink = Arc::new(MemorySink::new(100_000));
        let bounds = (KeyringConfig::default(), MAX_OPEN_IMPORT_JOBS);
        Self::assemble(directory, device, hsm, store, sink, clock, bounds, grants, false)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a world")]
    fn assemble(
        directory: Arc<tempfile::TempDir>,
        device: SoftDevice,
        hsm: Arc<dyn Hsm>,
        store: Arc<dyn Store>,
        sink: Arc<MemorySink>,
        clock: Arc<ManualClock>,
        (keyring, max_open_import_jobs): (KeyringConfig, u32),
        grants: &[GrantConfig],
        allow_rsa_oaep_sha1: bool,
    ) -> Self {
        let mut table = grants.to_vec();
        table.extend(["t", "u"].map(|tenant| grant(ADMIN, tenant, ActionKind::ALL)));
        let faults = Arc::new(Faults::default());
        let failing: Arc<dyn Hsm> = Arc::new(FaultyHsm(Arc::clone(&hsm), Arc::clone(&faults)));
        let opening = Opening {
            path: directory.path().join("journal"),
            hsm: Arc::clone(&failing),
            clock: clock.clone(),
            generations: keyring.oldest..=keyring.generation,
            accept: None,
            covered: None,
        };
        let journal: SharedJournal = match open_journal(opening) {
            Ok(journal) => Arc::new(journal),
            Err(JournalStartError::Hsm(HsmError::Latched { .. })) => {
                Arc::new(ClosedJournal::default())
            }
            Err(error) => panic!("{error}"),
        };
        faults.forget_calls();
        let kms = Kms::new(Parts {
            hsm: failing,
            store: Arc::new(FaultyStore(Arc::clone(&store), Arc::clone(&faults))),
            audit: Arc::new(FaultySink(sink.clone(), Arc::clone(&faults))),
            journal,
            clock: clock.clone(),
            policy: Arc::new(StaticPolicy::new(&table).unwrap()),
            randomness: Arc::new(SystemRandomness),
            keyring,
            allow_rsa_oaep_sha1,
            max_open_import_jobs,
        });
        let sealed = Arc::default();
        Self { directory, device, hsm, store, sink, clock, faults, kms, sealed }
    }

    /// Another process on the same store and token, with nothing in memory and no faults.
    pub(crate) fn restart(&self) -> Self {
        self.restart_with(KeyringConfig::default())
    }

    pub(crate) fn restart_granting(&self, grants: &[GrantConfig]) -> Self {
        self.again((KeyringConfig::default(), MAX_OPEN_IMPORT_JOBS), grants, false)
    }

    pub(crate) fn restart_allowing_sha1(&self) -> Self {
        self.again((KeyringConfig::default(), MAX_OPEN_IMPORT_JOBS), &[], true)
    }

    /// With another bound of the import jobs of all tenants together.
    pub(crate) fn restart_with_import_jobs(&self, most: u32) -> Self {
        self.again((KeyringConfig::default(), most), &[], false)
    }

    pub(crate) fn restart_with(&self, keyring: KeyringConfig) -> Self {
        self.again((keyring, MAX_OPEN_IMPORT_JOBS), &[], false)
    }

    fn again(&self, bounds: (KeyringConfig, u32), grants: &[GrantConfig], sha1: bool) -> Self {
        let (hsm, store) = (Arc::clone(&self.hsm), Arc::clone(&self.store));
        let (directory, device) = (Arc::clone(&self.directory), self.device.clone());
        let (sink, clock) = (self.sink.clone(), self.clock.clone());
        let world =
            Self::assemble(directory, device, hsm, store, sink, clock, bounds, grants, sha1);
        Self { sealed: Arc::clone(&self.sealed), ..world }
    }

    /// Makes and pins one more root set on the token.
    pub(crate) async fn open_root(&self, generation: RootGeneration) {
        let deadline = self.clock.monotonic() + Duration::from_secs(10);
        let pin = self.hsm.create_root(generation, deadline).await.unwrap();
        self.hsm.open_roots(vec![pin.clone()], deadline).await.unwrap();
        let macs = self.hsm.mac(generation, vec![pin.mac_input()], deadline).await.unwrap();
        self.store.add_root_pin(pin, macs[0]).await.unwrap();
    }

    /// Returns the file of the database.
    pub(crate) fn database(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    pub(crate) fn request(&self, operation: &'static str) -> RequestContext {
        self.request_of(ADMIN, operation)
    }

    pub(crate) fn request_of(&self, principal: &str, operation: &'static str) -> RequestContext {
        let received = self.clock.monotonic();
        RequestContext {
            event_id: EventId::from_random(SystemRandomness.draw().unwrap()),
            principal: Principal { id: principal.into(), method: AuthnMethod::Mtls },
            source: (Ipv4Addr::LOCALHOST, 4711).into(),
            deadline: received + Duration::from_secs(10),
            received,
            operation,
            items_before: 0,
        }
    }

    pub(crate) async fn create(&self, key: &str) {
        self.kms
            .create_key(&self.request("kms.v1.KeyService/CreateKey"), create(key))
            .await
            .unwrap();
    }

    pub(crate) async fn wrap(&self, key: &str) -> Wrapped {
        let request = self.request("kms.v1.CryptoService/Wrap");
        self.kms.wrap(&request, wrap(key, b"secret")).await.unwrap()
    }

    /// Returns how often the rows of a tenant were walked.
    pub(crate) fn walks(&self) -> i64 {
        self.faults.walks.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn records(&self) -> Vec<AuditRecord> {
        self.sink.records()
    }

    pub(crate) fn last(&self) -> AuditRecord {
        self.records().pop().unwrap()
    }
}

/// Opens a journal; it waits for the token, which no thread of a runtime may.
pub(crate) fn open_journal(opening: Opening) -> Result<FileJournal, JournalStartError> {
    std::thread::spawn(move || FileJournal::open(opening)).join().unwrap()
}

pub(crate) fn name(key: &str) -> KeyName {
    key.parse().unwrap()
}

pub(crate) fn fresh_id() -> RequestId {
    RequestId::from_bytes(SystemRandomness.draw().unwrap())
}

pub(crate) fn create(key: &str) -> CreateKey {
    CreateKey {
        name: name(key),
        purpose: Purpose::Wrap,
        protection: Protection::HsmWrapped,
        owner: "team".into(),
        sensitivity: Sensitivity::High,
        usage: "tests".into(),
        cryptoperiod: Duration::from_hours(3650 * 24),
        recipient_usage_period: None,
        labels: BTreeMap::new(),
        rotation_period: None,
        acknowledge_no_backup: true,
        request_id: fresh_id(),
    }
}

pub(crate) fn context(value: &str) -> EncryptionContext {
    EncryptionContext::from_caller([("path".to_owned(), value.to_owned())]).unwrap()
}

pub(crate) fn wrap(key: &str, plaintext: &[u8]) -> Wrap {
    Wrap {
        key: key.parse().unwrap(),
        plaintext: Plaintext::new(plaintext.to_vec()),
        context: context("/a"),
    }
}

pub(crate) fn unwrap(key: &str, ciphertext: &[u8]) -> Unwrap {
    Unwrap { key: name(key), ciphertext: ciphertext.to_vec(), context: context("/a") }
}

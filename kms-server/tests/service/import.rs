//! Import: a key that its owner sealed to a job becomes a key or a staged version, once.

use std::time::Duration;

use kms_core::id::{RequestId, RootGeneration};
use kms_core::import::{self, ImportMethod, RsaSize};
use kms_core::import_job::{DEFAULT_IMPORT_JOB_LIFETIME, MAX_IMPORT_JOBS};
use kms_core::key::{CkaId, Origin, Protection};
use kms_core::name::{KeyName, TenantName};
use kms_core::state::VersionState;
use kms_hsm::ImportKeySpec;
use kms_server::keyring::KeyringConfig;
use kms_server::service::{
    CancelImportJob, ChangeVersionState, CreateImportJob, CreateKey, ImportJobDescription,
    ImportKey, ImportKeyVersion, KeyDescription, MAX_DUE, SealedKey, ServiceError, StageKeyVersion,
    Staged,
};

use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

/// What the owner brings.
pub(crate) const OWNERS_KEY: [u8; 32] = *b"an owner's key is 32 bytes long.";
const PROTECTIONS: [Protection; 2] = [Protection::HsmWrapped, Protection::HsmResident];

pub(crate) fn job(key: KeyName, request_id: RequestId) -> CreateImportJob {
    CreateImportJob {
        key,
        method: ImportMethod::RsaOaepSha256AesKwp,
        size: RsaSize::Bits3072,
        lifetime: DEFAULT_IMPORT_JOB_LIFETIME,
        request_id,
    }
}

/// The owner's half.
pub(crate) fn seal(job: &ImportJobDescription, key: &[u8; 32]) -> SealedKey {
    let name = job.name.to_string();
    let sealed = import::seal(job.method, &job.public_key, &name, key).unwrap();
    SealedKey { job: job.name.clone(), wrapped: sealed.wrapped, check: sealed.check }
}

/// What was sealed to the job that was created last.
pub(crate) fn kept(world: &World) -> SealedKey {
    world.sealed.lock().unwrap().clone().unwrap()
}

pub(crate) async fn create_job(
    world: &World,
    job: CreateImportJob,
) -> Result<ImportJobDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/CreateImportJob");
    world.kms.create_import_job(&request, job).await
}

pub(crate) async fn new_job(world: &World) -> ImportJobDescription {
    create_job(world, job(name(KEY), fresh_id())).await.unwrap()
}

pub(crate) async fn import_as(
    world: &World,
    protection: Protection,
    sealed: SealedKey,
) -> Result<KeyDescription, ServiceError> {
    let create = CreateKey { protection, ..create(KEY) };
    let request = world.request("kms.v1.KeyService/ImportKey");
    world.kms.import_key(&request, ImportKey { create, sealed }).await
}

pub(crate) async fn import(
    world: &World,
    sealed: SealedKey,
) -> Result<KeyDescription, ServiceError> {
    import_as(world, Protection::HsmWrapped, sealed).await
}

pub(crate) async fn import_version(
    world: &World,
    sealed: SealedKey,
) -> Result<Staged, ServiceError> {
    let (name, activate_time) = (name(KEY), None);
    let reason = "next year".into();
    let stage = StageKeyVersion { name, activate_time, reason, request_id: fresh_id() };
    let request = world.request("kms.v1.KeyService/ImportKeyVersion");
    world.kms.import_key_version(&request, ImportKeyVersion { stage, sealed }).await
}

pub(crate) async fn cancel(
    world: &World,
    job: &ImportJobDescription,
) -> Result<ImportJobDescription, ServiceError> {
    let (name, reason) = (job.name.clone(), "not needed".into());
    let request = world.request("kms.v1.KeyService/CancelImportJob");
    let cancel = CancelImportJob { name, reason, request_id: fresh_id() };
    world.kms.cancel_import_job(&request, cancel).await
}

pub(crate) async fn describe(
    world: &World,
    job: &ImportJobDescription,
) -> Result<ImportJobDescription, ServiceError> {
    let request = world.request("kms.v1.KeyService/DescribeImportJob");
    world.kms.describe_import_job(&request, &job.name).await
}

async fn list(world: &World, tenant: &str) -> Result<Vec<ImportJobDescription>, ServiceError> {
    let request = world.request("kms.v1.KeyService/ListImportJobs");
    world.kms.list_import_jobs(&request, &TenantName::from_id(tenant).unwrap()).await
}

/// CKA_IDs of the private keys on the token.
pub(crate) async fn private_keys(world: &World) -> Vec<CkaId> {
    let deadline = world.request("").deadline;
    world.hsm.list_token_keys(deadline).await.unwrap().import_keys
}

async fn origin(world: &World, number: u32) -> Origin {
    let request = world.request("kms.v1.KeyService/DescribeKeyVersion");
    let name = format!("{KEY}/versions/{number}").parse().unwrap();
    world.kms.describe_key_version(&request, &name).await.unwrap().origin
}

#[tokio::test]
async fn an_imported_key_is_a_key_like_any_other_and_says_where_it_comes_from() {
    for (protection, method) in PROTECTIONS
        .into_iter()
        .zip([ImportMethod::RsaOaepSha256, ImportMethod::RsaOaepSha256AesKwp])
    {
        let world = World::new().await;
        let wanted = CreateImportJob { method, ..job(name(KEY), fresh_id()) };
        let job = create_job(&world, wanted).await.unwrap();
        assert_eq!(describe(&world, &job).await, Ok(job.clone()));
        assert_eq!(list(&world, "t").await, Ok(vec![job.clone()]));
        // Another process, days of travel for the public key.
        let world = world.restart();
        world.clock.advance(DEFAULT_IMPORT_JOB_LIFETIME.saturating_sub(Duration::from_millis(1)));
        let key = import_as(&world, protection, seal(&job, &OWNERS_KEY)).await.unwrap();
        assert_eq!((key.protection, key.primary_version.unwrap().get()), (protection, 1));
        assert_eq!(origin(&world, 1).await, Origin::Imported);
        assert_eq!(private_keys(&world).await, [], "used once");
        assert_eq!(list(&world, "t").await, Ok(vec![]));
        check(&world, "imported").await;
        let told = world.records().into_iter().rfind(|record| record.result == "PENDING").unwrap();
        let expected = format!("import job {}", job.name.job_id());
        assert_eq!(told.reason.unwrap(), expected, "the log says which job");
        let wrapped = world.wrap(KEY).await;
        let world = world.restart();
        let request = world.request("kms.v1.CryptoService/Unwrap");
        let opened = world.kms.unwrap(&request, unwrap(KEY, &wrapped.ciphertext)).await.unwrap();
        assert_eq!(opened.plaintext.expose(), b"secret");
        // What follows is the HSM's own.
        Case { kind: Kind::Rotate, protection }.run(&world, fresh_id()).await.unwrap();
        assert_eq!(
            (origin(&world, 1).await, origin(&world, 2).await),
            (Origin::Imported, Origin::Generated)
        );
    }
}

#[tokio::test]
async fn an_imported_version_is_staged_and_activated() {
    for protection in PROTECTIONS {
        let case = Case { kind: Kind::Create, protection };
        let world = World::new().await;
        case.run(&world, fresh_id()).await.unwrap();
        let old = world.wrap(KEY).await;
        let job = new_job(&world).await;
        let Staged { key, version } =
            import_version(&world, seal(&job, &OWNERS_KEY)).await.unwrap();
        assert_eq!((key.primary_version.unwrap().get(), version.version.get()), (1, 2));
        assert_eq!(
            (version.state, version.origin),
            (VersionState::PreActivation, Origin::Imported)
        );
        assert_eq!(version.state_reason, "imported: next year");
        assert_eq!(private_keys(&world).await, []);
        check(&world, "staged").await;
        let change = ChangeVersionState {
            name: format!("{KEY}/versions/2").parse().unwrap(),
            reason: "test".into(),
            request_id: fresh_id(),
        };
        let request = world.request("kms.v1.KeyService/ActivateKeyVersion");
        world.kms.activate_key_version(&request, change).await.unwrap();
        assert_eq!(&*world.wrap(KEY).await.key_version, format!("{KEY}/versions/2"));
        let request = world.request("kms.v1.CryptoService/Unwrap");
        world.kms.unwrap(&request, unwrap(KEY, &old.ciphertext)).await.unwrap();
        check(&world, "activated").await;
    }
}

#[tokio::test]
async fn a_job_is_used_once() {
    let world = World::new().await;
    let job = new_job(&world).await;
    let sealed = seal(&job, &OWNERS_KEY);
    import(&world, sealed.clone()).await.unwrap();
    let gone = ServiceError::ImportJobNotFound { name: job.name.clone() };
    assert_eq!(import(&world, sealed.clone()).await, Err(gone.clone()));
    assert_eq!(import_version(&world, sealed).await.unwrap_err(), gone);
    assert_eq!(describe(&world, &job).await, Err(gone.clone()));
    assert_eq!(cancel(&world, &job).await, Err(gone));
    check(&world, "used once").await;
}

#[tokio::test]
async fn a_job_that_has_expired_is_refused_and_taken_away() {
    let world = World::new().await;
    let jobs = [new_job(&world).await, new_job(&world).await];
    let life = DEFAULT_IMPORT_JOB_LIFETIME;
    world.clock.advance(life.saturating_sub(Duration::from_millis(1)));
    assert_eq!(world.kms.reconcile().await.unwrap().import_jobs, 0);
    world.clock.advance(Duration::from_millis(1));
    let refused = import(&world, seal(&jobs[0], &OWNERS_KEY)).await.unwrap_err();
    assert_eq!(refused, ServiceError::ImportJobExpired { time: jobs[0].expire_time });
    assert_eq!(private_keys(&world).await.len(), 2);
    let done = world.kms.reconcile().await.unwrap();
    assert_eq!((done.import_jobs, done.failed, done.orphans), (2, 0, 0));
    let last = world.last();
    assert_eq!((private_keys(&world).await, list(&world, "t").await), (vec![], Ok(vec![])));
    assert_eq!((&*last.operation, &*last.result), ("internal/ExpireImportJob", "OK"));
    assert_eq!(&*last.principal, "internal");
    assert!(
        jobs.iter().any(|job| last.resource.as_ref().unwrap().to_string() == job.name.to_string())
    );
    check(&world, "expired").await;
}

#[tokio::test]
async fn a_job_that_is_given_up_is_gone_with_its_key() {
    let world = World::new().await;
    let job = new_job(&world).await;
    assert_eq!(cancel(&world, &job).await, Ok(job.clone()));
    assert_eq!(private_keys(&world).await, []);
    let refused = import(&world, seal(&job, &OWNERS_KEY)).await.unwrap_err();
    assert_eq!(refused, ServiceError::ImportJobNotFound { name: job.name });
    check(&world, "given up").await;
}

#[tokio::test]
async fn a_tenant_has_so_many_jobs_and_no_more() {
    let world = World::new().await;
    for _ in 1..MAX_IMPORT_JOBS {
        new_job(&world).await;
    }
    let last = new_job(&world).await;
    let more = async || create_job(&world, job(name(KEY), fresh_id())).await;
    assert_eq!(more().await, Err(ServiceError::ImportJobsFull));
    assert_eq!(private_keys(&world).await.len(), MAX_IMPORT_JOBS, "none was made in vain");
    create_job(&world, job(name("tenants/u/keys/k"), fresh_id())).await.unwrap();
    cancel(&world, &last).await.unwrap();
    more().await.unwrap();
    check(&world, "full").await;
}

#[tokio::test]
async fn all_tenants_together_have_so_many_jobs_and_no_more() {
    let world = World::new().await.restart_with_import_jobs(2);
    let others = || job(name("tenants/u/keys/k"), fresh_id());
    new_job(&world).await;
    let last = create_job(&world, others()).await.unwrap();
    for refused in [job(name(KEY), fresh_id()), others()] {
        let refused = create_job(&world, refused).await.unwrap_err();
        assert!(matches!(refused, ServiceError::HsmFull { .. }), "{refused:?}");
        assert!(!refused.public_text().contains("tenants"), "{}", refused.public_text());
    }
    assert_eq!(private_keys(&world).await.len(), 2, "none was made in vain");
    cancel(&world, &last).await.unwrap();
    // Two at a time for the one place that is left.
    let (one, other) =
        tokio::join!(create_job(&world, job(name(KEY), fresh_id())), create_job(&world, others()));
    assert_eq!([&one, &other].iter().filter(|made| made.is_ok()).count(), 1, "{one:?} {other:?}");
    assert_eq!(private_keys(&world).await.len(), 2, "and the other's key pair is gone");
}

/// The key is opened before the turn is taken, and the row of the job gets another MAC meanwhile: it is the same job.
#[tokio::test]
async fn an_import_that_meets_a_root_rollover_makes_its_key() {
    for protection in PROTECTIONS {
        let world = World::new().await;
        let job = new_job(&world).await;
        let second = RootGeneration::new(2).unwrap();
        world.open_root(second).await;
        let config = KeyringConfig { generation: second, ..KeyringConfig::default() };
        let world = world.restart_with(config);
        let gate = world.faults.stop_intents();
        let import = import_as(&world, protection, seal(&job, &OWNERS_KEY));
        let watch = async {
            gate.arrivals(1).await;
            let rolling = world.kms.root_pass();
            let opening = async {
                gate.arrivals(1).await;
                gate.open();
            };
            tokio::join!(rolling, opening).0
        };
        let (imported, rolled) = tokio::join!(import, watch);
        assert!(rolled.is_ok(), "{rolled:?}");
        assert_eq!(imported.unwrap().primary_version.unwrap().get(), 1);
        assert_eq!(private_keys(&world).await, []);
        assert_eq!(list(&world, "t").await, Ok(vec![]), "used once");
        assert_eq!(origin(&world, 1).await, Origin::Imported);
        check(&world, "rolled over meanwhile").await;
    }
}

/// The key is opened before the turn is taken: who gives the job up meanwhile wins, and nobody is told of tampering.
#[tokio::test]
async fn a_job_that_is_given_up_while_it_is_used_makes_no_key() {
    for protection in PROTECTIONS {
        let world = World::new().await;
        let job = new_job(&world).await;
        let gate = world.faults.stop_intents();
        let import = import_as(&world, protection, seal(&job, &OWNERS_KEY));
        let watch = async {
            gate.arrivals(1).await;
            let cancelling = cancel(&world, &job);
            let opening = async {
                gate.arrivals(1).await;
                gate.open();
            };
            tokio::join!(cancelling, opening).0
        };
        let (imported, cancelled) = tokio::join!(import, watch);
        assert_eq!(imported, Err(ServiceError::ImportJobLost));
        assert_eq!(cancelled, Ok(job));
        check(&world, "given up meanwhile").await;
    }
}

#[tokio::test]
async fn a_private_key_that_nobody_knows_is_reported_and_left_alone() {
    let world = World::new().await;
    let job = new_job(&world).await;
    let stray = ImportKeySpec {
        id: CkaId([9; 16]),
        size: RsaSize::Bits3072,
        hash: import::OaepHash::Sha256,
    };
    world.hsm.create_import_key(stray, world.request("").deadline).await.unwrap();
    assert_eq!(world.kms.reconcile().await.unwrap().orphans, 1);
    assert_eq!(world.kms.reconcile().await.unwrap().orphans, 1);
    let told = world.records().into_iter().filter(|record| record.result == "ORPHAN_OBJECT");
    let told: Vec<_> = told.map(|record| record.resource.unwrap().to_string()).collect();
    assert_eq!(told, [format!("cka-id:{}", "09".repeat(16))], "once, and not the job's");
    assert_eq!(private_keys(&world).await.len(), 2);
    cancel(&world, &job).await.unwrap();
}

#[tokio::test]
async fn an_expiry_survives_a_crash_at_every_step() {
    for reply_lost in [false, true] {
        let mut point = 0;
        loop {
            let at = format!("step {point}, reply lost: {reply_lost}");
            let world = World::new().await;
            new_job(&world).await;
            world.clock.advance(DEFAULT_IMPORT_JOB_LIFETIME);
            let before = world.faults.calls();
            world.faults.arm(point, reply_lost);
            let _ = world.kms.reconcile().await;
            let finished = world.faults.calls() - before <= point;
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            world.kms.reconcile().await.expect(&at);
            let left = (private_keys(&world).await, list(&world, "t").await);
            assert_eq!(left, (vec![], Ok(vec![])), "{at}");
            check(&world, &at).await;
            if finished {
                break;
            }
            point += 1;
        }
        assert!(point > 8, "{point} steps");
    }
}

/// What cannot be taken away stays due and at the head of its list: the run after the one that met only such jobs goes on
/// behind them.
#[tokio::test]
async fn a_job_that_cannot_be_taken_away_keeps_no_other_from_going() {
    let world = World::new().await;
    new_job(&world).await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    let forged = database
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO import_jobs SELECT randomblob(16), 'u', key_id, key_uid, method, rsa_bits, public_key,
                 create_time, create_time + 1, actor, generation, mac FROM import_jobs, n",
            [MAX_DUE],
        )
        .unwrap();
    assert_eq!(forged, MAX_DUE as usize);
    drop(database);
    world.clock.advance(DEFAULT_IMPORT_JOB_LIFETIME);
    for expected in [(0, MAX_DUE as usize), (1, 0), (0, MAX_DUE as usize)] {
        let done = world.kms.reconcile().await.unwrap();
        assert_eq!((done.import_jobs, done.failed), expected);
    }
    assert_eq!(list(&world, "t").await, Ok(vec![]));
}

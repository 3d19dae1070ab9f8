//! What is refused of an import, what that leaves of the job, and who may do what.

use kms_core::import::{self as sealing, ImportCheck, ImportMethod, RsaSize};
use kms_core::key::Protection;
use kms_server::authz::ActionKind;
use kms_server::service::{
    CreateImportJob, CreateKey, ImportJobDescription, ImportKey, ImportKeyVersion, SealedKey,
    ServiceError, StageKeyVersion,
};

use crate::import::*;
use crate::mutations::{Case, KEY, Kind, check};
use crate::support::*;

async fn assert_no_key(world: &World) {
    let request = world.request("kms.v1.KeyService/DescribeKey");
    let found = world.kms.describe_key(&request, &name(KEY)).await;
    assert_eq!(found, Err(ServiceError::KeyNotFound { name: name(KEY) }));
    check(world, "refused").await;
}

/// Seals any bytes, with the check value of another key.
fn seal_bytes(job: &ImportJobDescription, bytes: &[u8]) -> SealedKey {
    let wrapped = sealing::wrap(job.method, &job.public_key, bytes).unwrap();
    SealedKey { wrapped, ..seal(job, &OWNERS_KEY) }
}

#[tokio::test]
async fn what_does_not_open_or_fit_uses_the_job_up() {
    type Edit = fn(&mut SealedKey);
    let flip_head: Edit = |sealed| sealed.wrapped[17] ^= 1;
    let flip_tail: Edit = |sealed| *sealed.wrapped.last_mut().unwrap() ^= 1;
    let zeros: Edit = |sealed| sealed.wrapped.fill(0);
    let flip_check: Edit = |sealed| sealed.check.tag[0] ^= 1;
    let other_iv: Edit = |sealed| sealed.check.iv[0] ^= 1;
    let cases = [
        (flip_head, ServiceError::ImportMaterialInvalid),
        (flip_tail, ServiceError::ImportMaterialInvalid),
        (zeros, ServiceError::ImportMaterialInvalid),
        (flip_check, ServiceError::ImportCheckMismatch),
        (other_iv, ServiceError::ImportCheckMismatch),
    ];
    for (number, (edit, expected)) in (0..).zip(cases) {
        let protection = [Protection::HsmWrapped, Protection::HsmResident][number % 2];
        let world = World::new().await;
        let job = new_job(&world).await;
        let whole = seal(&job, &OWNERS_KEY);
        let mut sealed = whole.clone();
        edit(&mut sealed);
        assert_eq!(import_as(&world, protection, sealed).await, Err(expected), "{number}");
        assert_eq!(private_keys(&world).await, [], "no second answer about one private key");
        let lost = import_as(&world, protection, whole).await;
        assert_eq!(lost, Err(ServiceError::ImportJobLost), "{number}");
        assert_no_key(&world).await;
        // The row stays until somebody takes it away, or its time is over.
        assert_eq!(cancel(&world, &job).await, Ok(job));
    }
}

#[tokio::test]
async fn a_key_of_another_length_is_refused() {
    for length in [16, 31, 33, 64] {
        let world = World::new().await;
        let wanted =
            CreateImportJob { method: ImportMethod::RsaOaepSha256, ..job(name(KEY), fresh_id()) };
        let job = create_job(&world, wanted).await.unwrap();
        let sealed = seal_bytes(&job, &[OWNERS_KEY, OWNERS_KEY].concat()[..length]);
        assert_eq!(import(&world, sealed).await, Err(ServiceError::ImportKeyLength), "{length}");
        assert_no_key(&world).await;
    }
}

#[tokio::test]
async fn what_can_be_told_from_outside_leaves_the_job_as_it_is() {
    let world = World::new().await;
    let job = new_job(&world).await;
    let whole = seal(&job, &OWNERS_KEY);
    for change in [-1_isize, 1] {
        let mut sealed = whole.clone();
        sealed.wrapped.resize(whole.wrapped.len().strict_add_signed(change), 0);
        let refused = import(&world, sealed).await.unwrap_err();
        assert!(matches!(refused, ServiceError::FieldViolation { field: "wrapped_key", .. }));
    }
    for byte in [0, 0x55, 0xff] {
        let check = ImportCheck::compute(&[byte; 32], [7; 12], &job.name.to_string()).unwrap();
        let sealed = SealedKey { check, ..seal_bytes(&job, &[byte; 32]) };
        assert_eq!(import(&world, sealed).await, Err(ServiceError::ImportKeyWeak), "{byte}");
    }
    let create = CreateKey {
        protection: Protection::HsmResident,
        acknowledge_no_backup: false,
        ..create(KEY)
    };
    let unaware = ImportKey { create, sealed: whole.clone() };
    let request = world.request("kms.v1.KeyService/ImportKey");
    let refused = world.kms.import_key(&request, unaware).await;
    assert_eq!(refused.map(drop), Err(ServiceError::NoBackupNotAcknowledged));
    let another =
        SealedKey { job: "tenants/t/keys/other/importJobs/00".parse().unwrap(), ..whole.clone() };
    let refused = import(&world, another).await.unwrap_err();
    assert!(matches!(refused, ServiceError::FieldViolation { field: "import_job", .. }));
    assert_eq!(private_keys(&world).await.len(), 1);
    import(&world, whole).await.unwrap();
}

#[tokio::test]
async fn what_was_sealed_to_another_job_does_not_open() {
    let world = World::new().await;
    let (one, other) = (new_job(&world).await, new_job(&world).await);
    assert_ne!(one.public_key, other.public_key);
    let mixed = SealedKey { job: other.name.clone(), ..seal(&one, &OWNERS_KEY) };
    assert_eq!(import(&world, mixed).await, Err(ServiceError::ImportMaterialInvalid));
    import(&world, seal(&one, &OWNERS_KEY)).await.unwrap();
}

/// Sealing draws anew each time, so a client that repeats a request cannot send the same bytes again.
#[tokio::test]
async fn a_repeat_is_known_by_its_check_value_whatever_was_sealed_anew() {
    let world = World::new().await;
    let job = new_job(&world).await;
    let sealed = seal(&job, &OWNERS_KEY);
    let import = |sealed: SealedKey, request_id| {
        let create = CreateKey { request_id, ..create(KEY) };
        let request = world.request("kms.v1.KeyService/ImportKey");
        let kms = &world.kms;
        async move { kms.import_key(&request, ImportKey { create, sealed }).await }
    };
    let id = fresh_id();
    let first = import(sealed.clone(), id).await.unwrap();
    let anew = seal_bytes(&job, &OWNERS_KEY);
    assert_ne!(anew.wrapped, sealed.wrapped);
    for wrapped in [anew.wrapped, vec![]] {
        let again = SealedKey { wrapped, ..sealed.clone() };
        assert_eq!(import(again, id).await, Ok(first.clone()));
    }
    let other_key = SealedKey {
        check: seal(&job, b"another one is just as long, yes").check,
        ..sealed.clone()
    };
    assert_eq!(import(other_key, id).await, Err(ServiceError::RequestIdReused));
    let gone = ServiceError::ImportJobNotFound { name: job.name };
    assert_eq!(import(sealed, fresh_id()).await, Err(gone));
}

#[tokio::test]
async fn sha1_takes_the_word_of_the_operator() {
    let world = World::new().await;
    let methods = [ImportMethod::RsaOaepSha1, ImportMethod::RsaOaepSha1AesKwp];
    let wanted =
        |method| CreateImportJob { method, size: RsaSize::Bits4096, ..job(name(KEY), fresh_id()) };
    for method in methods {
        let refused = create_job(&world, wanted(method)).await;
        assert_eq!(refused, Err(ServiceError::ImportMethodRefused { method }));
    }
    let allowing = world.restart_allowing_sha1();
    let jobs = [
        create_job(&allowing, wanted(methods[0])).await.unwrap(),
        create_job(&allowing, wanted(methods[1])).await.unwrap(),
    ];
    // Taken back, it is refused for jobs that are there, too; they are not used up by that.
    let refused = import(&world, seal(&jobs[1], &OWNERS_KEY)).await;
    assert_eq!(refused, Err(ServiceError::ImportMethodRefused { method: methods[1] }));
    import(&allowing, seal(&jobs[0], &OWNERS_KEY)).await.unwrap();
}

#[tokio::test]
async fn a_job_is_for_the_key_as_it_was_then() {
    let world = World::new().await;
    let job = new_job(&world).await;
    world.create(KEY).await;
    let sealed = seal(&job, &OWNERS_KEY);
    assert_eq!(import_version(&world, sealed.clone()).await, Err(ServiceError::ImportJobTarget));
    let taken = ServiceError::ResourceExists { name: name(KEY) };
    assert_eq!(import(&world, sealed.clone()).await, Err(taken));
    assert_eq!(private_keys(&world).await.len(), 1, "neither used the job up");
    let job = new_job(&world).await;
    import_version(&world, seal(&job, &OWNERS_KEY)).await.unwrap();
    let job = new_job(&world).await;
    let staged = import_version(&world, seal(&job, &OWNERS_KEY)).await.unwrap_err();
    assert_eq!(staged.reason(), "VERSION_STAGED");
}

#[tokio::test]
async fn each_call_takes_its_own_permission() {
    let world = World::new().await;
    world.create("tenants/t/keys/there").await;
    let job = new_job(&world).await;
    for action in [
        ActionKind::CreateImportJob,
        ActionKind::DescribeImportJob,
        ActionKind::ListImportJobs,
        ActionKind::CancelImportJob,
        ActionKind::ImportKey,
        ActionKind::ImportKeyVersion,
        ActionKind::ActivateKeyVersion,
    ] {
        let others = ActionKind::ALL.iter().copied().filter(|other| *other != action);
        let others: Vec<_> = others.collect();
        let world = world.restart_granting(&[grant("plain", "t", &others)]);
        let request = world.request_of("plain", "kms.v1.KeyService/Call");
        let sealed = seal(&job, &OWNERS_KEY);
        let kms = &world.kms;
        let refused = match action {
            ActionKind::CreateImportJob => {
                let wanted = crate::import::job(name(KEY), fresh_id());
                kms.create_import_job(&request, wanted).await.map(drop)
            }
            ActionKind::DescribeImportJob => {
                kms.describe_import_job(&request, &job.name).await.map(drop)
            }
            ActionKind::ListImportJobs => {
                kms.list_import_jobs(&request, name(KEY).tenant()).await.map(drop)
            }
            ActionKind::CancelImportJob => {
                let (name, reason) = (job.name.clone(), "r".into());
                let request_id = fresh_id();
                let cancel = kms_server::service::CancelImportJob { name, reason, request_id };
                kms.cancel_import_job(&request, cancel).await.map(drop)
            }
            ActionKind::ImportKey => {
                let create = CreateKey { ..create(KEY) };
                kms.import_key(&request, ImportKey { create, sealed }).await.map(drop)
            }
            _ => {
                // With a date, the server activates it on this word.
                let planned = (action == ActionKind::ActivateKeyVersion)
                    .then(|| job.create_time.after(std::time::Duration::from_hours(1)));
                let stage = StageKeyVersion {
                    name: name(KEY),
                    activate_time: planned,
                    reason: "r".into(),
                    request_id: fresh_id(),
                };
                let import = ImportKeyVersion { stage, sealed };
                kms.import_key_version(&request, import).await.map(drop)
            }
        };
        assert_eq!(refused, Err(ServiceError::AccessDenied), "{action:?}");
        assert_eq!(&*world.last().result, "ACCESS_DENIED");
        assert_eq!(private_keys(&world).await.len(), 1, "{action:?}");
    }
}

#[tokio::test]
async fn who_may_not_see_jobs_learns_of_none() {
    let world = World::new().await;
    let job = new_job(&world).await;
    cancel(&world, &job).await.unwrap();
    let missing = ServiceError::ImportJobNotFound { name: job.name.clone() };
    for (seen, expected) in [
        (None, ServiceError::AccessDenied),
        (Some(ActionKind::ListImportJobs), missing.clone()),
        (Some(ActionKind::DescribeImportJob), missing),
    ] {
        let actions: Vec<_> = seen.into_iter().chain([ActionKind::ImportKey]).collect();
        let world = world.restart_granting(&[grant("owner", "t", &actions)]);
        let request = world.request_of("owner", "kms.v1.KeyService/ImportKey");
        let import = ImportKey { create: create(KEY), sealed: seal(&job, &OWNERS_KEY) };
        assert_eq!(world.kms.import_key(&request, import).await, Err(expected), "{seen:?}");
    }
}

#[tokio::test]
async fn a_job_that_was_edited_or_taken_away_shows() {
    let edits = [
        "UPDATE import_jobs SET expire_time = expire_time + 1",
        "UPDATE import_jobs SET method = 'RSA_OAEP_SHA256'",
        "UPDATE import_jobs SET public_key = zeroblob(422)",
        "UPDATE import_jobs SET key_id = 'other'",
    ];
    for edit in edits {
        let world = World::new().await;
        let job = new_job(&world).await;
        let sql = |statement: &str| {
            let database = rusqlite::Connection::open(world.database()).unwrap();
            database.execute_batch(statement).unwrap();
        };
        sql(&format!("DROP TRIGGER import_jobs_stand; {edit};"));
        for refused in [
            describe(&world, &job).await.map(drop),
            import(&world, seal(&job, &OWNERS_KEY)).await.map(drop),
            cancel(&world, &job).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().reason(), "KEY_INTEGRITY", "{edit}");
        }
        assert_eq!(private_keys(&world).await.len(), 1, "{edit}");
        sql("DELETE FROM import_jobs");
        let walked = world.kms.verify_manifest(name(KEY).tenant()).await;
        assert_eq!(walked.unwrap_err().reason(), "KEY_INTEGRITY", "{edit}");
    }
}

#[tokio::test]
async fn a_disabled_key_takes_no_version() {
    let world = World::new().await;
    for kind in [Kind::Create, Kind::Disable] {
        let case = Case { kind, protection: Protection::HsmWrapped };
        case.run(&world, fresh_id()).await.unwrap();
    }
    let job = new_job(&world).await;
    let refused = import_version(&world, seal(&job, &OWNERS_KEY)).await;
    assert_eq!(refused, Err(ServiceError::KeyDisabled));
    assert_eq!(private_keys(&world).await.len(), 1);
}

/// The row says where a version comes from in front of the reason.
#[tokio::test]
async fn a_reason_leaves_room_for_the_origin() {
    let world = World::new().await;
    world.create(KEY).await;
    for (length, is_taken) in [(246, true), (247, false)] {
        let job = new_job(&world).await;
        let stage = StageKeyVersion {
            name: name(KEY),
            activate_time: None,
            reason: "r".repeat(length),
            request_id: fresh_id(),
        };
        let import = ImportKeyVersion { stage, sealed: seal(&job, &OWNERS_KEY) };
        let request = world.request("kms.v1.KeyService/ImportKeyVersion");
        let imported = world.kms.import_key_version(&request, import).await;
        match imported {
            Ok(_) => assert!(is_taken, "{length}"),
            Err(error) => {
                assert_eq!((error.reason(), is_taken), ("FIELD_VIOLATION", false), "{length}");
            }
        }
    }
}

//! All mutations as one table, and what must hold after each, however it ended.

use std::collections::{HashMap, HashSet};

use kms_core::audit::Phase;
use kms_core::id::{IntentId, KeyVersion, RequestId, Revision};
use kms_core::key::{CkaId, Material, Protection};
use kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW;
use kms_core::name::{AliasName, ConsumerName};
use kms_core::state::VersionState;
use kms_hsm::TokenKeys;
use kms_server::service::{
    CancelImportJob, ChangeKeyState, ChangeVersionState, CreateAlias, CreateKey, DeleteAlias,
    ImportKey, ImportKeyVersion, RegisterConsumer, RemoveConsumer, RotateKey, ScheduleDestruction,
    ScheduleKeyDestruction, ServiceError, StageKeyVersion, UpdateAlias, UpdateKey,
};
use kms_server::store::{KeyRef, VersionChoice};

use crate::import;
use crate::support::*;

pub(crate) const KEY: &str = "tenants/t/keys/k";
/// What an alias is moved to.
const OTHER: &str = "tenants/t/keys/other";
/// The revision of the alias that was created: that of the manifest, which the creation of its key took to 1.
const ALIAS_REVISION: Revision = Revision::new(2);

/// One mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Rotate,
    Update,
    Register,
    /// Of the consumer that was registered.
    Remove,
    CreateAlias,
    /// Of the alias that was created.
    UpdateAlias,
    /// Of the alias that was created.
    DeleteAlias,
    Stage,
    /// Of version 2.
    Activate,
    /// Of version 2.
    Discard,
    Disable,
    Enable,
    ScheduleKey,
    CancelKey,
    Suspend,
    Resume,
    Deactivate,
    /// Of the primary.
    Compromise,
    /// Of another version.
    CompromiseOld,
    Schedule,
    Cancel,
    CreateJob,
    /// Of the job that was created.
    CancelJob,
    /// With that job.
    Import,
    /// With that job.
    ImportVersion,
}

/// A mutation of a key with a protection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) protection: Protection,
}

/// Every mutation, on every protection.
pub(crate) fn cases() -> impl Iterator<Item = Case> {
    let kinds = [
        Kind::Create,
        Kind::Rotate,
        Kind::Update,
        Kind::Register,
        Kind::Remove,
        Kind::CreateAlias,
        Kind::UpdateAlias,
        Kind::DeleteAlias,
        Kind::Stage,
        Kind::Activate,
        Kind::Discard,
        Kind::Disable,
        Kind::Enable,
        Kind::ScheduleKey,
        Kind::CancelKey,
        Kind::Suspend,
        Kind::Resume,
        Kind::Deactivate,
        Kind::Compromise,
        Kind::CompromiseOld,
        Kind::Schedule,
        Kind::Cancel,
        Kind::CreateJob,
        Kind::CancelJob,
        Kind::Import,
        Kind::ImportVersion,
    ];
    let protections = [Protection::HsmWrapped, Protection::HsmResident];
    let both = move |kind| protections.map(|protection| Case { kind, protection });
    kinds.into_iter().flat_map(both)
}

impl Case {
    /// Makes what the mutation needs.
    pub(crate) async fn world(self) -> World {
        let world = World::new().await;
        let before = match self.kind {
            Kind::Create | Kind::CreateJob => &[][..],
            Kind::CancelJob | Kind::Import => &[Kind::CreateJob],
            Kind::ImportVersion => &[Kind::Create, Kind::CreateJob],
            Kind::Rotate
            | Kind::Update
            | Kind::Register
            | Kind::CreateAlias
            | Kind::Stage
            | Kind::Disable
            | Kind::Suspend
            | Kind::Compromise => &[Kind::Create],
            Kind::Remove => &[Kind::Create, Kind::Register],
            Kind::UpdateAlias | Kind::DeleteAlias => &[Kind::Create, Kind::CreateAlias],
            Kind::Activate | Kind::Discard => &[Kind::Create, Kind::Stage],
            Kind::Enable | Kind::ScheduleKey => &[Kind::Create, Kind::Disable],
            Kind::CancelKey => &[Kind::Create, Kind::Disable, Kind::ScheduleKey],
            Kind::Resume => &[Kind::Create, Kind::Suspend],
            Kind::Deactivate | Kind::CompromiseOld => &[Kind::Create, Kind::Rotate],
            Kind::Schedule => &[Kind::Create, Kind::Rotate, Kind::Deactivate],
            Kind::Cancel => &[Kind::Create, Kind::Rotate, Kind::Deactivate, Kind::Schedule],
        };
        for kind in before {
            Self { kind: *kind, ..self }.run(&world, fresh_id()).await.unwrap();
        }
        if self.kind == Kind::UpdateAlias {
            world.create(OTHER).await;
        }
        world
    }

    /// Runs it; the answer is as text, so that answers can be compared.
    pub(crate) async fn run(
        self,
        world: &World,
        request_id: RequestId,
    ) -> Result<String, ServiceError> {
        let number = if matches!(self.kind, Kind::Activate | Kind::Discard) { 2 } else { 1 };
        self.run_on(number, world, request_id).await
    }

    /// Runs it on a version.
    pub(crate) async fn run_on(
        self,
        number: u32,
        world: &World,
        request_id: RequestId,
    ) -> Result<String, ServiceError> {
        let kms = &world.kms;
        let change = || ChangeVersionState {
            name: format!("{KEY}/versions/{number}").parse().unwrap(),
            reason: "test".into(),
            request_id,
        };
        let key_change = || ChangeKeyState { name: name(KEY), reason: "test".into(), request_id };
        let text = |made: &dyn std::fmt::Debug| format!("{made:?}");
        match self.kind {
            Kind::Create => {
                let create = CreateKey { protection: self.protection, request_id, ..create(KEY) };
                let request = world.request("kms.v1.KeyService/CreateKey");
                kms.create_key(&request, create).await.map(|made| text(&made))
            }
            Kind::Rotate => {
                let rotate = RotateKey { name: name(KEY), reason: String::new(), request_id };
                let request = world.request("kms.v1.KeyService/RotateKey");
                kms.rotate_key(&request, rotate).await.map(|made| text(&made))
            }
            Kind::Update => {
                let update = UpdateKey {
                    name: name(KEY),
                    revision: Revision::FIRST,
                    owner: Some("other".into()),
                    sensitivity: None,
                    usage: None,
                    cryptoperiod: None,
                    recipient_usage_period: None,
                    labels: None,
                    rotation_period: None,
                    allow_recent_use: false,
                    request_id,
                };
                let request = world.request("kms.v1.KeyService/UpdateKey");
                kms.update_key(&request, update).await.map(|made| text(&made))
            }
            Kind::Register => {
                let (name, description) = (consumer("backup"), "storage team".into());
                let register = RegisterConsumer { name, description, request_id };
                let request = world.request("kms.v1.KeyService/RegisterConsumer");
                kms.register_consumer(&request, register).await.map(|made| text(&made))
            }
            Kind::Remove => {
                let (name, reason) = (consumer("backup"), "test".into());
                let remove = RemoveConsumer { name, reason, request_id };
                let request = world.request("kms.v1.KeyService/RemoveConsumer");
                kms.remove_consumer(&request, remove).await.map(|made| text(&made))
            }
            Kind::CreateAlias => {
                let (key, reason) = (name(KEY), "test".into());
                let create = CreateAlias { name: alias(), key, reason, request_id };
                let request = world.request("kms.v1.KeyService/CreateAlias");
                kms.create_alias(&request, create).await.map(|made| text(&made))
            }
            Kind::UpdateAlias => {
                let update = UpdateAlias {
                    name: alias(),
                    key: name(OTHER),
                    revision: ALIAS_REVISION,
                    reason: "test".into(),
                    request_id,
                };
                let request = world.request("kms.v1.KeyService/UpdateAlias");
                kms.update_alias(&request, update).await.map(|made| text(&made))
            }
            Kind::DeleteAlias => {
                let (name, revision) = (alias(), ALIAS_REVISION);
                let delete = DeleteAlias { name, revision, reason: "test".into(), request_id };
                let request = world.request("kms.v1.KeyService/DeleteAlias");
                kms.delete_alias(&request, delete).await.map(|made| text(&made))
            }
            Kind::Stage => {
                let (reason, activate_time) = ("test".into(), None);
                let stage = StageKeyVersion { name: name(KEY), activate_time, reason, request_id };
                let request = world.request("kms.v1.KeyService/StageKeyVersion");
                kms.stage_key_version(&request, stage).await.map(|made| text(&made))
            }
            Kind::Activate => {
                let request = world.request("kms.v1.KeyService/ActivateKeyVersion");
                kms.activate_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Discard => {
                let request = world.request("kms.v1.KeyService/DiscardKeyVersion");
                kms.discard_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Disable => {
                let request = world.request("kms.v1.KeyService/DisableKey");
                kms.disable_key(&request, key_change()).await.map(|made| text(&made))
            }
            Kind::Enable => {
                let request = world.request("kms.v1.KeyService/EnableKey");
                kms.enable_key(&request, key_change()).await.map(|made| text(&made))
            }
            Kind::ScheduleKey => {
                let ChangeKeyState { name, reason, request_id } = key_change();
                let schedule = ScheduleKeyDestruction {
                    name,
                    window: DEFAULT_DESTRUCTION_WINDOW,
                    allow_recent_use: false,
                    allow_consumers: false,
                    reason,
                    request_id,
                };
                let request = world.request("kms.v1.KeyService/ScheduleKeyDestruction");
                kms.schedule_key_destruction(&request, schedule).await.map(|made| text(&made))
            }
            Kind::CancelKey => {
                let request = world.request("kms.v1.KeyService/CancelKeyDestruction");
                kms.cancel_key_destruction(&request, key_change()).await.map(|made| text(&made))
            }
            Kind::Suspend => {
                let request = world.request("kms.v1.KeyService/SuspendKeyVersion");
                kms.suspend_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Resume => {
                let request = world.request("kms.v1.KeyService/ResumeKeyVersion");
                kms.resume_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Deactivate => {
                let request = world.request("kms.v1.KeyService/DeactivateKeyVersion");
                kms.deactivate_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Compromise | Kind::CompromiseOld => {
                let request = world.request("kms.v1.KeyService/CompromiseKeyVersion");
                kms.compromise_key_version(&request, change()).await.map(|made| text(&made))
            }
            Kind::Schedule => {
                let ChangeVersionState { name, reason, request_id } = change();
                let window = DEFAULT_DESTRUCTION_WINDOW;
                let allow_recent_use = false;
                let schedule = ScheduleDestruction {
                    name,
                    window,
                    allow_recent_use,
                    allow_consumers: false,
                    reason,
                    request_id,
                };
                let request = world.request("kms.v1.KeyService/ScheduleKeyVersionDestruction");
                kms.schedule_key_version_destruction(&request, schedule)
                    .await
                    .map(|made| text(&made))
            }
            Kind::Cancel => {
                let request = world.request("kms.v1.KeyService/CancelKeyVersionDestruction");
                kms.cancel_key_version_destruction(&request, change()).await.map(|made| text(&made))
            }
            Kind::CreateJob => {
                let create = import::job(name(KEY), request_id);
                let request = world.request("kms.v1.KeyService/CreateImportJob");
                let made = kms.create_import_job(&request, create).await?;
                *world.sealed.lock().unwrap() = Some(import::seal(&made, &import::OWNERS_KEY));
                Ok(text(&made))
            }
            Kind::CancelJob => {
                let reason = "test".into();
                let cancel = CancelImportJob { name: import::kept(world).job, reason, request_id };
                let request = world.request("kms.v1.KeyService/CancelImportJob");
                kms.cancel_import_job(&request, cancel).await.map(|made| text(&made))
            }
            Kind::Import => {
                let create = CreateKey { protection: self.protection, request_id, ..create(KEY) };
                let import = ImportKey { create, sealed: import::kept(world) };
                let request = world.request("kms.v1.KeyService/ImportKey");
                kms.import_key(&request, import).await.map(|made| text(&made))
            }
            Kind::ImportVersion => {
                let (reason, activate_time) = ("test".into(), None);
                let stage = StageKeyVersion { name: name(KEY), activate_time, reason, request_id };
                let import = ImportKeyVersion { stage, sealed: import::kept(world) };
                let request = world.request("kms.v1.KeyService/ImportKeyVersion");
                kms.import_key_version(&request, import).await.map(|made| text(&made))
            }
        }
    }

    /// Repeats it: it gets the first result, or what is left is done. An import whose attempt used the job up cannot be.
    async fn run_again(
        self,
        world: &World,
        request_id: RequestId,
        first: Result<String, ServiceError>,
        at: &str,
    ) {
        let imports = matches!(self.kind, Kind::Import | Kind::ImportVersion);
        match self.run(world, request_id).await {
            Ok(again) => assert!(first.is_err() || first.unwrap() == again, "{at}"),
            Err(error) => {
                assert!(first.is_err() && imports, "{at}: {error}");
                assert_eq!(error, ServiceError::ImportJobLost, "{at}");
            }
        }
    }

    /// Returns how many external calls it makes.
    pub(crate) async fn steps(self) -> i64 {
        let world = self.world().await;
        let before = world.faults.calls();
        self.run(&world, fresh_id()).await.unwrap();
        world.faults.calls() - before
    }
}

/// The name of the alias of the key.
fn alias() -> AliasName {
    "tenants/t/aliases/a".parse().unwrap()
}

/// The name of a consumer of the key.
pub(crate) fn consumer(id: &str) -> ConsumerName {
    ConsumerName::new(name(KEY), id).unwrap()
}

/// Returns the object that a staged version 2 names.
async fn staged_object(world: &World) -> Option<CkaId> {
    let (key, second) = (KeyRef::Name(name(KEY)), VersionChoice::Number(KeyVersion::new(2)?));
    let row = world.store.key(key, second).await.unwrap()?.version?.row;
    match row.material {
        Material::Resident(id) if row.state == VersionState::PreActivation => Some(id),
        Material::Resident(_) | Material::Wrapped(_) => None,
    }
}

/// What must hold when nothing is in doubt any more, whatever happened before.
pub(crate) async fn check(world: &World, point: &str) {
    assert!(world.store.intents().await.unwrap().rows.is_empty(), "{point}: an intent stays open");
    let deadline = world.request("").deadline;
    let TokenKeys { residents: mut objects, import_keys, .. } =
        world.hsm.list_token_keys(deadline).await.unwrap();
    let mut rows = world.store.resident_ids().await.unwrap().rows;
    // An attempt uses the key of a job up before its rows say so, and so does giving it up: a crash in between leaves the row,
    // until it has expired.
    for job in world.store.list_import_jobs(name(KEY).tenant().clone()).await.unwrap() {
        if !import_keys.contains(&job.row.id) {
            rows.retain(|id| *id != job.row.id);
        }
    }
    objects.extend(import_keys);
    objects.sort();
    rows.sort();
    // The object of a discarded version goes before its row says so: a crash in between leaves it staged, and without one.
    if let Some(lost) = staged_object(world).await.filter(|id| !objects.contains(id)) {
        rows.retain(|id| *id != lost);
    }
    assert_eq!(objects, rows, "{point}: objects and rows differ");
    let stamp = world.kms.verify_manifest(name(KEY).tenant()).await.expect(point);
    let mut begun: HashSet<IntentId> = HashSet::new();
    let mut told: HashMap<_, bool> = HashMap::new();
    let mut manifests = HashMap::new();
    for record in world.records() {
        match (record.phase, record.intent_id) {
            (Phase::Intent, Some(id)) => assert!(begun.insert(id), "{point}: {id} began twice"),
            (Phase::Outcome, Some(id)) => {
                let ok = record.result == "OK";
                assert!(!ok || begun.contains(&id), "{point}: {id} has no intent in the log");
                // Records of import jobs are about no version.
                if let Some(number) = record.key_version {
                    *told.entry((record.key_uid.unwrap(), number)).or_default() |= ok;
                }
                if let Some(manifest) = record.manifest.filter(|_| ok) {
                    manifests.insert(manifest.revision, manifest.digest);
                }
            }
            _ => {}
        }
    }
    let latest = manifests.into_iter().max();
    let latest = latest.map(|(revision, digest)| (revision.get(), digest));
    let now = (stamp.revision.get(), stamp.digest);
    assert!(latest.is_none_or(|latest| latest == now), "{point}: the log has another manifest");
    for ((uid, number), ok) in &told {
        let stored = world.store.key(KeyRef::Uid(*uid), VersionChoice::Number(*number)).await;
        let there = stored.unwrap().is_some_and(|stored| stored.version.is_some());
        assert_eq!(*ok, there, "{point}: the log tells another story");
    }
    // Every version that is there was told of: rows without an outcome would be somebody's secret.
    let by_name = KeyRef::Name(name(KEY));
    if let Some(stored) = world.store.key(by_name, VersionChoice::Primary).await.unwrap() {
        let row = stored.key.row;
        for number in (1..=row.latest.get()).filter_map(KeyVersion::new) {
            assert_eq!(told.get(&(row.uid, number)), Some(&true), "{point}: version {number}");
        }
    }
}

#[tokio::test]
async fn every_mutation_survives_a_crash_at_every_step() {
    for case in cases() {
        let steps = case.steps().await;
        assert!(steps > 8, "{steps}");
        for (point, lost) in (0..steps).flat_map(|point| [(point, false), (point, true)]) {
            let at = format!("{case:?} step {point}, lost {lost}");
            let (world, id) = (case.world().await, fresh_id());
            world.faults.arm(point, lost);
            let first = case.run(&world, id).await;
            let world = world.restart();
            world.kms.recover().await.expect(&at);
            check(&world, &at).await;
            case.run_again(&world, id, first, &at).await;
            check(&world, &at).await;
        }
    }
}

/// No crash here: the process that saw one call fail, or its reply get lost, must settle it by itself.
#[tokio::test]
async fn every_mutation_survives_one_failed_call_at_every_step() {
    for case in cases() {
        for (point, lost) in (0..case.steps().await).flat_map(|at| [(at, false), (at, true)]) {
            let at = format!("{case:?} step {point}, lost {lost}");
            let (world, id) = (case.world().await, fresh_id());
            world.faults.fail(point, 1, lost);
            let first = case.run(&world, id).await;
            world.clock.advance(kms_server::service::INTENT_GRACE);
            let done = world.kms.reconcile().await.expect(&at);
            assert_eq!((done.failed, done.orphans), (0, 0), "{at}");
            check(&world, &at).await;
            case.run_again(&world, id, first, &at).await;
            check(&world, &at).await;
        }
    }
}

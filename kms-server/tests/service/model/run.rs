//! One life: each step is taken by the service and by the model, and what they say is compared.

use std::time::Duration;

use kms_core::id::KeyVersion;
use kms_core::key::{KeyState, Protection, Sensitivity};
use kms_core::lifecycle::MIN_DESTRUCTION_WINDOW;
use kms_core::state::VersionState;
use kms_server::service::{
    ChangeKeyState, ChangeVersionState, CreateKey, ListKeyVersions, RegisterConsumer,
    RemoveConsumer, Rewrap, RotateKey, ScheduleDestruction, ScheduleKeyDestruction, ServiceError,
    StageKeyVersion,
};

use super::Op;
use super::key::{Key, Outcome};
use crate::mutations::{KEY, check, consumer};
use crate::support::*;

const WINDOW: Duration = MIN_DESTRUCTION_WINDOW;

/// The service, the model, and a ciphertext of each version that ever protected.
struct Life {
    world: World,
    key: Key,
    ciphertexts: Vec<Option<Vec<u8>>>,
}

/// Lives; returns what happened, or what differs.
pub(super) async fn live(
    world: World,
    protection: Protection,
    sensitivity: Sensitivity,
    ops: &[Op],
) -> Result<Vec<&'static str>, String> {
    let create = CreateKey { protection, sensitivity, ..create(KEY) };
    world.kms.create_key(&world.request("kms.v1.KeyService/CreateKey"), create).await.unwrap();
    let mut life = Life { world, key: Key::new(sensitivity), ciphertexts: Vec::new() };
    let mut happened = Vec::new();
    for (number, op) in ops.iter().enumerate() {
        let (expected, made) = life.step(*op).await;
        let at = format!("step {number}, {op:?}");
        let made = made.as_ref().map_err(ServiceError::reason).copied();
        if made != expected {
            return Err(format!("{at}: {made:?}, the model says {expected:?}"));
        }
        happened.push(expected.err().unwrap_or("ACCEPTED"));
        life.compare().await.map_err(|differs| format!("{at}: {differs}"))?;
    }
    check(&life.world, "the end").await;
    life.world.store.close().await;
    happened.append(&mut life.key.happened);
    Ok(happened)
}

impl Life {
    /// Takes a step; returns what the model says, and what the service does.
    async fn step(&mut self, op: Op) -> (Outcome, Result<(), ServiceError>) {
        let count = self.key.versions.len();
        let index = |number: u8| usize::from(number) % count;
        let kms = &self.world.kms;
        match op {
            Op::Rotate => {
                let (name, reason, request_id) = (name(KEY), String::new(), fresh_id());
                let request = self.world.request("kms.v1.KeyService/RotateKey");
                let made = kms.rotate_key(&request, RotateKey { name, reason, request_id }).await;
                (self.key.rotate(), made.map(drop))
            }
            Op::Stage(hours) => {
                let after = hours.map(|hours| Duration::from_hours(hours.into()));
                let made = self.stage(after).await;
                (self.key.stage(after), made)
            }
            Op::Disable | Op::Enable | Op::CancelKey | Op::ScheduleKey(..) => {
                self.change_key(op).await
            }
            Op::Register | Op::Remove => self.change_consumer(op == Op::Register).await,
            Op::Wrap | Op::Unwrap(_) | Op::Rewrap(_) => self.make_use(op).await,
            Op::Activate(number) => {
                let made = kms.activate_key_version(&self.request(), change(index(number))).await;
                (self.key.activate(index(number)), made.map(drop))
            }
            Op::Discard(number) => {
                let made = kms.discard_key_version(&self.request(), change(index(number))).await;
                (self.key.discard(index(number)), made.map(drop))
            }
            Op::Suspend(number) => {
                let made = kms.suspend_key_version(&self.request(), change(index(number))).await;
                (self.key.go(index(number), VersionState::Suspended), made.map(drop))
            }
            Op::Resume(number) => {
                let made = kms.resume_key_version(&self.request(), change(index(number))).await;
                (self.key.go(index(number), VersionState::Active), made.map(drop))
            }
            Op::Deactivate(number) => {
                let made = kms.deactivate_key_version(&self.request(), change(index(number))).await;
                (self.key.go(index(number), VersionState::Deactivated), made.map(drop))
            }
            Op::Compromise(number) => {
                let made = kms.compromise_key_version(&self.request(), change(index(number))).await;
                (self.key.compromise(index(number)), made.map(drop))
            }
            Op::Schedule(number, recent, consumers) => {
                let made = self.schedule(index(number), recent, consumers).await;
                (self.key.schedule(index(number), WINDOW, recent, consumers), made)
            }
            Op::Cancel(number) => {
                let request = self.request();
                let cancelled =
                    kms.cancel_key_version_destruction(&request, change(index(number))).await;
                (self.key.cancel(index(number)), cancelled.map(drop))
            }
            Op::Advance(span) => {
                self.world.clock.advance(span);
                self.key.now += span;
                (Ok(()), Ok(()))
            }
            Op::Reconcile => {
                let done = kms.reconcile().await.unwrap();
                assert_eq!((done.failed, done.orphans), (0, 0), "{done:?}");
                self.key.reconcile();
                (Ok(()), Ok(()))
            }
            Op::Restart => {
                // What was counted and not written is lost with a crash, so this is a stop.
                kms.drain().await.unwrap();
                self.world = self.world.restart();
                (Ok(()), self.world.kms.recover().await.map(drop))
            }
        }
    }

    fn request(&self) -> kms_server::service::RequestContext {
        self.world.request("kms.v1.KeyService/ChangeState")
    }

    async fn stage(&self, after: Option<Duration>) -> Result<(), ServiceError> {
        use kms_core::clock::Clock as _;
        let activate_time = after.map(|after| self.world.clock.now().after(after));
        let (name, reason, request_id) = (name(KEY), "test".into(), fresh_id());
        let stage = StageKeyVersion { name, activate_time, reason, request_id };
        let request = self.world.request("kms.v1.KeyService/StageKeyVersion");
        self.world.kms.stage_key_version(&request, stage).await.map(drop)
    }

    async fn schedule(
        &self,
        index: usize,
        allow_recent_use: bool,
        allow_consumers: bool,
    ) -> Result<(), ServiceError> {
        let ChangeVersionState { name, reason, request_id } = change(index);
        let schedule = ScheduleDestruction {
            name,
            window: WINDOW,
            allow_recent_use,
            allow_consumers,
            reason,
            request_id,
        };
        self.world.kms.schedule_key_version_destruction(&self.request(), schedule).await.map(drop)
    }

    async fn change_key(&mut self, op: Op) -> (Outcome, Result<(), ServiceError>) {
        let (kms, request) = (&self.world.kms, self.request());
        let change =
            ChangeKeyState { name: name(KEY), reason: "test".into(), request_id: fresh_id() };
        match op {
            Op::Disable => {
                (self.key.enable(false), kms.disable_key(&request, change).await.map(drop))
            }
            Op::Enable => (self.key.enable(true), kms.enable_key(&request, change).await.map(drop)),
            Op::ScheduleKey(allow_recent_use, allow_consumers) => {
                let ChangeKeyState { name, reason, request_id } = change;
                let schedule = ScheduleKeyDestruction {
                    name,
                    window: WINDOW,
                    allow_recent_use,
                    allow_consumers,
                    reason,
                    request_id,
                };
                let made = kms.schedule_key_destruction(&request, schedule).await;
                (self.key.schedule_key(WINDOW, allow_recent_use, allow_consumers), made.map(drop))
            }
            _ => {
                let made = kms.cancel_key_destruction(&request, change).await;
                (self.key.cancel_key(), made.map(drop))
            }
        }
    }

    async fn change_consumer(&mut self, comes: bool) -> (Outcome, Result<(), ServiceError>) {
        let (name, request_id) = (consumer("backup"), fresh_id());
        let (kms, request) = (&self.world.kms, self.request());
        if comes {
            let description = "storage team".into();
            let register = RegisterConsumer { name, description, request_id };
            let made = kms.register_consumer(&request, register).await;
            return (self.key.register(), made.map(drop));
        }
        let remove = RemoveConsumer { name, reason: "test".into(), request_id };
        (self.key.remove(), kms.remove_consumer(&request, remove).await.map(drop))
    }

    /// Uses the key. What was never wrapped under a version cannot be unwrapped: the primary wraps instead.
    async fn make_use(&mut self, op: Op) -> (Outcome, Result<(), ServiceError>) {
        let count = self.key.versions.len();
        let (kms, request) = (&self.world.kms, self.world.request("kms.v1.CryptoService/Wrap"));
        let of = |number: u8| {
            let index = usize::from(number) % count;
            let ciphertext = self.ciphertexts.get(index).cloned().flatten()?;
            Some((index, ciphertext))
        };
        match op {
            Op::Unwrap(number) if let Some((index, ciphertext)) = of(number) => {
                let made = kms.unwrap(&request, unwrap(KEY, &ciphertext)).await;
                if let Ok(made) = &made {
                    assert_eq!(made.plaintext.expose(), b"secret");
                }
                (self.key.unwrap(index), made.map(drop))
            }
            Op::Rewrap(number) if let Some((index, ciphertext)) = of(number) => {
                let item = Rewrap { key: name(KEY), ciphertext, context: context("/a") };
                let made = kms.rewrap(&request, item).await;
                (self.key.rewrap(index), made.map(drop))
            }
            _ => {
                let made = kms.wrap(&request, wrap(KEY, b"secret")).await;
                let made = made.map(|wrapped| {
                    self.ciphertexts.resize(count, None);
                    self.ciphertexts[self.key.primary] = Some(wrapped.ciphertext);
                });
                (self.key.wrap(), made)
            }
        }
    }

    /// Compares what is seen of the key and its versions with the model.
    async fn compare(&self) -> Result<(), String> {
        let (kms, now) = (&self.world.kms, self.key.now);
        let request = self.world.request("kms.v1.KeyService/DescribeKey");
        let seen = kms.describe_key(&request, &name(KEY)).await.unwrap();
        let list = ListKeyVersions { key: name(KEY), page_size: 1000, page_token: String::new() };
        let request = self.world.request("kms.v1.KeyService/ListKeyVersions");
        let versions = kms.list_key_versions(&request, list).await.unwrap().items;
        let states: Vec<_> = versions.iter().map(|version| version.state).collect();
        let expected: Vec<_> = self.key.versions.iter().map(|version| version.state(now)).collect();
        let protects = self.key.state == KeyState::Enabled
            && expected[self.key.primary] == VersionState::Active;
        let number = u32::try_from(self.key.primary + 1).unwrap();
        let primary = protects.then(|| KeyVersion::new(number).unwrap());
        let consumers = u32::from(self.key.consumer);
        let seen = (seen.state, seen.primary_version, seen.consumer_count, states);
        let model = (self.key.state, primary, consumers, expected);
        if seen == model { Ok(()) } else { Err(format!("{seen:?}, the model says {model:?}")) }
    }
}

fn change(index: usize) -> ChangeVersionState {
    let name = format!("{KEY}/versions/{}", index + 1).parse().unwrap();
    ChangeVersionState { name, reason: "test".into(), request_id: fresh_id() }
}

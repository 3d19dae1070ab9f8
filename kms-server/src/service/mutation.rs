//! The protocol of every mutation (design section 3 and 7):
//!
//! intent row -> intent record durable -> [entry in the state journal ->] effect in the HSM -> rows, manifest and request id in
//! one transaction, which marks the intent applied -> outcome record durable -> intent closed -> answer.
//!
//! After a crash the reconciler reads from the intent what happened: not applied, nothing was committed; applied, only
//! the outcome is missing, and the intent holds the manifest that it must tell.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kms_core::audit::Phase;
use kms_core::canonical::CanonicalWriter;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId};
use kms_core::journal::Event;
use kms_core::key::{CkaId, KeyRow, KeyState, Protection};
use kms_core::name::KeyName;
use kms_hsm::HsmError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use super::change::{Change, Failure};
use super::claim::Claimed;
use super::describe_key::Fresh;
use super::kms::{INTERNAL_DEADLINE, Inner, Kms, TenantLock};
use super::places::Place;
use super::trail::{OK, PENDING, Trail};
use super::{RequestContext, ServiceError};
use crate::journal::{Held, JournalError};
use crate::store::{Intent, IntentKind, VersionChoice};

/// When a caller may try again who found no place.
const MUTATION_RETRY: Duration = Duration::from_millis(500);

/// One kind of mutation.
pub(super) trait Mutation: Send + Sync + 'static {
    /// What the caller gets, and what is remembered for repeats.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What the change builds on, read before the intent, and what is held until the end.
    type Basis: Send;

    /// Starts the trail.
    fn trail(&self) -> Trail;

    /// Returns the caller's id of the request; `None` when the server does it by itself.
    fn request_id(&self) -> Option<RequestId>;

    /// Returns why, as the caller said; read only after [`Mutation::fields`] found it short enough.
    fn reason(&self) -> Option<&str> {
        None
    }

    /// Asks policy.
    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError>;

    /// Checks the fields and writes them, all but the request id, canonically.
    fn fields(&self) -> Result<CanonicalWriter, ServiceError>;

    /// Reads what the change builds on, and decides whether it can be.
    fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> impl Future<Output = Result<(Subject, Self::Basis), ServiceError>> + Send;

    /// Makes the change.
    fn apply(
        self,
        change: &mut Change<'_>,
        basis: Self::Basis,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// What a mutation is about.
pub(super) struct Subject {
    pub(super) kind: IntentKind,
    pub(super) key_name: KeyName,
    pub(super) key_uid: KeyUid,
    pub(super) version: KeyVersion,
    /// Where an object is made; `None` when nothing is made in the HSM, so that nothing is to be undone there.
    pub(super) makes: Option<Protection>,
    /// Versions that must be loaded anew afterwards.
    pub(super) stale: Vec<KeyVersion>,
}

impl Subject {
    /// A change of one version's row, that makes nothing in the HSM.
    pub(super) fn of_version(kind: IntentKind, key: &KeyRow, version: KeyVersion) -> Self {
        Self {
            kind,
            key_name: key.name.clone(),
            key_uid: key.uid,
            version,
            makes: None,
            stale: vec![version],
        }
    }

    /// A change of a key's row alone: no version has to be loaded anew.
    pub(super) fn of_key(kind: IntentKind, key: &KeyRow) -> Self {
        Self { stale: Vec::new(), ..Self::of_version(kind, key, key.primary) }
    }
}

/// A key as it is, and the turn to change it.
pub(super) struct Turn {
    pub(super) fresh: Fresh,
    _lock: TenantLock,
}

/// An open intent of this process. The reconciler leaves it alone as long as this lives.
struct OpenIntent {
    inner: Arc<Inner>,
    intent: Intent,
}

impl Drop for OpenIntent {
    fn drop(&mut self) {
        let mut intents = self.inner.intents.lock().unwrap_or_else(PoisonError::into_inner);
        intents.remove(&self.intent.id);
    }
}

impl Kms {
    /// Runs a mutation as a task of its own: a caller who goes away must not leave it half done.
    pub(super) async fn mutate<M: Mutation>(
        &self,
        request: &RequestContext,
        mutation: M,
    ) -> Result<M::Output, ServiceError> {
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        let work = async move {
            let mut trail = mutation.trail();
            let result = inner.mutate(&request, mutation, &mut trail).await;
            inner.record_unless_begun(&request, trail, result).await
        };
        let died = ServiceError::Bug { reason: "a mutation died" };
        tokio::spawn(work.in_current_span()).await.unwrap_or(Err(died))
    }

    /// Waits until no mutation is running; no new one starts afterwards. For the drain.
    pub async fn mutations_done(&self) {
        self.inner.mutations.close().await;
    }
}

impl Inner {
    /// Runs a mutation. Its intent and outcome are recorded here; what came to no intent is left to the caller.
    pub(super) async fn mutate<M: Mutation>(
        self: &Arc<Self>,
        request: &RequestContext,
        mutation: M,
        trail: &mut Trail,
    ) -> Result<M::Output, ServiceError> {
        mutation.permit(self, request, trail)?;
        let fields = mutation.fields()?;
        trail.reason = mutation.reason().map(Into::into);
        let by_caller = mutation.request_id().is_some();
        let _admitted = self.admit(by_caller, &trail.tenant).await?;
        self.admitted(request, mutation, fields, trail).await
    }

    /// Runs a mutation of the server's own for a caller who has taken a place for it, as he must before a tenant's turn: who has
    /// a turn waits for nobody who waits for it.
    pub(super) async fn mutate_in<M: Mutation>(
        self: &Arc<Self>,
        _place: &Place,
        request: &RequestContext,
        mutation: M,
        trail: &mut Trail,
    ) -> Result<M::Output, ServiceError> {
        mutation.permit(self, request, trail)?;
        let fields = mutation.fields()?;
        trail.reason = mutation.reason().map(Into::into);
        self.admitted(request, mutation, fields, trail).await
    }

    /// Takes a place for what the server does by itself; waits for one.
    pub(super) async fn place_of_its_own(&self) -> Result<Place, ServiceError> {
        self.admit(false, "").await
    }

    async fn admitted<M: Mutation>(
        self: &Arc<Self>,
        request: &RequestContext,
        mutation: M,
        fields: CanonicalWriter,
        trail: &mut Trail,
    ) -> Result<M::Output, ServiceError> {
        let claim = match mutation.request_id() {
            None => None,
            Some(id) => match self.claim(request, id, fields).await? {
                Claimed::Repeat(first) => return Ok(first),
                Claimed::Fresh(claim) => Some(claim),
            },
        };
        let (subject, basis) = self.basis(request, &mutation, trail).await?;
        if claim.is_some() {
            // Seen early, so that nothing is made in vain; the store decides in the end.
            let room = self.store.room_for_request(subject.key_name.tenant().clone()).await;
            self.keyring.stored(room)?;
        }
        if self.clock.monotonic() >= request.deadline {
            return Err(ServiceError::QueueDeadline);
        }
        // What has begun is brought to its end, even when the caller has stopped waiting.
        let deadline = request.deadline.max(self.clock.monotonic() + INTERNAL_DEADLINE);
        let request = &RequestContext { deadline, ..request.clone() };
        let (name, stale) = (subject.key_name.clone(), subject.stale.clone());
        let open = self.begin(request, subject, trail).await?;
        let intent = &open.intent;
        let claim = claim.as_ref();
        let mut change = Change { inner: self, request, intent, claim, trail, journaled: None };
        let result = mutation.apply(&mut change, basis).await;
        let result = match change.journaled.take() {
            Some(journaled) => self.settle_journal(intent, journaled, result).await,
            None => result,
        };
        self.keyring.invalidate(&name, open.intent.key_uid, &stale);
        self.conclude(request, open, trail, result).await
    }

    /// Ends what a mutation has put in the state journal. Of one that was given up, its last word must be that: else a restore
    /// would make of a database what never was. When that cannot be written, the intent is left to the reconciler, which does.
    async fn settle_journal<T>(
        &self,
        intent: &Intent,
        journaled: Vec<Held>,
        result: Result<T, Failure>,
    ) -> Result<T, Failure> {
        match &result {
            Err(Failure::Unknown(_)) => return result,
            Err(Failure::Undo(_)) => {
                if let Err(cause) = self.abandon(intent).await {
                    tracing::warn!(%cause, intent = %intent.id, "left to the reconciler");
                    return result.map_err(Failure::left);
                }
            }
            Ok(_) => {}
        }
        journaled.into_iter().for_each(Held::settle);
        result
    }

    /// Says in the state journal that what a mutation has told there did not happen.
    pub(super) async fn abandon(&self, intent: &Intent) -> Result<(), JournalError> {
        self.journal.append(Some(intent.id), Event::Abandoned).await.map(Held::settle)
    }

    /// Takes a place among the mutations. What the server does by itself waits for one.
    async fn admit(&self, by_caller: bool, tenant: &str) -> Result<Place, ServiceError> {
        let place = if by_caller {
            self.mutations.enter(tenant)
        } else {
            self.mutations.enter_internal().await
        };
        place.map_err(|full| ServiceError::HsmSaturated { full, retry_after: MUTATION_RETRY })
    }

    /// Reads what a change builds on, and waits for the turn where it takes one, until the request's deadline: nothing is
    /// begun before it has ended, so it can be given up.
    async fn basis<M: Mutation>(
        &self,
        request: &RequestContext,
        mutation: &M,
        trail: &mut Trail,
    ) -> Result<(Subject, M::Basis), ServiceError> {
        let left = request.deadline.saturating_duration_since(self.clock.monotonic());
        let read = tokio::time::timeout(left, mutation.basis(self, trail)).await;
        read.unwrap_or(Err(ServiceError::QueueDeadline))
    }

    /// Waits for the turn to change a key, and reads it; refused while it is to be destroyed, or is.
    pub(super) async fn turn(
        &self,
        name: &KeyName,
        choice: VersionChoice,
    ) -> Result<Turn, ServiceError> {
        let turn = self.turn_whatever(name, choice).await?;
        match turn.fresh.key.row.state {
            KeyState::Enabled | KeyState::Disabled => Ok(turn),
            KeyState::DestroyScheduled => Err(ServiceError::KeyDestroyScheduled),
            KeyState::Destroyed => Err(ServiceError::KeyDestroyed),
        }
    }

    /// Waits for the turn to change a key, and reads it, whatever its state.
    pub(super) async fn turn_whatever(
        &self,
        name: &KeyName,
        choice: VersionChoice,
    ) -> Result<Turn, ServiceError> {
        let lock = self.lock_tenant(name.tenant()).await?;
        let fresh = self.fresh(name, choice).await?;
        Ok(Turn { fresh, _lock: lock })
    }

    /// Opens an intent, and makes the intent record durable.
    async fn begin(
        self: &Arc<Self>,
        request: &RequestContext,
        subject: Subject,
        trail: &mut Trail,
    ) -> Result<OpenIntent, ServiceError> {
        let bytes = self.draw()?;
        let id = IntentId::from_bytes(bytes);
        let Subject { kind, key_name, key_uid, version, makes, stale: _ } = subject;
        trail.key_uid = Some(key_uid);
        trail.version = kind.is_of_version().then_some(version);
        let intent = Intent {
            id,
            kind,
            principal: (&*request.principal.id).into(),
            key_name,
            key_uid,
            version,
            protection: makes.unwrap_or(Protection::HsmWrapped),
            // Random, recorded before the object is made, and as unique as the intent.
            resident_id: CkaId(bytes),
            time: self.clock.now(),
            applied: None,
        };
        // Invariant: known as active before the row can be seen, until nothing more is done to it.
        self.intents.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let open = OpenIntent { inner: Arc::clone(self), intent };
        let generation = self.keyring.config().generation;
        let sealed = self.keyring.seal(open.intent.clone(), generation, request.deadline).await?;
        self.store.open_intent(sealed).await?;
        trail.intent = Some(id);
        if let Err(error) = self.record_phase(request, trail, Phase::Intent, PENDING).await {
            self.close_intent(id).await;
            trail.intent = None;
            return Err(error);
        }
        Ok(open)
    }

    /// Returns whether a mutation of this process still works on an intent.
    pub(super) fn is_active(&self, id: IntentId) -> bool {
        self.intents.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Closes an intent of which nothing is left to do. When the store fails, the reconciler does it.
    async fn close_intent(&self, id: IntentId) {
        if let Err(error) = self.store.close_intent(id).await {
            tracing::warn!(%error, intent = %id, "left to the reconciler");
        }
    }

    /// Destroys the token object that an intent was about.
    pub(super) async fn destroy_object(
        &self,
        intent: &Intent,
        deadline: Instant,
    ) -> Result<(), HsmError> {
        if intent.kind == IntentKind::CreateImportJob {
            return self.hsm.destroy_import_key(intent.resident_id, deadline).await;
        }
        self.hsm.destroy_resident(intent.resident_id, deadline).await
    }

    /// Ends a mutation: outcome record durable, intent closed, then the answer.
    async fn conclude<T>(
        &self,
        request: &RequestContext,
        open: OpenIntent,
        trail: &mut Trail,
        result: Result<T, Failure>,
    ) -> Result<T, ServiceError> {
        let id = open.intent.id;
        match result {
            Ok(value) => {
                // Without the outcome the intent stays, applied, and the reconciler writes it later. The effect is there,
                // so the caller must not hear that nothing happened.
                let told = self.record_phase(request, trail, Phase::Outcome, OK).await;
                told.map_err(|error| ServiceError::OutcomeUnknown { detail: error.to_string() })?;
                self.close_intent(id).await;
                Ok(value)
            }
            Err(Failure::Unknown(error)) => Err(error),
            Err(Failure::Undo(error)) => {
                trail.manifest = None;
                if open.intent.protection == Protection::HsmResident {
                    // Time of its own: what went wrong may be that the other was over.
                    let deadline = self.clock.monotonic() + INTERNAL_DEADLINE;
                    if let Err(cause) = self.destroy_object(&open.intent, deadline).await {
                        tracing::warn!(%cause, intent = %id, "left to the reconciler");
                        return Err(error);
                    }
                }
                self.record_phase(request, trail, Phase::Outcome, error.reason()).await?;
                self.close_intent(id).await;
                Err(error)
            }
        }
    }
}

//! RegisterConsumer, ListConsumers and RemoveConsumer: who depends on a key. As long as there is one, no version of the key is
//! destroyed, unless it was never used or somebody was permitted to decide otherwise.

use kms_core::canonical::CanonicalWriter;
use kms_core::consumer::{ConsumerRow, MAX_CONSUMERS};
use kms_core::id::RequestId;
use kms_core::key::{KeyRow, KeyState, Sealed};
use kms_core::name::{ConsumerName, KeyName};

use super::change::{Change, Failure, RowChanges};
use super::describe_key::Fresh;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{ConsumerDescription, RegisterConsumer, RemoveConsumer, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{ConsumerChange, ConsumerEdit, IntentKind, VersionChoice};

impl Kms {
    /// Registers a consumer of a key.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `CONSUMER_EXISTS`, `CONSUMERS_FULL`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn register_consumer(
        &self,
        request: &RequestContext,
        register: RegisterConsumer,
    ) -> Result<ConsumerDescription, ServiceError> {
        self.mutate(request, register).await
    }

    /// Takes a consumer away; returns what it was.
    ///
    /// # Errors
    /// As for [`Kms::register_consumer`], with `CONSUMER_NOT_FOUND` when it is not there.
    pub async fn remove_consumer(
        &self,
        request: &RequestContext,
        remove: RemoveConsumer,
    ) -> Result<ConsumerDescription, ServiceError> {
        self.mutate(request, remove).await
    }

    /// Lists the consumers of a key by id, all of them.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn list_consumers(
        &self,
        request: &RequestContext,
        key: &KeyName,
    ) -> Result<Vec<ConsumerDescription>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(key);
        let result = inner.list_consumers(request, key, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn list_consumers(
        &self,
        request: &RequestContext,
        name: &KeyName,
        trail: &mut Trail,
    ) -> Result<Vec<ConsumerDescription>, ServiceError> {
        self.permit::<authz::ListConsumers>(request, Target::key(name), trail)?;
        // Under the turn: a consumer that comes between the two reads would look like tampering.
        let left = request.deadline.saturating_duration_since(self.clock.monotonic());
        let turn =
            tokio::time::timeout(left, self.turn_whatever(name, VersionChoice::Primary)).await;
        let turn = turn.unwrap_or(Err(ServiceError::QueueDeadline))?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        let consumers = self.consumers(key).await?;
        consumers.into_iter().map(|consumer| describe(name, consumer.row)).collect()
    }

    /// Reads the consumers of a key, verified: as many as the key's row says.
    pub(super) async fn consumers(
        &self,
        key: &KeyRow,
    ) -> Result<Vec<Sealed<ConsumerRow>>, ServiceError> {
        let consumers = self.store.list_consumers(key.uid).await;
        let consumers = self.keyring.stored(consumers)?;
        self.keyring.verify_consumers(&consumers).await?;
        let count = consumers.iter().filter(|consumer| consumer.row.key_uid == key.uid).count();
        if count != consumers.len() || u32::try_from(count) != Ok(key.consumers) {
            let detail =
                format!("key {} has {} consumers, and {count} are there", key.uid, key.consumers);
            return Err(self.keyring.integrity(detail).into());
        }
        Ok(consumers)
    }
}

fn describe(key: &KeyName, row: ConsumerRow) -> Result<ConsumerDescription, ServiceError> {
    let ConsumerRow { key_uid: _, consumer_id, description, create_time, actor, revision: _ } = row;
    let name = ConsumerName::new(key.clone(), &consumer_id)
        .map_err(|_| ServiceError::Bug { reason: "a stored consumer has no valid id" })?;
    Ok(ConsumerDescription { name, description, create_time, actor })
}

impl Mutation for RegisterConsumer {
    type Output = ConsumerDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::consumer(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.name.key());
        inner.permit::<authz::RegisterConsumer>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_consumer_description(&self.description)?;
        let out = CanonicalWriter::new(b"fields").text(&self.name.to_string());
        Ok(out.text(&self.description))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let turn = inner.turn_whatever(self.name.key(), VersionChoice::Primary).await?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        check_there(key)?;
        let consumers = inner.consumers(key).await?;
        if consumers.iter().any(|there| there.row.consumer_id == self.name.consumer_id()) {
            return Err(ServiceError::ConsumerExists { name: self.name.clone() });
        }
        if key.consumers >= MAX_CONSUMERS {
            return Err(ServiceError::ConsumersFull);
        }
        let subject = Subject::of_key(IntentKind::RegisterConsumer, key);
        Ok((subject, turn))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        turn: Turn,
    ) -> Result<ConsumerDescription, Failure> {
        let old = &turn.fresh.key.row;
        let row = ConsumerRow {
            key_uid: old.uid,
            consumer_id: self.name.consumer_id().to_owned(),
            description: self.description,
            create_time: change.inner.clock.now(),
            actor: (&*change.request.principal.id).into(),
            revision: old.revision.next(),
        };
        let detail = detail(&row.consumer_id, None, Some(&row.description));
        let result = describe(self.name.key(), row.clone())?;
        let consumer = change.seal(row).await?;
        let count = old.consumers + 1;
        let edited = Edited { count, edit: ConsumerEdit::Add(consumer), detail };
        change.change_consumers(&turn.fresh, edited, String::new(), result).await
    }
}

impl Mutation for RemoveConsumer {
    type Output = ConsumerDescription;
    type Basis = (Turn, Sealed<ConsumerRow>);

    fn trail(&self) -> Trail {
        Trail::consumer(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.name.key());
        inner.permit::<authz::RemoveConsumer>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 1)?;
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let turn = inner.turn_whatever(self.name.key(), VersionChoice::Primary).await?;
        let key = &turn.fresh.key.row;
        trail.key_uid = Some(key.uid);
        check_there(key)?;
        let consumers = inner.consumers(key).await?;
        let is_meant =
            |consumer: &Sealed<ConsumerRow>| consumer.row.consumer_id == self.name.consumer_id();
        let Some(consumer) = consumers.into_iter().find(is_meant) else {
            return Err(ServiceError::ConsumerNotFound { name: self.name.clone() });
        };
        let subject = Subject::of_key(IntentKind::RemoveConsumer, key);
        Ok((subject, (turn, consumer)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, consumer): Self::Basis,
    ) -> Result<ConsumerDescription, Failure> {
        let row = &consumer.row;
        let detail = detail(&row.consumer_id, Some(&row.description), None);
        let result = describe(self.name.key(), row.clone())?;
        let count = turn.fresh.key.row.consumers.saturating_sub(1);
        let edited = Edited { count, edit: ConsumerEdit::Remove(consumer), detail };
        change.change_consumers(&turn.fresh, edited, self.reason, result).await
    }
}

/// A tombstone has no consumers to come or go, and neither has what is on its way to be one.
fn check_there(key: &KeyRow) -> Result<(), ServiceError> {
    let begun = key.destruction.is_some_and(|planned| planned.begun);
    if begun || key.state == KeyState::Destroyed {
        return Err(ServiceError::KeyDestroyed);
    }
    Ok(())
}

/// What the history of a key says of a consumer.
fn detail(consumer_id: &str, old: Option<&str>, new: Option<&str>) -> String {
    serde_json::json!({ format!("consumers/{consumer_id}"): [old, new] }).to_string()
}

/// A consumer that comes or goes.
struct Edited {
    /// How many there are then.
    count: u32,
    edit: ConsumerEdit,
    detail: String,
}

impl Change<'_> {
    async fn change_consumers(
        &mut self,
        fresh: &Fresh,
        edited: Edited,
        reason: String,
        result: ConsumerDescription,
    ) -> Result<ConsumerDescription, Failure> {
        let old = &fresh.key;
        let Edited { count, edit, detail } = edited;
        let key = KeyRow { consumers: count, ..old.row.clone() };
        let (key, history) = self.key_changed(&old.row, key, detail, reason);
        let history = vec![history];
        let key = self.seal(key).await?;
        let (mut added, mut removed) = (vec![key.mac], vec![old.mac]);
        match &edit {
            ConsumerEdit::Add(consumer) => added.push(consumer.mac),
            ConsumerEdit::Remove(consumer) => removed.push(consumer.mac),
        }
        let rows = RowChanges { added: &added, removed: &removed, history };
        let closing = self.closing(key.row.name.tenant(), rows, &result).await?;
        let consumers = ConsumerChange { expected_key: old.row.revision, key, edit };
        let committed = self.inner.store.change_consumers(consumers, closing).await;
        self.settle(committed).await?;
        Ok(result)
    }
}

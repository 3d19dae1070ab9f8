//! RotateKey: a new, independently generated version becomes primary; the old one goes on for the overlap.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{EventId, KeyVersion, RequestId};
use kms_core::key::KeyRow;
use kms_core::name::KeyName;
use kms_core::state::VersionState;

use super::change::{Change, Failure, RowChanges};
use super::describe_key::{Fresh, describe_key, describe_version};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{RequestContext, RotateKey, Rotated, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, Rollover, VersionChoice};

impl Kms {
    /// Rolls a key over. It goes on when the caller goes away; a repeat with the same request id gets the result.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the
    /// layers below cannot do.
    pub async fn rotate_key(
        &self,
        request: &RequestContext,
        rotate: RotateKey,
    ) -> Result<Rotated, ServiceError> {
        let RotateKey { name, reason, request_id } = rotate;
        let rotation = Rotation { name, reason, request_id: Some(request_id), only: None };
        self.mutate(request, rotation).await
    }

    /// Rolls over the keys whose primary has seen 2^31 invocations, as principal `internal`; returns how many.
    pub async fn rotate_due(&self) -> usize {
        let mut rotated = 0;
        for (name, version) in self.inner.keyring.due_rollovers() {
            let reason = "invocation limit".to_owned();
            let rotation = Rotation { name, reason, request_id: None, only: Some(version) };
            let done = match self.inner.internal_request("internal/RotateKey") {
                Ok(request) => self.mutate(&request, rotation).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(_) => rotated += 1,
                // Somebody else was faster.
                Err(ServiceError::RevisionMismatch) => {}
                Err(error) => {
                    tracing::error!(alert = "rollover_failed", %error, "tried again with the next lease");
                }
            }
        }
        rotated
    }
}

/// A rollover that somebody asked for, or that is due.
struct Rotation {
    name: KeyName,
    reason: String,
    request_id: Option<RequestId>,
    /// The primary that is to be replaced; `None` means whichever it is.
    only: Option<KeyVersion>,
}

impl Mutation for Rotation {
    type Output = Rotated;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        self.request_id
    }

    fn reason(&self) -> Option<&str> {
        Some(&*self.reason).filter(|reason| !reason.is_empty())
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        inner.permit::<authz::RotateKey>(request, Target::key(&self.name), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 0)?;
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        _trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let turn = inner.turn(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        if self.only.is_some_and(|version| version != row.primary) {
            return Err(ServiceError::RevisionMismatch);
        }
        let next = row.latest.next().ok_or(ServiceError::VersionsExhausted)?;
        let subject = Subject {
            kind: IntentKind::RotateKey,
            key_name: row.name.clone(),
            key_uid: row.uid,
            version: next,
            makes: Some(row.protection),
            stale: vec![row.primary, next],
        };
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<Rotated, Failure> {
        let reason = if self.reason.is_empty() { "rotated" } else { &self.reason };
        let (version, counter) = change.generate(reason).await?;
        let Fresh { key: old_key, version: old } = turn.fresh;
        let now = version.create_time;
        let key = KeyRow {
            primary: version.version,
            latest: version.version,
            revision: old_key.row.revision.next(),
            update_time: now,
            ..old_key.row.clone()
        };
        let mut previous = old.row.clone();
        previous.revision = previous.revision.next();
        // A suspended version gets its end too: resumed later, it must not protect for ever.
        if matches!(previous.state, VersionState::Active | VersionState::Suspended) {
            let end = now.after(change.inner.keyring.config().overlap);
            previous.deactivate_time =
                previous.deactivate_time.map_or(Some(end), |t| Some(t.min(end)));
        }
        let key_description = describe_key(&key, &version, now);
        let version = change.seal(version).await?;
        let result = Rotated {
            version: describe_version(&key, &version, counter.leased, now),
            key: key_description,
        };
        let key = change.seal(key).await?;
        let counter = change.seal(counter).await?;
        let previous = change.seal_under(old.generation, previous).await?;
        let rows = RowChanges {
            added: &[key.mac, version.mac, previous.mac],
            removed: &[old_key.mac, old.mac],
        };
        let tenant = old_key.row.name.tenant();
        let closing = change.closing(tenant, rows, &result).await?;
        let rollover = Rollover {
            expected_key: old_key.row.revision,
            key,
            version,
            counter,
            expected_previous: old.row.revision,
            previous,
        };
        let committed = change.inner.store.roll_over(rollover, closing).await;
        change.settle(committed).await?;
        Ok(result)
    }
}

impl Inner {
    /// Makes the context of something the server does by itself.
    pub(super) fn internal_request(
        &self,
        operation: &'static str,
    ) -> Result<RequestContext, ServiceError> {
        let received = self.clock.monotonic();
        Ok(RequestContext {
            event_id: EventId::from_random(self.draw()?),
            principal: super::kms::internal_principal(),
            source: super::kms::NOWHERE,
            deadline: received + super::kms::INTERNAL_DEADLINE,
            received,
            operation,
        })
    }
}

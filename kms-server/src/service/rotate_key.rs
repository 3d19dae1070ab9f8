//! RotateKey: a new, independently generated version becomes primary; the old one goes on for the overlap.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{EventId, KeyVersion};
use kms_core::key::KeyRow;
use kms_core::name::KeyName;
use kms_core::state::VersionState;

use super::describe_key::{Fresh, describe_key, describe_version};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Claim, Claimed, Failure, OpenIntent, RowChanges, Subject, request_hash};
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
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        super::kms::detached(async move {
            let mut trail = Trail::key(&rotate.name);
            let result = inner.rotate_key(&request, &rotate, &mut trail).await;
            inner.record_unless_begun(&request, trail, result).await
        })
        .await
    }

    /// Rolls over the keys whose primary has seen 2^31 invocations, as principal `internal`; returns how many.
    pub async fn rotate_due(&self) -> usize {
        let mut rotated = 0;
        for (name, version) in self.inner.keyring.due_rollovers() {
            let inner = Arc::clone(&self.inner);
            let done = super::kms::detached(async move {
                let request = inner.internal_request("internal/RotateKey")?;
                let mut trail = Trail::key(&name);
                let result = inner.rotate_due(&request, &name, version, &mut trail).await;
                inner.record_unless_begun(&request, trail, result).await
            });
            match done.await {
                Ok(true) => rotated += 1,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(alert = "rollover_failed", %error, "tried again with the next lease");
                }
            }
        }
        rotated
    }
}

impl Inner {
    async fn rotate_key(
        self: &Arc<Self>,
        request: &RequestContext,
        rotate: &RotateKey,
        trail: &mut Trail,
    ) -> Result<Rotated, ServiceError> {
        self.permit::<authz::RotateKey>(request, Target::key(&rotate.name), trail)?;
        fields::check_reason(&rotate.reason, 0)?;
        let RotateKey { name, reason, request_id } = rotate;
        let canonical = CanonicalWriter::new(b"fields").text(&name.to_string()).text(reason);
        let hash = request_hash(request.operation, canonical);
        let claim = match self.claim(request, *request_id, hash).await? {
            Claimed::Repeat(first) => return Ok(first),
            Claimed::Fresh(claim) => claim,
        };
        let _turn = self.lock_tenant(name.tenant()).await?;
        let fresh = self.fresh(name, VersionChoice::Primary).await?;
        self.roll_over(request, fresh, reason, Some(&claim), trail).await
    }

    /// Returns false when the version is not the primary any more.
    async fn rotate_due(
        self: &Arc<Self>,
        request: &RequestContext,
        name: &KeyName,
        version: KeyVersion,
        trail: &mut Trail,
    ) -> Result<bool, ServiceError> {
        self.permit::<authz::RotateKey>(request, Target::key(name), trail)?;
        let _turn = self.lock_tenant(name.tenant()).await?;
        let fresh = self.fresh(name, VersionChoice::Primary).await?;
        if fresh.key.row.primary != version {
            return Ok(false);
        }
        self.roll_over(request, fresh, "invocation limit", None, trail).await.map(|_| true)
    }

    /// The caller holds the tenant's lock, so that key row and manifest stay as they are read.
    async fn roll_over(
        self: &Arc<Self>,
        request: &RequestContext,
        fresh: Fresh,
        reason: &str,
        claim: Option<&Claim>,
        trail: &mut Trail,
    ) -> Result<Rotated, ServiceError> {
        let row = &fresh.key.row;
        let next = row.latest.next().ok_or(ServiceError::VersionsExhausted)?;
        let subject = Subject {
            kind: IntentKind::RotateKey,
            key_name: row.name.clone(),
            key_uid: row.uid,
            version: next,
            protection: row.protection,
        };
        let (name, uid, old) = (row.name.clone(), row.uid, row.primary);
        let open = self.begin(request, subject, trail).await?;
        let result = self.insert_version(request, fresh, reason, (&open, claim), trail).await;
        self.keyring.invalidate(&name, uid, &[old, next]);
        self.conclude(request, open, trail, result).await
    }

    async fn insert_version(
        &self,
        request: &RequestContext,
        fresh: Fresh,
        reason: &str,
        (open, claim): (&OpenIntent, Option<&Claim>),
        trail: &mut Trail,
    ) -> Result<Rotated, Failure> {
        let reason = if reason.is_empty() { "rotated" } else { reason };
        let (version, counter) = self.generate(request, open, reason).await?;
        let Fresh { key: old_key, version: old } = fresh;
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
            let end = now.after(self.keyring.config().overlap);
            previous.deactivate_time =
                previous.deactivate_time.map_or(Some(end), |t| Some(t.min(end)));
        }
        let (generation, deadline) = (self.keyring.config().generation, request.deadline);
        let key_description = describe_key(&key, &version, now);
        let seal = |error| Failure::from(ServiceError::from(error));
        let version = self.keyring.seal(version, generation, deadline).await.map_err(seal)?;
        let result = Rotated {
            version: describe_version(&key, &version, counter.leased, now),
            key: key_description,
        };
        let key = self.keyring.seal(key, generation, deadline).await.map_err(seal)?;
        let counter = self.keyring.seal(counter, generation, deadline).await.map_err(seal)?;
        // Its material stays under the root that wrapped it.
        let previous = self.keyring.seal(previous, old.generation, deadline).await.map_err(seal)?;
        let rows = RowChanges {
            added: &[key.mac, version.mac, previous.mac],
            removed: &[old_key.mac, old.mac],
        };
        let tenant = old_key.row.name.tenant();
        let closing = self.closing(request, tenant, rows, (open, claim, &result), trail).await?;
        let rollover = Rollover {
            expected_key: old_key.row.revision,
            key,
            version,
            counter,
            expected_previous: old.row.revision,
            previous,
        };
        let committed = self.store.roll_over(rollover, closing).await;
        self.settle(open, committed).await?;
        Ok(result)
    }

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

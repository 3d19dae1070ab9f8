//! UpdateKey: owner, sensitivity, usage text, labels and cryptoperiod.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::key::KeyRow;

use super::describe_key::{Fresh, describe_key};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Claim, Claimed, Failure, OpenIntent, RowChanges, Subject, request_hash};
use super::trail::Trail;
use super::{KeyDescription, RequestContext, ServiceError, UpdateKey};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Changes the metadata of a key that is at the revision the change is based on.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `REVISION_MISMATCH`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn update_key(
        &self,
        request: &RequestContext,
        update: UpdateKey,
    ) -> Result<KeyDescription, ServiceError> {
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        super::kms::detached(async move {
            let mut trail = Trail::key(&update.name);
            let result = inner.update_key(&request, update, &mut trail).await;
            inner.record_unless_begun(&request, trail, result).await
        })
        .await
    }
}

impl Inner {
    async fn update_key(
        self: &Arc<Self>,
        request: &RequestContext,
        update: UpdateKey,
        trail: &mut Trail,
    ) -> Result<KeyDescription, ServiceError> {
        self.permit::<authz::UpdateKey>(request, Target::key(&update.name), trail)?;
        update.owner.as_deref().map_or(Ok(()), fields::check_owner)?;
        update.usage.as_deref().map_or(Ok(()), fields::check_usage)?;
        update.cryptoperiod.map_or(Ok(()), fields::check_cryptoperiod)?;
        update.labels.as_ref().map_or(Ok(()), fields::check_labels)?;
        let hash = request_hash(request.operation, canonical(&update));
        let claim = match self.claim(request, update.request_id, hash).await? {
            Claimed::Repeat(first) => return Ok(first),
            Claimed::Fresh(claim) => claim,
        };
        let _turn = self.lock_tenant(update.name.tenant()).await?;
        let fresh = self.fresh(&update.name, VersionChoice::Primary).await?;
        trail.key_uid = Some(fresh.key.row.uid);
        if fresh.key.row.revision != update.revision {
            return Err(ServiceError::RevisionMismatch);
        }
        let subject = Subject {
            kind: IntentKind::UpdateKey,
            key_name: update.name.clone(),
            key_uid: fresh.key.row.uid,
            version: fresh.key.row.primary,
            // Nothing is made in the HSM, so there is nothing to undo there.
            protection: kms_core::key::Protection::HsmWrapped,
        };
        let (name, uid) = (update.name.clone(), fresh.key.row.uid);
        let open = self.begin(request, subject, trail).await?;
        let result = self.replace_key(request, update, fresh, (&open, &claim), trail).await;
        self.keyring.invalidate(&name, uid, &[]);
        self.conclude(request, open, trail, result).await
    }

    async fn replace_key(
        &self,
        request: &RequestContext,
        update: UpdateKey,
        fresh: Fresh,
        (open, claim): (&OpenIntent, &Claim),
        trail: &mut Trail,
    ) -> Result<KeyDescription, Failure> {
        let (old, now) = (fresh.key, self.clock.now());
        let row = old.row.clone();
        let key = KeyRow {
            owner: update.owner.unwrap_or(row.owner),
            sensitivity: update.sensitivity.unwrap_or(row.sensitivity),
            usage: update.usage.unwrap_or(row.usage),
            cryptoperiod: update.cryptoperiod.unwrap_or(row.cryptoperiod),
            labels: update.labels.unwrap_or(row.labels),
            update_time: now,
            revision: row.revision.next(),
            ..row
        };
        let description = describe_key(&key, &fresh.version.row, now);
        let generation = self.keyring.config().generation;
        let key = self.keyring.seal(key, generation, request.deadline).await;
        let key = key.map_err(ServiceError::from)?;
        let rows = RowChanges { added: &[key.mac], removed: &[old.mac] };
        let ending = (open, Some(claim), &description);
        let closing = self.closing(request, update.name.tenant(), rows, ending, trail).await?;
        let committed = self.store.update_key(old.row.revision, key, closing).await;
        self.settle(open, committed).await?;
        Ok(description)
    }
}

fn canonical(update: &UpdateKey) -> CanonicalWriter {
    let UpdateKey {
        name,
        revision,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        labels,
        request_id: _,
    } = update;
    // A count in front of each: absent differs from empty.
    let optional = |out: CanonicalWriter, text: Option<&str>| match text {
        Some(text) => out.number(1).text(text),
        None => out.number(0),
    };
    let out = CanonicalWriter::new(b"fields").text(&name.to_string()).number(revision.get());
    let out = optional(out, owner.as_deref());
    let out = optional(out, sensitivity.map(kms_core::key::Sensitivity::as_str));
    let out = optional(out, usage.as_deref());
    let out = out.optional(cryptoperiod.map(|period| period.as_secs()));
    match labels {
        Some(labels) => fields::write_labels(out.number(1), labels),
        None => out.number(0),
    }
}

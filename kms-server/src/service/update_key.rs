//! UpdateKey: owner, sensitivity, usage text, labels and cryptoperiod.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::RequestId;
use kms_core::key::KeyRow;

use super::change::{Change, Failure, RowChanges};
use super::describe_key::describe_key;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
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
        self.mutate(request, update).await
    }
}

impl Mutation for UpdateKey {
    type Output = KeyDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
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
        inner.permit::<authz::UpdateKey>(request, Target::key(&self.name), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        self.owner.as_deref().map_or(Ok(()), fields::check_owner)?;
        self.usage.as_deref().map_or(Ok(()), fields::check_usage)?;
        self.cryptoperiod.map_or(Ok(()), fields::check_cryptoperiod)?;
        self.labels.as_ref().map_or(Ok(()), fields::check_labels)?;
        Ok(canonical(self))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let turn = inner.turn(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        trail.key_uid = Some(row.uid);
        if row.revision != self.revision {
            return Err(ServiceError::RevisionMismatch);
        }
        let subject = Subject {
            kind: IntentKind::UpdateKey,
            key_name: row.name.clone(),
            key_uid: row.uid,
            version: row.primary,
            makes: None,
            stale: Vec::new(),
        };
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<KeyDescription, Failure> {
        let (old, now) = (&turn.fresh.key, change.inner.clock.now());
        let row = old.row.clone();
        let key = KeyRow {
            owner: self.owner.unwrap_or(row.owner),
            sensitivity: self.sensitivity.unwrap_or(row.sensitivity),
            usage: self.usage.unwrap_or(row.usage),
            cryptoperiod: self.cryptoperiod.unwrap_or(row.cryptoperiod),
            labels: self.labels.unwrap_or(row.labels),
            update_time: now,
            revision: row.revision.next(),
            ..row
        };
        let description = describe_key(&key, &turn.fresh.version.row, now);
        let key = change.seal(key).await?;
        let rows = RowChanges { added: &[key.mac], removed: &[old.mac] };
        let closing = change.closing(self.name.tenant(), rows, &description).await?;
        let committed = change.inner.store.update_key(old.row.revision, key, closing).await;
        change.settle(committed).await?;
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

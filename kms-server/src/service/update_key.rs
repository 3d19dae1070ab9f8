//! UpdateKey: owner, sensitivity, usage text, labels, cryptoperiod, recipient-usage period and rotation period.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::RequestId;
use kms_core::key::{KeyRow, Sensitivity};
use kms_core::lifecycle::{MAX_HISTORY_DETAIL_BYTES, Rotation};

use super::change::{Change, Failure, RowChanges};
use super::describe_key::{Fresh, describe_key};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{KeyDescription, MAX_PAGE_SIZE, RequestContext, ServiceError, UpdateKey};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Changes the metadata of a key that is at the revision the change is based on.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `REVISION_MISMATCH`, `DESTRUCTION_PLANNED` where that would take
    /// the scream test from a version, unless that is allowed by name; `REQUEST_ID_REUSED`,
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

    fn reason(&self) -> Option<&str> {
        self.allow_recent_use.then_some("[allows recent use]")
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(&self.name);
        inner.permit::<authz::UpdateKey>(request, target, trail)?;
        if self.allow_recent_use {
            inner.permit::<authz::DestroyRecentlyUsed>(request, target, trail)?;
        }
        Ok(())
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
        let period = match self.rotation_period {
            Some(wanted) => wanted.period(),
            None => row.rotation.map(|plan| plan.period),
        };
        let cryptoperiod = self.cryptoperiod.unwrap_or(row.cryptoperiod);
        fields::check_rotation(period, cryptoperiod)?;
        let recipient = self.recipient_usage_period.unwrap_or(row.recipient_usage_period);
        fields::check_recipient_usage(recipient, cryptoperiod)?;
        let lowers = self.sensitivity.is_some_and(|wanted| wanted != Sensitivity::High);
        if lowers && row.sensitivity == Sensitivity::High && !self.allow_recent_use {
            inner.check_none_waits(row).await?;
        }
        let subject = Subject::of_key(IntentKind::UpdateKey, row);
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<KeyDescription, Failure> {
        let (old, primary) = (&turn.fresh.key, &turn.fresh.version.row);
        let row = old.row.clone();
        let key = KeyRow {
            owner: self.owner.unwrap_or(row.owner),
            sensitivity: self.sensitivity.unwrap_or(row.sensitivity),
            usage: self.usage.unwrap_or(row.usage),
            cryptoperiod: self.cryptoperiod.unwrap_or(row.cryptoperiod),
            recipient_usage_period: self
                .recipient_usage_period
                .unwrap_or(row.recipient_usage_period),
            labels: self.labels.unwrap_or(row.labels),
            rotation: match self.rotation_period {
                Some(wanted) => wanted.period().map(|period| {
                    Rotation::plan(period, primary.in_use_since(), row.uid, primary.version)
                }),
                None => row.rotation,
            },
            ..row
        };
        let detail = differences(&old.row, &key)?;
        change.replace_key(&turn.fresh, key, detail, String::new()).await
    }
}

impl Inner {
    /// Refuses when the destruction of a version is planned: of a key of HIGH sensitivity it waits for those who still want it.
    async fn check_none_waits(&self, row: &KeyRow) -> Result<(), ServiceError> {
        let mut after = None;
        loop {
            let versions = self.store.list_versions(row.uid, after, MAX_PAGE_SIZE).await;
            let versions = self.keyring.stored(versions)?;
            let Some(last) = versions.last() else { return Ok(()) };
            after = Some(last.row.version);
            self.keyring.verify_rows(&[], &versions, &[]).await?;
            let waits = versions.iter().find(|version| version.row.destruction.is_some());
            if let Some(waits) = waits {
                return Err(ServiceError::DestructionPlanned { version: waits.row.version });
            }
        }
    }
}

impl Change<'_> {
    /// Puts a key row, with a revision and a time of its own, in the place of the old one.
    pub(super) async fn replace_key(
        &mut self,
        fresh: &Fresh,
        key: KeyRow,
        detail: String,
        reason: String,
    ) -> Result<KeyDescription, Failure> {
        let Fresh { key: old, version: primary } = fresh;
        let (key, history) = self.key_changed(&old.row, key, detail, reason);
        let description = describe_key(&key, &primary.row, key.update_time);
        let key = self.seal(key).await?;
        let history = vec![history];
        let rows = RowChanges { added: &[key.mac], removed: &[old.mac], history };
        let closing = self.closing(key.row.name.tenant(), rows, &description).await?;
        let committed = self.inner.store.update_key(old.row.revision, key, closing).await;
        self.settle(committed).await?;
        Ok(description)
    }
}

/// Tells each field that differs, old and new, as a JSON object.
fn differences(old: &KeyRow, new: &KeyRow) -> Result<String, ServiceError> {
    let mut fields = serde_json::Map::new();
    let mut tell = |name: &str, old: serde_json::Value, new: serde_json::Value| {
        if old != new {
            fields.insert(name.to_owned(), serde_json::Value::Array(vec![old, new]));
        }
    };
    tell("owner", old.owner.as_str().into(), new.owner.as_str().into());
    tell("sensitivity", old.sensitivity.as_str().into(), new.sensitivity.as_str().into());
    tell("usage", old.usage.as_str().into(), new.usage.as_str().into());
    tell("cryptoperiod_s", old.cryptoperiod.as_secs().into(), new.cryptoperiod.as_secs().into());
    let recipient = |row: &KeyRow| row.recipient_usage_period.as_secs();
    tell("recipient_usage_period_s", recipient(old).into(), recipient(new).into());
    let period = |row: &KeyRow| row.rotation.map(|plan| plan.period.as_secs());
    tell("rotation_period_s", period(old).into(), period(new).into());
    let labels = |row: &KeyRow| -> serde_json::Map<_, _> {
        row.labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect()
    };
    tell("labels", labels(old).into(), labels(new).into());
    let detail = serde_json::Value::Object(fields).to_string();
    if detail.len() > MAX_HISTORY_DETAIL_BYTES {
        return Err(ServiceError::Bug { reason: "a history entry over its bound" });
    }
    Ok(detail)
}

fn canonical(update: &UpdateKey) -> CanonicalWriter {
    let UpdateKey {
        name,
        revision,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        recipient_usage_period,
        labels,
        rotation_period,
        allow_recent_use,
        request_id: _,
    } = update;
    // A count in front of each: absent differs from empty.
    let optional = |out: CanonicalWriter, text: Option<&str>| match text {
        Some(text) => out.number(1).text(text),
        None => out.number(0),
    };
    let out = CanonicalWriter::new(b"fields").text(&name.to_string()).number(revision.get());
    let out = optional(out, owner.as_deref());
    let out = optional(out, sensitivity.map(Sensitivity::as_str));
    let out = optional(out, usage.as_deref());
    let out = out.optional(cryptoperiod.map(|period| period.as_secs()));
    let out = out.optional(recipient_usage_period.map(|period| period.as_secs()));
    let out = match rotation_period {
        Some(wanted) => out.number(1).optional(wanted.period().map(|period| period.as_secs())),
        None => out.number(0),
    };
    let out = match labels {
        Some(labels) => fields::write_labels(out.number(1), labels),
        None => out.number(0),
    };
    out.number((*allow_recent_use).into())
}

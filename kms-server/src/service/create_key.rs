//! CreateKey: a key with version 1, ACTIVE and primary.

use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyUid, KeyVersion, RequestId, Revision};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{
    CounterRow, DEFAULT_RECIPIENT_EXTENSION, KeyRow, KeyState, Material, Origin, Protection,
    Sealed, VersionRow,
};
use kms_core::lifecycle::Rotation;
use kms_core::state::VersionState;
use kms_hsm::{GeneratedKey, KeySpec};

use super::change::{Change, Failure, RowChanges, moved};
use super::describe_key::describe_key;
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject};
use super::trail::Trail;
use super::{CreateKey, KeyDescription, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, KeyRef, NewKey, StoreError, VersionChoice};

impl Kms {
    /// Creates a key. It goes on when the caller goes away; a repeat with the same request id gets the result.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `NO_BACKUP_NOT_ACKNOWLEDGED`, `ACCESS_DENIED`, `RESOURCE_EXISTS`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn create_key(
        &self,
        request: &RequestContext,
        create: CreateKey,
    ) -> Result<KeyDescription, ServiceError> {
        self.mutate(request, create).await
    }
}

impl Mutation for CreateKey {
    type Output = KeyDescription;
    type Basis = ();

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
        inner.permit::<authz::CreateKey>(request, Target::key(&self.name), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_owner(&self.owner)?;
        fields::check_usage(&self.usage)?;
        fields::check_cryptoperiod(self.cryptoperiod)?;
        fields::check_recipient_usage(self.recipient_usage_period(), self.cryptoperiod)?;
        fields::check_labels(&self.labels)?;
        fields::check_rotation(self.rotation_period, self.cryptoperiod)?;
        if self.protection == Protection::HsmResident && !self.acknowledge_no_backup {
            return Err(ServiceError::NoBackupNotAcknowledged);
        }
        Ok(canonical(self))
    }

    async fn basis(
        &self,
        inner: &Inner,
        _trail: &mut Trail,
    ) -> Result<(Subject, ()), ServiceError> {
        // Seen early, so that no key is generated in vain; the store decides in the end.
        let by_name = KeyRef::Name(self.name.clone());
        let known = inner.store.key(by_name, VersionChoice::Primary).await;
        if inner.keyring.stored(known)?.is_some() {
            return Err(ServiceError::ResourceExists { name: self.name.clone() });
        }
        inner.check_no_alias(&self.name).await?;
        let subject = Subject {
            kind: IntentKind::CreateKey,
            key_name: self.name.clone(),
            key_uid: KeyUid::from_random(inner.draw()?),
            version: KeyVersion::FIRST,
            makes: Some(self.protection),
            stale: Vec::new(),
        };
        Ok((subject, ()))
    }

    async fn apply(self, change: &mut Change<'_>, (): ()) -> Result<KeyDescription, Failure> {
        let (version, counter) = change.generate("created").await?;
        change.create_key(self, version, counter, None).await
    }
}

impl Change<'_> {
    /// Writes a new key with its first version; `import_job` is used up by it.
    pub(super) async fn create_key(
        &mut self,
        create: CreateKey,
        version: VersionRow,
        counter: CounterRow,
        import_job: Option<Sealed<ImportJobRow>>,
    ) -> Result<KeyDescription, Failure> {
        let change = self;
        let now = version.create_time;
        let recipient_usage_period = create.recipient_usage_period();
        let key = KeyRow {
            uid: change.intent.key_uid,
            name: create.name.clone(),
            purpose: create.purpose,
            protection: create.protection,
            state: KeyState::Enabled,
            destruction: None,
            owner: create.owner,
            sensitivity: create.sensitivity,
            usage: create.usage,
            cryptoperiod: create.cryptoperiod,
            recipient_usage_period,
            labels: create.labels,
            create_time: now,
            update_time: now,
            revision: Revision::FIRST,
            primary: KeyVersion::FIRST,
            latest: KeyVersion::FIRST,
            consumers: 0,
            rotation: create.rotation_period.map(|period| {
                Rotation::plan(period, now, change.intent.key_uid, KeyVersion::FIRST)
            }),
        };
        let description = describe_key(&key, &version, now);
        let key = change.seal(key).await?;
        let version = change.seal(version).await?;
        let counter = change.seal(counter).await?;
        let tenant = create.name.tenant();
        // Only now: keys of one tenant may be generated side by side.
        let _lock = change.inner.lock_tenant(tenant).await?;
        let history = vec![moved(None, &version.row)];
        let import_job = match import_job {
            // It may have another MAC by now, or be gone: keys are imported side by side.
            Some(job) => Some(change.inner.import_job_still(&job.row).await?),
            None => None,
        };
        let removed: Vec<_> = import_job.iter().map(|job| job.mac).collect();
        let uses_job = import_job.is_some();
        let rows = RowChanges { added: &[key.mac, version.mac], removed: &removed, history };
        let closing = change.closing(tenant, rows, &description).await?;
        let new = NewKey { key, version, counter, import_job };
        let committed = change.inner.store.create_key(new, closing).await;
        if committed == Err(StoreError::NameTaken) {
            change.inner.check_no_alias(&create.name).await?;
            return Err(Failure::Undo(ServiceError::ResourceExists { name: create.name }));
        }
        // Given up, or expired, since it was read: keys are imported side by side.
        if uses_job && committed == Err(StoreError::NotFound) {
            return Err(Failure::Undo(ServiceError::ImportJobLost));
        }
        change.settle(committed).await?;
        Ok(description)
    }
}

impl Change<'_> {
    /// Says what the HSM is to make for the intent.
    pub(super) fn key_spec(&self) -> KeySpec {
        let intent = self.intent;
        KeySpec {
            key_uid: intent.key_uid,
            version: intent.version,
            generation: self.inner.keyring.config().generation,
            protection: intent.protection,
            resident_id: intent.resident_id,
        }
    }

    /// Generates the key of an intent and makes the rows of its version, ACTIVE, with the check value as first invocation.
    ///
    /// The provider has self-tested the key, so PRE_ACTIVATION ends in the transaction that writes the row.
    pub(super) async fn generate(
        &mut self,
        reason: &str,
    ) -> Result<(VersionRow, CounterRow), ServiceError> {
        let (spec, inner) = (self.key_spec(), self.inner);
        let start = inner.clock.monotonic();
        let generated = inner.hsm.generate_key(spec, self.request.deadline).await;
        self.trail.timing = inner.timing_since(start);
        let generated = generated.map_err(|error| inner.device(error))?;
        self.first_rows(generated, reason, Origin::Generated)
    }

    /// Makes the rows of a version that the HSM has made, ACTIVE.
    pub(super) fn first_rows(
        &self,
        generated: GeneratedKey,
        reason: &str,
        origin: Origin,
    ) -> Result<(VersionRow, CounterRow), ServiceError> {
        let (intent, inner) = (self.intent, self.inner);
        let GeneratedKey { wrapped, check, key: _ } = generated;
        let material = match (intent.protection, wrapped) {
            (Protection::HsmWrapped, Some(blob)) => Material::Wrapped(blob),
            (Protection::HsmResident, None) => Material::Resident(intent.resident_id),
            (Protection::HsmWrapped, None) | (Protection::HsmResident, Some(_)) => {
                return Err(ServiceError::Bug { reason: "the hsm gave another protection" });
            }
        };
        let now = inner.clock.now();
        let version = VersionRow {
            key_uid: intent.key_uid,
            version: intent.version,
            state: VersionState::Active,
            material,
            check,
            origin,
            create_time: now,
            state_time: now,
            state_reason: reason.into(),
            state_actor: (&*self.request.principal.id).into(),
            activate_time: Some(now),
            deactivate_time: None,
            destruction: None,
            revision: Revision::FIRST,
        };
        let counter = CounterRow {
            key_uid: intent.key_uid,
            version: intent.version,
            leased: origin.check_invocations(),
            revision: Revision::FIRST,
        };
        Ok((version, counter))
    }
}

impl CreateKey {
    /// Returns the recipient-usage period that was asked for, or that of SP 800-57.
    fn recipient_usage_period(&self) -> Duration {
        self.recipient_usage_period
            .unwrap_or_else(|| self.cryptoperiod.saturating_add(DEFAULT_RECIPIENT_EXTENSION))
    }
}

pub(super) fn canonical(create: &CreateKey) -> CanonicalWriter {
    let CreateKey {
        name,
        purpose,
        protection,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        recipient_usage_period,
        labels,
        rotation_period,
        acknowledge_no_backup,
        request_id: _,
    } = create;
    let fixed = CanonicalWriter::new(b"fields")
        .text(&name.to_string())
        .text(purpose.as_str())
        .text(protection.as_str())
        .text(owner)
        .text(sensitivity.as_str())
        .text(usage)
        .number(cryptoperiod.as_secs())
        .optional(recipient_usage_period.map(|period| period.as_secs()))
        .optional(rotation_period.map(|period| period.as_secs()))
        .number((*acknowledge_no_backup).into());
    fields::write_labels(fixed, labels)
}

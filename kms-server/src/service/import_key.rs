//! ImportKey and ImportKeyVersion: a key whose owner sealed it to an import job becomes a new key, or the staged version of one.
//!
//! The HSM opens it; here it is only bytes. One that everybody knows is found out by its check value, before the HSM sees it.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyUid, KeyVersion, RequestId};
use kms_core::import::ImportCheck;
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyState, MAX_REASON_BYTES, Origin, Sealed, VersionRow};
use kms_hsm::{ImportKeySpec, KeyImport};

use super::change::{Change, Failure};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::rotate_key::succession_of;
use super::stage_key_version::check_activate_time;
use super::trail::Trail;
use super::{
    ImportKey, ImportKeyVersion, KeyDescription, RequestContext, SealedKey, ServiceError, Staged,
};
use crate::authz::{self, Target};
use crate::store::{IntentKind, KeyRef, VersionChoice};

/// How the history of an imported version begins.
const IMPORTED: &str = "imported: ";

impl Kms {
    /// Imports a key.
    ///
    /// # Errors
    /// As for [`Kms::create_key`], and `IMPORT_JOB_NOT_FOUND`, `IMPORT_JOB_EXPIRED`, `IMPORT_JOB_LOST`, `IMPORT_JOB_TARGET`,
    /// `IMPORT_METHOD_REFUSED`, `IMPORT_KEY_WEAK`, which leave the job as it is; `IMPORT_MATERIAL_INVALID`,
    /// `IMPORT_KEY_LENGTH`, `IMPORT_CHECK_MISMATCH`, which use it up.
    pub async fn import_key(
        &self,
        request: &RequestContext,
        import: ImportKey,
    ) -> Result<KeyDescription, ServiceError> {
        let told = format!("import job {}", import.sealed.job.job_id());
        self.mutate(request, ImportNew(import, told)).await
    }

    /// Imports the version that is to be the next primary.
    ///
    /// # Errors
    /// As for [`Kms::stage_key_version`] and [`Kms::import_key`].
    pub async fn import_key_version(
        &self,
        request: &RequestContext,
        import: ImportKeyVersion,
    ) -> Result<Staged, ServiceError> {
        let told = format!("{} [import job {}]", import.stage.reason, import.sealed.job.job_id());
        self.mutate(request, ImportVersion(import, told)).await
    }
}

impl SealedKey {
    /// Writes it, for request hashes. The sealed bytes are left out: they are others each time a key is sealed, so that nobody
    /// could repeat a request whose answer was lost. Which key it is, the check value says.
    fn write(&self, out: CanonicalWriter) -> CanonicalWriter {
        let Self { job, wrapped: _, check } = self;
        out.text(&job.to_string()).bytes(&check.to_bytes())
    }
}

impl Inner {
    /// Reads the job of an import, and looks whether it can be used for it.
    async fn import_job_for(
        &self,
        sealed: &SealedKey,
    ) -> Result<Sealed<ImportJobRow>, ServiceError> {
        let job = self.import_job(&sealed.job).await?;
        let row = &job.row;
        if row.expire_time <= self.clock.now() {
            return Err(ServiceError::ImportJobExpired { time: row.expire_time });
        }
        self.check_import_method(row.method)?;
        let length = row.method.sealed_bytes(row.size);
        if sealed.wrapped.len() != length {
            let text = format!("must be {length} bytes, as {} makes them", row.method);
            return Err(ServiceError::field("wrapped_key", text));
        }
        if sealed.check.is_of_weak_key(&sealed.job.to_string()) {
            return Err(ServiceError::ImportKeyWeak);
        }
        Ok(job)
    }
}

impl Change<'_> {
    /// Has the HSM open a sealed key, and makes the rows of its version, ACTIVE.
    async fn import(
        &mut self,
        sealed: SealedKey,
        job: &ImportJobRow,
        reason: &str,
    ) -> Result<(VersionRow, CounterRow), ServiceError> {
        let SealedKey { job: name, wrapped, check } = sealed;
        let import = KeyImport {
            spec: self.key_spec(),
            job: ImportKeySpec { id: job.id, size: job.size, hash: job.method.hash() },
            method: job.method,
            wrapped,
            check,
            check_aad: ImportCheck::aad(&name.to_string()),
        };
        let inner = self.inner;
        let start = inner.clock.monotonic();
        let imported = inner.hsm.import_key(import, self.request.deadline).await;
        self.trail.timing = inner.timing_since(start);
        let imported = imported.map_err(|error| inner.device(error))?;
        self.first_rows(imported, reason, Origin::Imported)
    }
}

/// What is asked for, and what the audit record has as its reason: the job.
struct ImportNew(ImportKey, String);

impl Mutation for ImportNew {
    type Output = KeyDescription;
    type Basis = Sealed<ImportJobRow>;

    fn trail(&self) -> Trail {
        Trail::key(&self.0.create.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.0.create.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.1)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(&self.0.create.name);
        inner.permit::<authz::ImportKey>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let ImportKey { create, sealed } = &self.0;
        if create.name != *sealed.job.key() {
            return Err(ServiceError::field("import_job", "must be a job of this key"));
        }
        Ok(sealed.write(create.fields()?))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let job = inner.import_job_for(&self.0.sealed).await?;
        let (subject, ()) = self.0.create.basis(inner, trail).await?;
        // A repeat of a uid would be a key with two rows, which the store refuses; reserved ones are random.
        let by_uid = inner.store.key(KeyRef::Uid(job.row.key_uid), VersionChoice::Primary).await;
        if inner.keyring.stored(by_uid)?.is_some() {
            return Err(ServiceError::ImportJobTarget);
        }
        let key_uid: KeyUid = job.row.key_uid;
        let version = KeyVersion::FIRST;
        Ok((Subject { kind: IntentKind::ImportKey, key_uid, version, ..subject }, job))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        job: Self::Basis,
    ) -> Result<KeyDescription, Failure> {
        let ImportKey { create, sealed } = self.0;
        let reason = format!("{IMPORTED}job {}", sealed.job.job_id());
        let (version, counter) = change.import(sealed, &job.row, &reason).await?;
        change.create_key(create, version, counter, Some(job)).await
    }
}

/// What is asked for, and the reason as the audit record has it: with the job.
struct ImportVersion(ImportKeyVersion, String);

impl Mutation for ImportVersion {
    type Output = Staged;
    type Basis = (Turn, Sealed<ImportJobRow>);

    fn trail(&self) -> Trail {
        Trail::key(&self.0.stage.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.0.stage.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.1)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(&self.0.stage.name);
        inner.permit::<authz::ImportKeyVersion>(request, target, trail)?;
        if self.0.stage.activate_time.is_some() {
            // The server activates it at its date, on this word.
            inner.permit::<authz::ActivateKeyVersion>(request, target, trail)?;
        }
        Ok(())
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let ImportKeyVersion { stage, sealed } = &self.0;
        fields::check_reason(&stage.reason, 1)?;
        if stage.reason.len() > MAX_REASON_BYTES - IMPORTED.len() {
            return Err(ServiceError::field("reason", "must be 1 to 246 bytes"));
        }
        if stage.name != *sealed.job.key() {
            return Err(ServiceError::field("import_job", "must be a job of this key"));
        }
        let out = CanonicalWriter::new(b"fields").text(&stage.name.to_string()).text(&stage.reason);
        let out = match stage.activate_time {
            Some(time) => out.signed(time.as_unix_ms()),
            None => out.bytes(&[]),
        };
        Ok(sealed.write(out))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let ImportKeyVersion { stage, sealed } = &self.0;
        check_activate_time(stage.activate_time, inner.clock.now())?;
        let turn = inner.turn(&stage.name, VersionChoice::Primary).await?;
        let key = &turn.fresh.key;
        trail.key_uid = Some(key.row.uid);
        if key.row.state == KeyState::Disabled {
            return Err(ServiceError::KeyDisabled);
        }
        let job = inner.import_job_for(sealed).await?;
        if job.row.key_uid != key.row.uid {
            return Err(ServiceError::ImportJobTarget);
        }
        if let Some(staged) = inner.staged(key).await? {
            return Err(ServiceError::VersionStaged { version: staged.row.version });
        }
        let mut subject = succession_of(IntentKind::ImportKeyVersion, &key.row, None)?;
        // The primary stays what it is, and loaded.
        subject.stale = vec![subject.version];
        Ok((subject, (turn, job)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, job): Self::Basis,
    ) -> Result<Staged, Failure> {
        let ImportKeyVersion { stage, sealed } = self.0;
        let reason = format!("{IMPORTED}{}", stage.reason);
        let made = change.import(sealed, &job.row, &reason).await?;
        change.stage(&turn, made, stage.activate_time, Some(job)).await
    }
}

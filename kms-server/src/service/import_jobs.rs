//! CreateImportJob, DescribeImportJob and ListImportJobs: an RSA key pair of the HSM, to which an owner seals a key.
//!
//! The private key is a token object, so a job outlives a restart. It is used once, whatever comes of it: the HSM layer
//! destroys it with the attempt (docs/adr/0019).

use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::{KeyUid, KeyVersion, RequestId};
use kms_core::import::{ImportMethod, OaepHash};
use kms_core::import_job::{
    ImportJobRow, MAX_IMPORT_JOB_LIFETIME, MAX_IMPORT_JOBS, MAX_PUBLIC_KEY_BYTES,
    MIN_IMPORT_JOB_LIFETIME,
};
use kms_core::key::{KeyState, Protection, Sealed};
use kms_core::name::{ImportJobName, TenantName};
use kms_hsm::ImportKeySpec;

use super::change::{Change, Failure, RowChanges};
use super::kms::{Inner, Kms, TenantLock};
use super::mutation::{Mutation, Subject};
use super::trail::Trail;
use super::{CreateImportJob, ImportJobDescription, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{ImportJobEdit, IntentKind, KeyRef, VersionChoice};

impl Kms {
    /// Creates an import job. It goes on when the caller goes away; a repeat with the same request id gets the result.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `IMPORT_METHOD_REFUSED`, `MECHANISM_UNSUPPORTED`, `IMPORT_JOBS_FULL`,
    /// `HSM_FULL` when those of all tenants are too many, `KEY_DESTROY_SCHEDULED`, `KEY_DESTROYED`, `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn create_import_job(
        &self,
        request: &RequestContext,
        create: CreateImportJob,
    ) -> Result<ImportJobDescription, ServiceError> {
        self.mutate(request, create).await
    }

    /// Lists the import jobs of a tenant by id, all of them: there are at most [`MAX_IMPORT_JOBS`].
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `KEY_INTEGRITY`.
    pub async fn list_import_jobs(
        &self,
        request: &RequestContext,
        tenant: &TenantName,
    ) -> Result<Vec<ImportJobDescription>, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::tenant(tenant);
        let result = inner.list_import_jobs(request, tenant, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Describes an import job.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `IMPORT_JOB_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn describe_import_job(
        &self,
        request: &RequestContext,
        name: &ImportJobName,
    ) -> Result<ImportJobDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::import_job(name);
        let result = inner.describe_import_job(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    async fn describe_import_job(
        &self,
        request: &RequestContext,
        name: &ImportJobName,
        trail: &mut Trail,
    ) -> Result<ImportJobDescription, ServiceError> {
        self.permit::<authz::DescribeImportJob>(request, Target::key(name.key()), trail)?;
        let job = self.import_job(name).await?;
        trail.key_uid = Some(job.row.key_uid);
        describe(job.row)
    }

    async fn list_import_jobs(
        &self,
        request: &RequestContext,
        tenant: &TenantName,
        trail: &mut Trail,
    ) -> Result<Vec<ImportJobDescription>, ServiceError> {
        self.permit::<authz::ListImportJobs>(request, Target::tenant(tenant), trail)?;
        let jobs = self.import_jobs(tenant).await?;
        jobs.into_iter().map(|job| describe(job.row)).collect()
    }

    /// Reads the import jobs of a tenant, verified.
    pub(super) async fn import_jobs(
        &self,
        tenant: &TenantName,
    ) -> Result<Vec<Sealed<ImportJobRow>>, ServiceError> {
        let jobs = self.store.list_import_jobs(tenant.clone()).await;
        let jobs = self.keyring.stored(jobs)?;
        self.keyring.verify_import_jobs(&jobs).await?;
        Ok(jobs)
    }

    /// Reads an import job, verified.
    pub(super) async fn import_job(
        &self,
        name: &ImportJobName,
    ) -> Result<Sealed<ImportJobRow>, ServiceError> {
        let jobs = self.import_jobs(name.key().tenant()).await?;
        let is_meant =
            |job: &Sealed<ImportJobRow>| named(&job.row).is_ok_and(|found| found == *name);
        let missing = || ServiceError::ImportJobNotFound { name: name.clone() };
        jobs.into_iter().find(is_meant).ok_or_else(missing)
    }

    /// Reads a job again as it stands. The caller has the tenant's turn: while the HSM opened what was sealed to it, a root
    /// rollover may have given its row another MAC (`an_import_that_meets_a_root_rollover_makes_its_key`).
    pub(super) async fn import_job_still(
        &self,
        job: &ImportJobRow,
    ) -> Result<Sealed<ImportJobRow>, ServiceError> {
        let jobs = self.import_jobs(job.key.tenant()).await?;
        jobs.into_iter().find(|found| found.row == *job).ok_or(ServiceError::ImportJobLost)
    }

    /// Refuses SHA-1 unless the operator allows it by name.
    pub(super) fn check_import_method(&self, method: ImportMethod) -> Result<(), ServiceError> {
        if method.hash() == OaepHash::Sha1 && !self.allow_rsa_oaep_sha1 {
            return Err(ServiceError::ImportMethodRefused { method });
        }
        Ok(())
    }
}

pub(super) fn named(row: &ImportJobRow) -> Result<ImportJobName, ServiceError> {
    let id = data_encoding::HEXLOWER.encode(&row.id.0);
    ImportJobName::new(row.key.clone(), &id)
        .map_err(|_| ServiceError::Bug { reason: "a stored import job has no valid id" })
}

pub(super) fn describe(row: ImportJobRow) -> Result<ImportJobDescription, ServiceError> {
    let name = named(&row)?;
    let ImportJobRow {
        id: _,
        key: _,
        key_uid: _,
        method,
        size,
        public_key,
        create_time,
        expire_time,
        actor,
    } = row;
    Ok(ImportJobDescription { name, method, size, public_key, create_time, expire_time, actor })
}

fn check_lifetime(life: Duration) -> Result<(), ServiceError> {
    if (MIN_IMPORT_JOB_LIFETIME..=MAX_IMPORT_JOB_LIFETIME).contains(&life)
        && life.subsec_nanos() == 0
    {
        return Ok(());
    }
    Err(ServiceError::field("life", "must be 5 minutes to 72 hours, in whole seconds"))
}

impl Mutation for CreateImportJob {
    type Output = ImportJobDescription;
    type Basis = ();

    fn trail(&self) -> Trail {
        Trail::key(&self.key)
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
        inner.permit::<authz::CreateImportJob>(request, Target::key(&self.key), trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let Self { key, method, size, lifetime, request_id: _ } = self;
        check_lifetime(*lifetime)?;
        Ok(CanonicalWriter::new(b"fields")
            .text(&key.to_string())
            .text(method.as_str())
            .number(size.bits().into())
            .number(lifetime.as_secs()))
    }

    async fn basis(
        &self,
        inner: &Inner,
        _trail: &mut Trail,
    ) -> Result<(Subject, ()), ServiceError> {
        inner.check_import_method(self.method)?;
        // Seen early, so that no key pair is generated in vain; looked at again under the turn.
        inner.check_room_for_import_job(self.key.tenant()).await?;
        let by_name = KeyRef::Name(self.key.clone());
        let known = inner.store.key(by_name, VersionChoice::Primary).await;
        let key_uid = match inner.keyring.stored(known)? {
            Some(known) => {
                inner.keyring.verify_rows(std::slice::from_ref(&known.key), &[], &[]).await?;
                // Nothing can be imported to what is on its way to its end.
                match known.key.row.state {
                    KeyState::Enabled | KeyState::Disabled => known.key.row.uid,
                    KeyState::DestroyScheduled => return Err(ServiceError::KeyDestroyScheduled),
                    KeyState::Destroyed => return Err(ServiceError::KeyDestroyed),
                }
            }
            None => KeyUid::from_random(inner.draw()?),
        };
        let subject = Subject {
            kind: IntentKind::CreateImportJob,
            key_name: self.key.clone(),
            key_uid,
            version: KeyVersion::FIRST,
            // The private key is a token object.
            makes: Some(Protection::HsmResident),
            stale: Vec::new(),
        };
        Ok((subject, ()))
    }

    async fn apply(self, change: &mut Change<'_>, (): ()) -> Result<ImportJobDescription, Failure> {
        let (inner, intent) = (change.inner, change.intent);
        let spec =
            ImportKeySpec { id: intent.resident_id, size: self.size, hash: self.method.hash() };
        let start = inner.clock.monotonic();
        let made = inner.hsm.create_import_key(spec, change.request.deadline).await;
        change.trail.timing = inner.timing_since(start);
        let public_key = made.map_err(|error| inner.device(error))?;
        if public_key.len() > MAX_PUBLIC_KEY_BYTES {
            return Err(ServiceError::Bug { reason: "a public key over its bound" }.into());
        }
        let now = inner.clock.now();
        let row = ImportJobRow {
            id: intent.resident_id,
            key: self.key.clone(),
            key_uid: intent.key_uid,
            method: self.method,
            size: self.size,
            public_key,
            create_time: now,
            expire_time: now.after(self.lifetime),
            actor: (&*change.request.principal.id).into(),
        };
        let description = describe(row.clone())?;
        let job = change.seal(row).await?;
        let tenant = self.key.tenant();
        // Only now: key pairs take seconds.
        let _turn: TenantLock = inner.lock_tenant(tenant).await?;
        // Jobs of all tenants are counted together: no other comes between the last look and the row.
        let _room = inner.import_job_room.lock().await;
        inner.check_room_for_import_job(tenant).await?;
        let rows = RowChanges { added: &[job.mac], removed: &[], history: Vec::new() };
        let closing = change.closing(tenant, rows, &description).await?;
        let committed = inner.store.change_import_jobs(ImportJobEdit::Add(job), closing).await;
        change.settle(committed).await?;
        Ok(description)
    }
}

impl Inner {
    async fn check_room_for_import_job(&self, tenant: &TenantName) -> Result<(), ServiceError> {
        let jobs = self.import_jobs(tenant).await?;
        if jobs.len() >= MAX_IMPORT_JOBS {
            return Err(ServiceError::ImportJobsFull);
        }
        self.check_room_on_token().await
    }

    /// Each open job is an object on the token, whoever's it is. It says nothing of other tenants to the caller.
    async fn check_room_on_token(&self) -> Result<(), ServiceError> {
        let most = self.max_open_import_jobs;
        // All of them expire some day.
        let open = self.store.due_import_jobs(Timestamp::from_unix_ms(i64::MAX), None, most).await;
        let open = self.keyring.stored(open)?;
        if open.rows.len() + open.damaged < most as usize {
            return Ok(());
        }
        let detail = format!("{most} import jobs of all tenants are open, which is the most");
        tracing::warn!(detail, "an import job was refused");
        Err(ServiceError::HsmFull { detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_taken_at_their_bounds_and_refused_one_past() {
        let second = Duration::from_secs(1);
        assert!(check_lifetime(MIN_IMPORT_JOB_LIFETIME).is_ok());
        assert!(check_lifetime(MIN_IMPORT_JOB_LIFETIME.saturating_sub(second)).is_err());
        assert!(check_lifetime(MAX_IMPORT_JOB_LIFETIME).is_ok());
        assert!(check_lifetime(MAX_IMPORT_JOB_LIFETIME + second).is_err());
        assert!(check_lifetime(MIN_IMPORT_JOB_LIFETIME + Duration::from_millis(1)).is_err());
    }
}

//! CancelImportJob, and what the server does by itself with a job that has expired: the private key goes, then the row.

use std::sync::Arc;

use kms_core::canonical::CanonicalWriter;
use kms_core::id::{KeyVersion, RequestId};
use kms_core::import_job::ImportJobRow;
use kms_core::key::Sealed;
use kms_core::name::ImportJobName;

use super::change::{Change, Failure, RowChanges};
use super::fields;
use super::import_jobs::{describe, named};
use super::kms::{Inner, Kms, TenantLock};
use super::mutation::{Mutation, Subject};
use super::reconcile::{MAX_DUE, Reconciled};
use super::trail::Trail;
use super::{CancelImportJob, ImportJobDescription, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{ImportJobEdit, IntentKind, JobPosition};

const EXPIRE: &str = "internal/ExpireImportJob";

impl Kms {
    /// Gives an import job up: its private key is destroyed. Returns what it was.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `IMPORT_JOB_NOT_FOUND`, `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the
    /// layers below cannot do.
    pub async fn cancel_import_job(
        &self,
        request: &RequestContext,
        cancel: CancelImportJob,
    ) -> Result<ImportJobDescription, ServiceError> {
        let CancelImportJob { name, reason, request_id } = cancel;
        let cause = Cause::Caller { reason, request_id };
        self.mutate(request, Cancellation { name, cause }).await
    }
}

impl Inner {
    /// Takes import jobs away that have expired, at most [`MAX_DUE`].
    pub(super) async fn expire_import_jobs(
        self: &Arc<Self>,
        done: &mut Reconciled,
    ) -> Result<(), ServiceError> {
        let cursor = &self.due.import_jobs;
        let due = self.store.due_import_jobs(self.clock.now(), cursor.after(), MAX_DUE).await?;
        cursor.read(&due, MAX_DUE, |due| {
            Some(JobPosition { time: due.row.expire_time, id: due.row.id })
        });
        for due in self.readable("import jobs", due, done) {
            let request = self.internal_request(EXPIRE)?;
            let expiry = Cancellation { name: named(&due.row)?, cause: Cause::Expired };
            let mut trail = expiry.trail();
            let result = self.mutate(&request, expiry, &mut trail).await;
            match result {
                Ok(_) => done.import_jobs += 1,
                // Used or given up meanwhile.
                Err(ServiceError::ImportJobNotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "an import job that has expired is still there");
                    done.failed += 1;
                }
            }
        }
        Ok(())
    }
}

/// The end of an import job that was not used.
struct Cancellation {
    name: ImportJobName,
    cause: Cause,
}

/// Why it ends.
enum Cause {
    /// A caller wants it.
    Caller { reason: String, request_id: RequestId },
    /// Its time is over.
    Expired,
}

impl Mutation for Cancellation {
    type Output = ImportJobDescription;
    type Basis = (Sealed<ImportJobRow>, TenantLock);

    fn trail(&self) -> Trail {
        Trail::import_job(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        match &self.cause {
            Cause::Caller { request_id, .. } => Some(*request_id),
            Cause::Expired => None,
        }
    }

    fn reason(&self) -> Option<&str> {
        match &self.cause {
            Cause::Caller { reason, .. } => Some(reason),
            Cause::Expired => None,
        }
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.name.key());
        inner.permit::<authz::CancelImportJob>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let out = CanonicalWriter::new(b"fields").text(&self.name.to_string());
        match &self.cause {
            Cause::Caller { reason, .. } => {
                fields::check_reason(reason, 1)?;
                Ok(out.text(reason))
            }
            Cause::Expired => Ok(out),
        }
    }

    async fn basis(
        &self,
        inner: &Inner,
        _trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        // Held until the end: nobody imports with a job that goes.
        let turn = inner.lock_tenant(self.name.key().tenant()).await?;
        let job = inner.import_job(&self.name).await?;
        let subject = Subject {
            kind: IntentKind::CancelImportJob,
            key_name: self.name.key().clone(),
            key_uid: job.row.key_uid,
            version: KeyVersion::FIRST,
            makes: None,
            stale: Vec::new(),
        };
        Ok((subject, (job, turn)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (job, _turn): Self::Basis,
    ) -> Result<ImportJobDescription, Failure> {
        let inner = change.inner;
        let description = describe(job.row.clone())?;
        let rows = RowChanges { added: &[], removed: &[job.mac], history: Vec::new() };
        // Before the object goes: this compares the manifest with the log.
        let closing = change.closing(self.name.key().tenant(), rows, &description).await?;
        // A crash after this leaves a row without its object: IMPORT_JOB_LOST, until it has expired.
        let destroyed = inner.hsm.destroy_import_key(job.row.id, change.request.deadline).await;
        destroyed.map_err(|error| inner.device(error))?;
        let committed = inner.store.change_import_jobs(ImportJobEdit::Remove(job), closing).await;
        change.settle(committed).await?;
        Ok(description)
    }
}

//! KeyService: import jobs, and keys that are imported.

use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::import::ImportCheck;
use kms_core::name::{ImportJobName, KeyName, TenantName};
use kms_proto::v1;

use super::keys::{NewKey, duration, once, timestamp};
use super::{Client, ClientError};

/// What a new import job is.
#[derive(Clone, Debug)]
pub struct NewImportJob {
    /// The key that it is for.
    pub key: KeyName,
    /// How that will be sealed.
    pub method: v1::ImportMethod,
    /// The size of the RSA key.
    pub rsa_bits: u32,
    /// How long it can be used.
    pub lifetime: Duration,
}

/// A key, sealed to a job.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// The job.
    pub job: ImportJobName,
    /// The sealed key.
    pub wrapped: Vec<u8>,
    /// Its check value.
    pub check: ImportCheck,
}

impl Client {
    /// Creates an import job.
    pub async fn create_import_job(
        &self,
        job: NewImportJob,
        id: RequestId,
    ) -> Result<v1::ImportJob, ClientError> {
        let request = v1::CreateImportJobRequest {
            parent: job.key.to_string(),
            method: job.method.into(),
            rsa_bits: job.rsa_bits,
            lifetime: Some(duration(job.lifetime)),
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().create_import_job(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Describes an import job.
    pub async fn describe_import_job(
        &self,
        name: &ImportJobName,
    ) -> Result<v1::ImportJob, ClientError> {
        let request = v1::DescribeImportJobRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().describe_import_job(request).await }).await
    }

    /// Lists the import jobs of a tenant.
    pub async fn list_import_jobs(
        &self,
        tenant: &TenantName,
    ) -> Result<Vec<v1::ImportJob>, ClientError> {
        let request = v1::ListImportJobsRequest { parent: tenant.to_string() };
        let send = |request| async { self.keys().list_import_jobs(request).await };
        Ok(self.call(request, send).await?.import_jobs)
    }

    /// Gives an import job up.
    pub async fn cancel_import_job(
        &self,
        name: &ImportJobName,
        reason: String,
        id: RequestId,
    ) -> Result<v1::ImportJob, ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let request = v1::CancelImportJobRequest { name, reason, request_id };
        let send = |request| async { self.keys().cancel_import_job(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Imports a key; its name is that of the job's key.
    pub async fn import_key(
        &self,
        key: NewKey,
        sealed: SealedKey,
        id: RequestId,
    ) -> Result<v1::Key, ClientError> {
        let request = v1::ImportKeyRequest {
            import_job: sealed.job.to_string(),
            wrapped_key: sealed.wrapped.into(),
            purpose: v1::Purpose::Wrap.into(),
            protection: key.protection.into(),
            owner: key.owner,
            sensitivity: key.sensitivity.into(),
            usage: key.usage,
            cryptoperiod: Some(duration(key.cryptoperiod)),
            labels: key.labels.into_iter().collect(),
            request_id: id.to_string(),
            rotation_period: key.rotation_period.map(duration),
            recipient_usage_period: key.recipient_usage_period.map(duration),
            acknowledge_no_backup: key.acknowledge_no_backup,
            check_value: sealed.check.to_bytes().to_vec().into(),
        };
        let send = |request| async { self.keys().import_key(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Imports the version that is to be the next primary.
    pub async fn import_key_version(
        &self,
        sealed: SealedKey,
        activate_time: Option<Timestamp>,
        reason: String,
        id: RequestId,
    ) -> Result<(v1::Key, v1::KeyVersion), ClientError> {
        let request = v1::ImportKeyVersionRequest {
            import_job: sealed.job.to_string(),
            wrapped_key: sealed.wrapped.into(),
            check_value: sealed.check.to_bytes().to_vec().into(),
            activate_time: activate_time.map(timestamp),
            reason,
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().import_key_version(request).await };
        match self.mutate(once(id), request, send).await? {
            v1::ImportKeyVersionResponse { key: Some(key), version: Some(version) } => {
                Ok((key, version))
            }
            _ => Err(ClientError::Answer("an imported version without its key or version")),
        }
    }
}

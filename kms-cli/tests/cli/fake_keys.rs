//! The scripted server's answers about keys.

use std::sync::OnceLock;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use kms_core::import::ImportCheck;
use kms_proto::v1;
use kms_proto::v1::key_service_server::KeyService;
use tonic::{Request, Response, Status};

use super::fake::{Answer, Service, key, unwritten};

#[tonic::async_trait]
impl KeyService for Service {
    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(key(format!("{}/keys/{}", request.parent, request.key_id))))
    }

    async fn describe_key(&self, request: Request<v1::DescribeKeyRequest>) -> Answer<v1::Key> {
        drop(self.seen()?);
        let name = request.into_inner().name;
        let owner = if name.contains("payroll") { "finance" } else { "kms bench" };
        Ok(Response::new(v1::Key { owner: owner.into(), ..key(name) }))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Answer<v1::ListKeysResponse> {
        drop(self.seen()?);
        // Three keys, at most two on a page; an empty one before them when the filter says so.
        let request = request.into_inner();
        self.0.lock().unwrap().lists.push((request.filter.clone(), request.order_by.clone()));
        if request.filter.contains("far") && request.page_token.is_empty() {
            let next_page_token = "0".into();
            return Ok(Response::new(v1::ListKeysResponse { keys: Vec::new(), next_page_token }));
        }
        let first: u32 = request.page_token.parse().unwrap_or(0);
        let end = 3.min(first + request.page_size.min(2));
        let keys = (first..end).map(|n| key(format!("{}/keys/k{n}", request.parent))).collect();
        let next_page_token = if end < 3 { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListKeysResponse { keys, next_page_token }))
    }

    async fn update_key(&self, request: Request<v1::UpdateKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        self.0.lock().unwrap().masks.push(request.update_mask.unwrap_or_default().paths);
        Ok(Response::new(v1::Key { revision: request.revision + 1, ..key(request.name) }))
    }

    async fn rotate_key(
        &self,
        request: Request<v1::RotateKeyRequest>,
    ) -> Answer<v1::RotateKeyResponse> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let version = v1::KeyVersion { version: 3, state: 2, primary: true, ..Default::default() };
        let (key, version) = (Some(key(request.name)), Some(version));
        Ok(Response::new(v1::RotateKeyResponse { key, version }))
    }

    async fn describe_key_version(
        &self,
        request: Request<v1::DescribeKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        drop(self.seen()?);
        let name = request.into_inner().name;
        Ok(Response::new(v1::KeyVersion { name, version: 3, state: 4, ..Default::default() }))
    }

    async fn list_key_versions(
        &self,
        _: Request<v1::ListKeyVersionsRequest>,
    ) -> Answer<v1::ListKeyVersionsResponse> {
        unwritten()
    }

    async fn suspend_key_version(
        &self,
        request: Request<v1::SuspendKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 3, ..Default::default() }))
    }

    async fn resume_key_version(
        &self,
        request: Request<v1::ResumeKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 2, ..Default::default() }))
    }

    async fn deactivate_key_version(
        &self,
        request: Request<v1::DeactivateKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 4, ..Default::default() }))
    }

    async fn stage_key_version(
        &self,
        request: Request<v1::StageKeyVersionRequest>,
    ) -> Answer<v1::StageKeyVersionResponse> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let activate_time = request.activate_time;
        let version = v1::KeyVersion { version: 4, state: 1, activate_time, ..Default::default() };
        let (key, version) = (Some(key(request.name)), Some(version));
        Ok(Response::new(v1::StageKeyVersionResponse { key, version }))
    }

    async fn activate_key_version(
        &self,
        request: Request<v1::ActivateKeyVersionRequest>,
    ) -> Answer<v1::ActivateKeyVersionResponse> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let name = request.name.clone();
        let version =
            v1::KeyVersion { name, version: 4, state: 2, primary: true, ..Default::default() };
        let (key, version) = (Some(key(request.name)), Some(version));
        Ok(Response::new(v1::ActivateKeyVersionResponse { key, version }))
    }

    async fn discard_key_version(
        &self,
        request: Request<v1::DiscardKeyVersionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let state = v1::VersionState::Destroyed.into();
        Ok(Response::new(v1::KeyVersion { name: request.name, state, ..Default::default() }))
    }

    async fn create_import_job(
        &self,
        request: Request<v1::CreateImportJobRequest>,
    ) -> Answer<v1::ImportJob> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let seconds = request.lifetime.map_or(0, |lifetime| lifetime.seconds);
        Ok(Response::new(v1::ImportJob {
            name: format!("{}/importJobs/0a", request.parent),
            method: request.method,
            rsa_bits: request.rsa_bits,
            public_key: b"a public key".to_vec().into(),
            expire_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        }))
    }

    async fn describe_import_job(
        &self,
        request: Request<v1::DescribeImportJobRequest>,
    ) -> Answer<v1::ImportJob> {
        drop(self.seen()?);
        let name = request.into_inner().name;
        let public_key = import_key_pair().1.clone().into();
        let method = v1::ImportMethod::RsaOaepSha256.into();
        Ok(Response::new(v1::ImportJob { name, method, public_key, ..Default::default() }))
    }

    async fn list_import_jobs(
        &self,
        request: Request<v1::ListImportJobsRequest>,
    ) -> Answer<v1::ListImportJobsResponse> {
        let name = format!("{}/keys/k/importJobs/0a", request.into_inner().parent);
        let import_jobs = vec![v1::ImportJob { name, method: 4, ..Default::default() }];
        Ok(Response::new(v1::ListImportJobsResponse { import_jobs }))
    }

    async fn cancel_import_job(
        &self,
        request: Request<v1::CancelImportJobRequest>,
    ) -> Answer<v1::ImportJob> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::ImportJob { name: request.name, ..Default::default() }))
    }

    async fn import_key(&self, request: Request<v1::ImportKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let job = request.import_job;
        let usage = opened(&job, &request.wrapped_key, &request.check_value)?;
        let (name, _) = job.split_once("/importJobs/").unwrap();
        Ok(Response::new(v1::Key { usage, ..key(name.to_owned()) }))
    }

    async fn import_key_version(
        &self,
        request: Request<v1::ImportKeyVersionRequest>,
    ) -> Answer<v1::ImportKeyVersionResponse> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let job = request.import_job;
        let usage = opened(&job, &request.wrapped_key, &request.check_value)?;
        let (name, _) = job.split_once("/importJobs/").unwrap();
        let (origin, activate_time) = (2, request.activate_time);
        let version =
            v1::KeyVersion { version: 4, state: 1, origin, activate_time, ..Default::default() };
        let (key, version) = (Some(v1::Key { usage, ..key(name.to_owned()) }), Some(version));
        Ok(Response::new(v1::ImportKeyVersionResponse { key, version }))
    }

    async fn register_consumer(
        &self,
        request: Request<v1::RegisterConsumerRequest>,
    ) -> Answer<v1::Consumer> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let name = format!("{}/consumers/{}", request.parent, request.consumer_id);
        let description = request.description;
        Ok(Response::new(v1::Consumer { name, description, ..Default::default() }))
    }

    async fn list_consumers(
        &self,
        request: Request<v1::ListConsumersRequest>,
    ) -> Answer<v1::ListConsumersResponse> {
        let name = format!("{}/consumers/backup", request.into_inner().parent);
        let description = "storage \u{1b}[31mteam".into();
        let consumers = vec![v1::Consumer { name, description, ..Default::default() }];
        Ok(Response::new(v1::ListConsumersResponse { consumers }))
    }

    async fn remove_consumer(
        &self,
        request: Request<v1::RemoveConsumerRequest>,
    ) -> Answer<v1::Consumer> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::Consumer { name: request.name, ..Default::default() }))
    }

    async fn create_alias(&self, request: Request<v1::CreateAliasRequest>) -> Answer<v1::Alias> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let name = format!("{}/aliases/{}", request.parent, request.alias_id);
        Ok(Response::new(alias(name, request.key, request.reason, 7)))
    }

    async fn update_alias(&self, request: Request<v1::UpdateAliasRequest>) -> Answer<v1::Alias> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let revision = request.revision + 1;
        Ok(Response::new(alias(request.name, request.key, request.reason, revision)))
    }

    async fn delete_alias(&self, request: Request<v1::DeleteAliasRequest>) -> Answer<v1::Alias> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let key = "tenants/t1/keys/k".to_owned();
        Ok(Response::new(alias(request.name, key, request.reason, request.revision)))
    }

    async fn describe_alias(
        &self,
        request: Request<v1::DescribeAliasRequest>,
    ) -> Answer<v1::Alias> {
        let key = "tenants/t1/keys/k".to_owned();
        Ok(Response::new(alias(request.into_inner().name, key, "made".into(), 41)))
    }

    async fn list_aliases(
        &self,
        request: Request<v1::ListAliasesRequest>,
    ) -> Answer<v1::ListAliasesResponse> {
        let request = request.into_inner();
        let key =
            if request.key.is_empty() { format!("{}/keys/k", request.parent) } else { request.key };
        let named = |id: &str| {
            let actor = "\u{1b}[31mofficer".to_owned();
            v1::Alias {
                actor,
                ..alias(format!("{}/aliases/{id}", request.parent), key.clone(), "made".into(), 7)
            }
        };
        let aliases = vec![named("payments"), named("billing")];
        Ok(Response::new(v1::ListAliasesResponse { aliases, next_page_token: String::new() }))
    }

    async fn disable_key(&self, request: Request<v1::DisableKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let state = v1::KeyState::Disabled.into();
        Ok(Response::new(v1::Key { state, primary_version: 0, ..key(request.name) }))
    }

    async fn enable_key(&self, request: Request<v1::EnableKeyRequest>) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let state = v1::KeyState::Enabled.into();
        Ok(Response::new(v1::Key { state, ..key(request.name) }))
    }

    async fn schedule_key_destruction(
        &self,
        request: Request<v1::ScheduleKeyDestructionRequest>,
    ) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let seconds = request.window.map_or(0, |window| window.seconds);
        let state = v1::KeyState::DestroyScheduled.into();
        Ok(Response::new(v1::Key {
            state,
            primary_version: 0,
            destroy_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            destroy_despite_consumers: request.allow_consumers,
            destroy_despite_recent_use: request.allow_recent_use,
            ..key(request.name)
        }))
    }

    async fn cancel_key_destruction(
        &self,
        request: Request<v1::CancelKeyDestructionRequest>,
    ) -> Answer<v1::Key> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let state = v1::KeyState::Disabled.into();
        Ok(Response::new(v1::Key { state, primary_version: 0, ..key(request.name) }))
    }

    async fn compromise_key_version(
        &self,
        request: Request<v1::CompromiseKeyVersionRequest>,
    ) -> Answer<v1::CompromiseKeyVersionResponse> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let version = |name: String, number, state| v1::KeyVersion {
            name,
            version: number,
            state,
            ..Default::default()
        };
        let name = request.name.split("/versions/").next().unwrap_or_default().to_owned();
        let replacement = version(format!("{name}/versions/4"), 4, 2);
        Ok(Response::new(v1::CompromiseKeyVersionResponse {
            version: Some(version(request.name, 3, 5)),
            key: Some(key(name)),
            replacement: Some(replacement),
        }))
    }

    async fn schedule_key_version_destruction(
        &self,
        request: Request<v1::ScheduleKeyVersionDestructionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        let seconds = request.window.map_or(0, |window| window.seconds);
        let destroy_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        let name = request.name;
        Ok(Response::new(v1::KeyVersion { name, state: 6, destroy_time, ..Default::default() }))
    }

    async fn cancel_key_version_destruction(
        &self,
        request: Request<v1::CancelKeyVersionDestructionRequest>,
    ) -> Answer<v1::KeyVersion> {
        let request = request.into_inner();
        self.mutation(&request.request_id).await?;
        Ok(Response::new(v1::KeyVersion { name: request.name, state: 4, ..Default::default() }))
    }

    async fn get_version_usage(
        &self,
        request: Request<v1::GetVersionUsageRequest>,
    ) -> Answer<v1::VersionUsage> {
        drop(self.seen()?);
        let time = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        Ok(Response::new(v1::VersionUsage {
            name: request.into_inner().name,
            state: 4,
            protect: Some(v1::UseTally { count: 7, first_time: time, last_time: time }),
            retirement: 2,
            evidence: vec!["7 ciphertexts".into()],
            blind_spots: vec!["backups".into()],
            ..Default::default()
        }))
    }

    async fn list_key_history(
        &self,
        _: Request<v1::ListKeyHistoryRequest>,
    ) -> Answer<v1::ListKeyHistoryResponse> {
        drop(self.seen()?);
        let entry = |version, old_state, new_state, detail: &str| v1::KeyHistoryEntry {
            version,
            old_state,
            new_state,
            detail: detail.into(),
            actor: "spiffe://t/officer".into(),
            reason: "because".into(),
            ..Default::default()
        };
        let entries =
            vec![entry(1, 0, 2, ""), entry(0, 0, 0, r#"{"owner":["a","b"]}"#), entry(1, 2, 3, "")];
        Ok(Response::new(v1::ListKeyHistoryResponse { entries, next_page_token: String::new() }))
    }
}

/// The key pair of all import jobs of the scripted server: private, and public as DER.
fn import_key_pair() -> &'static (PrivateDecryptingKey, Vec<u8>) {
    static PAIR: OnceLock<(PrivateDecryptingKey, Vec<u8>)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap();
        let public: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let public = public.as_ref().to_vec();
        (private, public)
    })
}

/// What a server can tell of a sealed key: whether its check value is right. In the clear, for the test to see.
fn opened(job: &str, wrapped: &[u8], check: &[u8]) -> Result<String, Status> {
    let private = OaepPrivateDecryptingKey::new(import_key_pair().0.clone()).unwrap();
    let mut key = vec![0; private.min_output_size()];
    let key = private
        .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut key, None)
        .map_err(|_| Status::invalid_argument("it does not open"))?;
    let key: &[u8; 32] = (&*key).try_into().unwrap();
    let check = ImportCheck::from_bytes(check).unwrap();
    let right = ImportCheck::compute(key, check.iv, job).unwrap() == check;
    Ok(format!("{} {right}", String::from_utf8_lossy(key)))
}

fn alias(name: String, key: String, reason: String, revision: u64) -> v1::Alias {
    v1::Alias { name, key, reason, revision, actor: "officer".into(), ..Default::default() }
}

//! The scripted server's answers about keys.

use kms_proto::v1;
use kms_proto::v1::key_service_server::KeyService;
use tonic::{Request, Response};

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
        // Three keys, at most two on a page.
        let request = request.into_inner();
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

//! KeyService: the life of keys. Mutations carry a request id that stays the same over repeats.

use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::name::{ConsumerName, KeyName, TenantName, VersionName};
use kms_proto::v1;
use kms_proto::v1::key_service_client::KeyServiceClient;
use tonic::transport::Channel;

use super::{Client, ClientError, Repeat};

/// The most entries that are asked for in one page; a server gives no more.
pub const MAX_PAGE_SIZE: u32 = 1000;

/// What a new key is.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its name.
    pub name: KeyName,
    /// Who answers for it.
    pub owner: String,
    /// How sensitive the data under it is.
    pub sensitivity: v1::Sensitivity,
    /// What it is for.
    pub usage: String,
    /// How long a version may protect new data.
    pub cryptoperiod: Duration,
    /// How long a version is to process; `None` leaves it to the server.
    pub recipient_usage_period: Option<Duration>,
    /// How long a version is the primary; `None` without rotation by period.
    pub rotation_period: Option<Duration>,
    /// Where its material lives.
    pub protection: v1::Protection,
    /// Whether it is known that a resident key has no backup.
    pub acknowledge_no_backup: bool,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

/// Which keys, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyQuery {
    /// Which; all when empty.
    pub filter: String,
    /// In which order; that of their making when empty.
    pub order_by: String,
}

/// What to change about a key; `None` leaves it.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    /// New owner.
    pub owner: Option<String>,
    /// New sensitivity.
    pub sensitivity: Option<v1::Sensitivity>,
    /// New usage text.
    pub usage: Option<String>,
    /// New cryptoperiod.
    pub cryptoperiod: Option<Duration>,
    /// New recipient-usage period.
    pub recipient_usage_period: Option<Duration>,
    /// New labels, all of them.
    pub labels: Option<Vec<(String, String)>>,
    /// New rotation.
    pub rotation: Option<Rotation>,
    /// Lower the sensitivity also while the destruction of a version is planned.
    pub allow_recent_use: bool,
}

/// What becomes of rotation by period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It ends.
    Off,
    /// Every so long.
    Every(Duration),
}

/// Which way a version goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateChange {
    /// PRE_ACTIVATION to DESTROYED.
    Discard,
    /// ACTIVE to SUSPENDED.
    Suspend,
    /// SUSPENDED back.
    Resume,
    /// To DEACTIVATED.
    Deactivate,
    /// To DESTROY_SCHEDULED.
    ScheduleDestruction(Destruction),
    /// DESTROY_SCHEDULED back.
    CancelDestruction,
}

/// Which way a whole key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStateChange {
    /// To DISABLED.
    Disable,
    /// DISABLED back.
    Enable,
    /// DISABLED to DESTROY_SCHEDULED.
    ScheduleDestruction(Destruction),
    /// DESTROY_SCHEDULED back.
    CancelDestruction,
}

/// A destruction that is to be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destruction {
    /// How long until then.
    pub window: Duration,
    /// Also when it was used of late.
    pub allow_recent_use: bool,
    /// Also when the key has consumers.
    pub allow_consumers: bool,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Token of the next page; empty on the last.
    pub next_page_token: String,
}

impl Client {
    pub(super) fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel())
    }

    /// Creates a key.
    pub async fn create_key(&self, key: NewKey, id: RequestId) -> Result<v1::Key, ClientError> {
        let request = v1::CreateKeyRequest {
            parent: key.name.tenant().to_string(),
            key_id: key.name.key_id().to_owned(),
            purpose: v1::Purpose::Wrap.into(),
            protection: key.protection.into(),
            owner: key.owner,
            sensitivity: key.sensitivity.into(),
            usage: key.usage,
            cryptoperiod: Some(duration(key.cryptoperiod)),
            labels: key.labels.into_iter().collect(),
            rotation_period: key.rotation_period.map(duration),
            recipient_usage_period: key.recipient_usage_period.map(duration),
            acknowledge_no_backup: key.acknowledge_no_backup,
            request_id: id.to_string(),
        };
        self.mutate(once(id), request, |request| async { self.keys().create_key(request).await })
            .await
    }

    /// Describes a key.
    pub async fn describe_key(&self, name: &KeyName) -> Result<v1::Key, ClientError> {
        let request = v1::DescribeKeyRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().describe_key(request).await }).await
    }

    /// Describes a version.
    pub async fn describe_version(
        &self,
        name: &VersionName,
    ) -> Result<v1::KeyVersion, ClientError> {
        let request = v1::DescribeKeyVersionRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().describe_key_version(request).await })
            .await
    }

    /// Lists one page of a tenant's keys that pass.
    pub async fn list_keys(
        &self,
        tenant: &TenantName,
        query: &KeyQuery,
        page_size: u32,
        page_token: String,
    ) -> Result<Page<v1::Key>, ClientError> {
        let parent = tenant.to_string();
        let KeyQuery { filter, order_by } = query.clone();
        let request = v1::ListKeysRequest { parent, page_size, page_token, filter, order_by };
        let send = |request| async { self.keys().list_keys(request).await };
        let v1::ListKeysResponse { keys, next_page_token } = self.call(request, send).await?;
        Ok(Page { entries: keys, next_page_token })
    }

    /// Lists one page of a key's versions.
    pub async fn list_versions(
        &self,
        key: &KeyName,
        page_size: u32,
        page_token: String,
    ) -> Result<Page<v1::KeyVersion>, ClientError> {
        let parent = key.to_string();
        let request = v1::ListKeyVersionsRequest { parent, page_size, page_token };
        let send = |request| async { self.keys().list_key_versions(request).await };
        let v1::ListKeyVersionsResponse { versions, next_page_token } =
            self.call(request, send).await?;
        Ok(Page { entries: versions, next_page_token })
    }

    /// Rolls a key over.
    pub async fn rotate_key(
        &self,
        name: &KeyName,
        reason: String,
        id: RequestId,
    ) -> Result<(v1::Key, v1::KeyVersion), ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let request = v1::RotateKeyRequest { name, reason, request_id };
        let send = |request| async { self.keys().rotate_key(request).await };
        match self.mutate(once(id), request, send).await? {
            v1::RotateKeyResponse { key: Some(key), version: Some(version) } => Ok((key, version)),
            _ => Err(ClientError::Answer("a rollover without its key or version")),
        }
    }

    /// Changes a key that has `revision`.
    pub async fn update_key(
        &self,
        name: &KeyName,
        revision: u64,
        change: KeyChange,
        id: RequestId,
    ) -> Result<v1::Key, ClientError> {
        let KeyChange {
            owner,
            sensitivity,
            usage,
            cryptoperiod,
            recipient_usage_period,
            labels,
            rotation,
            allow_recent_use,
        } = change;
        let paths = [
            (owner.is_some(), "owner"),
            (sensitivity.is_some(), "sensitivity"),
            (usage.is_some(), "usage"),
            (cryptoperiod.is_some(), "cryptoperiod"),
            (recipient_usage_period.is_some(), "recipient_usage_period"),
            (labels.is_some(), "labels"),
            (rotation.is_some(), "rotation_period"),
        ];
        let paths = paths.into_iter().filter(|(given, _)| *given).map(|(_, path)| path.to_owned());
        let request = v1::UpdateKeyRequest {
            name: name.to_string(),
            revision,
            update_mask: Some(prost_types::FieldMask { paths: paths.collect() }),
            owner: owner.unwrap_or_default(),
            sensitivity: sensitivity.unwrap_or_default().into(),
            usage: usage.unwrap_or_default(),
            labels: labels.unwrap_or_default().into_iter().collect(),
            cryptoperiod: cryptoperiod.map(duration),
            recipient_usage_period: recipient_usage_period.map(duration),
            rotation_period: rotation.and_then(|rotation| match rotation {
                Rotation::Off => None,
                Rotation::Every(period) => Some(duration(period)),
            }),
            allow_recent_use,
            request_id: id.to_string(),
        };
        self.mutate(Repeat { request_id: id, revision: Some(revision) }, request, |request| async {
            self.keys().update_key(request).await
        })
        .await
    }

    /// Stages the next version of a key.
    pub async fn stage_version(
        &self,
        name: &KeyName,
        activate_time: Option<Timestamp>,
        reason: String,
        id: RequestId,
    ) -> Result<(v1::Key, v1::KeyVersion), ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let activate_time = activate_time.map(timestamp);
        let request = v1::StageKeyVersionRequest { name, activate_time, reason, request_id };
        let send = |request| async { self.keys().stage_key_version(request).await };
        match self.mutate(once(id), request, send).await? {
            v1::StageKeyVersionResponse { key: Some(key), version: Some(version) } => {
                Ok((key, version))
            }
            _ => Err(ClientError::Answer("a staged version without its key or version")),
        }
    }

    /// Activates a staged version.
    pub async fn activate_version(
        &self,
        name: &VersionName,
        reason: String,
        id: RequestId,
    ) -> Result<(v1::Key, v1::KeyVersion), ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let request = v1::ActivateKeyVersionRequest { name, reason, request_id };
        let send = |request| async { self.keys().activate_key_version(request).await };
        match self.mutate(once(id), request, send).await? {
            v1::ActivateKeyVersionResponse { key: Some(key), version: Some(version) } => {
                Ok((key, version))
            }
            _ => Err(ClientError::Answer("an activation without its key or version")),
        }
    }

    /// Changes whether a key may be used at all, or plans its end.
    pub async fn change_key_state(
        &self,
        name: &KeyName,
        change: KeyStateChange,
        reason: String,
        id: RequestId,
    ) -> Result<v1::Key, ClientError> {
        let (name, request_id, first) = (name.to_string(), id.to_string(), once(id));
        match change {
            KeyStateChange::Disable => {
                let request = v1::DisableKeyRequest { name, reason, request_id };
                let send = |request| async { self.keys().disable_key(request).await };
                self.mutate(first, request, send).await
            }
            KeyStateChange::Enable => {
                let request = v1::EnableKeyRequest { name, reason, request_id };
                let send = |request| async { self.keys().enable_key(request).await };
                self.mutate(first, request, send).await
            }
            KeyStateChange::ScheduleDestruction(destruction) => {
                let Destruction { window, allow_recent_use, allow_consumers } = destruction;
                let request = v1::ScheduleKeyDestructionRequest {
                    name,
                    window: Some(duration(window)),
                    reason,
                    request_id,
                    allow_recent_use,
                    allow_consumers,
                };
                let send = |request| async { self.keys().schedule_key_destruction(request).await };
                self.mutate(first, request, send).await
            }
            KeyStateChange::CancelDestruction => {
                let request = v1::CancelKeyDestructionRequest { name, reason, request_id };
                let send = |request| async { self.keys().cancel_key_destruction(request).await };
                self.mutate(first, request, send).await
            }
        }
    }

    /// Registers a consumer of a key.
    pub async fn register_consumer(
        &self,
        name: &ConsumerName,
        description: String,
        id: RequestId,
    ) -> Result<v1::Consumer, ClientError> {
        let request = v1::RegisterConsumerRequest {
            parent: name.key().to_string(),
            consumer_id: name.consumer_id().to_owned(),
            description,
            request_id: id.to_string(),
        };
        let send = |request| async { self.keys().register_consumer(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Lists the consumers of a key.
    pub async fn list_consumers(&self, key: &KeyName) -> Result<Vec<v1::Consumer>, ClientError> {
        let request = v1::ListConsumersRequest { parent: key.to_string() };
        let send = |request| async { self.keys().list_consumers(request).await };
        Ok(self.call(request, send).await?.consumers)
    }

    /// Takes a consumer away.
    pub async fn remove_consumer(
        &self,
        name: &ConsumerName,
        reason: String,
        id: RequestId,
    ) -> Result<v1::Consumer, ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let request = v1::RemoveConsumerRequest { name, reason, request_id };
        let send = |request| async { self.keys().remove_consumer(request).await };
        self.mutate(once(id), request, send).await
    }

    /// Lists one page of a key's history.
    pub async fn list_history(
        &self,
        key: &KeyName,
        page_size: u32,
        page_token: String,
    ) -> Result<Page<v1::KeyHistoryEntry>, ClientError> {
        let parent = key.to_string();
        let request = v1::ListKeyHistoryRequest { parent, page_size, page_token };
        let send = |request| async { self.keys().list_key_history(request).await };
        let v1::ListKeyHistoryResponse { entries, next_page_token } =
            self.call(request, send).await?;
        Ok(Page { entries, next_page_token })
    }

    /// Tells how a version was used.
    pub async fn version_usage(&self, name: &VersionName) -> Result<v1::VersionUsage, ClientError> {
        let request = v1::GetVersionUsageRequest { name: name.to_string() };
        self.call(request, |request| async { self.keys().get_version_usage(request).await }).await
    }

    /// Marks a version compromised; returns the key, the version, and what replaces it.
    pub async fn compromise_version(
        &self,
        name: &VersionName,
        reason: String,
        id: RequestId,
    ) -> Result<(v1::Key, v1::KeyVersion, Option<v1::KeyVersion>), ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        let request = v1::CompromiseKeyVersionRequest { name, reason, request_id };
        let send = |request| async { self.keys().compromise_key_version(request).await };
        match self.mutate(once(id), request, send).await? {
            v1::CompromiseKeyVersionResponse {
                key: Some(key),
                version: Some(version),
                replacement,
            } => Ok((key, version, replacement)),
            _ => Err(ClientError::Answer("a compromise without its key or version")),
        }
    }

    /// Moves a version to another state.
    pub async fn change_state(
        &self,
        name: &VersionName,
        change: StateChange,
        reason: String,
        id: RequestId,
    ) -> Result<v1::KeyVersion, ClientError> {
        let (name, request_id) = (name.to_string(), id.to_string());
        match change {
            StateChange::Discard => {
                let request = v1::DiscardKeyVersionRequest { name, reason, request_id };
                let send = |request| async { self.keys().discard_key_version(request).await };
                self.mutate(once(id), request, send).await
            }
            StateChange::Suspend => {
                let request = v1::SuspendKeyVersionRequest { name, reason, request_id };
                let send = |request| async { self.keys().suspend_key_version(request).await };
                self.mutate(once(id), request, send).await
            }
            StateChange::Resume => {
                let request = v1::ResumeKeyVersionRequest { name, reason, request_id };
                let send = |request| async { self.keys().resume_key_version(request).await };
                self.mutate(once(id), request, send).await
            }
            StateChange::Deactivate => {
                let request = v1::DeactivateKeyVersionRequest { name, reason, request_id };
                let send = |request| async { self.keys().deactivate_key_version(request).await };
                self.mutate(once(id), request, send).await
            }
            StateChange::ScheduleDestruction(destruction) => {
                let Destruction { window, allow_recent_use, allow_consumers } = destruction;
                let request = v1::ScheduleKeyVersionDestructionRequest {
                    name,
                    window: Some(duration(window)),
                    reason,
                    request_id,
                    allow_recent_use,
                    allow_consumers,
                };
                let send =
                    |request| async { self.keys().schedule_key_version_destruction(request).await };
                self.mutate(once(id), request, send).await
            }
            StateChange::CancelDestruction => {
                let request = v1::CancelKeyVersionDestructionRequest { name, reason, request_id };
                let send =
                    |request| async { self.keys().cancel_key_version_destruction(request).await };
                self.mutate(once(id), request, send).await
            }
        }
    }
}

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let unix_ms = time.as_unix_ms();
    let nanos = i32::try_from(unix_ms.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
    prost_types::Timestamp { seconds: unix_ms.div_euclid(1000), nanos }
}

/// A request that its id and the words of the command make.
pub(super) const fn once(request_id: RequestId) -> Repeat {
    Repeat { request_id, revision: None }
}

pub(super) fn duration(period: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(period.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(period.subsec_nanos()).unwrap_or_default(),
    }
}

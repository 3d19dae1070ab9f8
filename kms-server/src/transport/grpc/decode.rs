//! From messages to domain types. Every message is destructured whole, so that a new field cannot be forgotten.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use kms_core::clock::Timestamp;
use kms_core::context::EncryptionContext;
use kms_core::id::{RequestId, Revision};
use kms_core::key::{Protection, Purpose, Sensitivity};
use kms_core::lifecycle::DEFAULT_DESTRUCTION_WINDOW;
use kms_core::name::{ConsumerName, KeyName, KeyOrAlias, TenantName};
use kms_core::secret::Plaintext;
use kms_proto::v1 as proto;

use crate::service::{
    ChangeKeyState, ChangeVersionState, CreateKey, DEFAULT_DATA_KEY_BYTES, GenerateDataKey,
    ListKeyHistory, ListKeyVersions, ListKeys, RegisterConsumer, RemoveConsumer, Rewrap, RotateKey,
    ScheduleDestruction, ScheduleKeyDestruction, ServiceError, SetRotation, StageKeyVersion,
    Unwrap, UpdateKey, Wrap,
};

pub(super) type Decoded<T> = Result<T, ServiceError>;

pub(super) fn wrap(message: proto::WrapRequest) -> Decoded<Wrap> {
    let proto::WrapRequest { key, plaintext, context } = message;
    // Taken before anything can fail, so that our copy is wiped in any case.
    let plaintext = Plaintext::new(plaintext.to_vec());
    Ok(Wrap { key: parse("key", &key)?, plaintext, context: pairs(context)? })
}

pub(super) fn unwrap(message: proto::UnwrapRequest) -> Decoded<Unwrap> {
    let proto::UnwrapRequest { key, ciphertext, context } = message;
    Ok(Unwrap { key: parse("key", &key)?, ciphertext: ciphertext.into(), context: pairs(context)? })
}

pub(super) fn rewrap(message: proto::RewrapRequest) -> Decoded<Rewrap> {
    let proto::RewrapRequest { key, ciphertext, context } = message;
    Ok(Rewrap { key: parse("key", &key)?, ciphertext: ciphertext.into(), context: pairs(context)? })
}

pub(super) fn generate_data_key(
    message: proto::GenerateDataKeyRequest,
) -> Decoded<GenerateDataKey> {
    let proto::GenerateDataKeyRequest { key, length_bytes, context, without_plaintext } = message;
    let length_bytes = match length_bytes {
        0 => DEFAULT_DATA_KEY_BYTES,
        given => usize::try_from(given).unwrap_or(usize::MAX),
    };
    let key = parse("key", &key)?;
    let with_plaintext = !without_plaintext;
    Ok(GenerateDataKey { key, length_bytes, context: pairs(context)?, with_plaintext })
}

#[expect(clippy::unnecessary_wraps, reason = "all decoders have one shape")]
pub(super) fn describe_ciphertext(message: proto::DescribeCiphertextRequest) -> Decoded<Vec<u8>> {
    let proto::DescribeCiphertextRequest { ciphertext } = message;
    Ok(ciphertext.into())
}

pub(super) fn generate_random(
    message: proto::GenerateRandomRequest,
) -> Decoded<(TenantName, usize)> {
    let proto::GenerateRandomRequest { length_bytes, tenant } = message;
    let length = usize::try_from(length_bytes).unwrap_or(usize::MAX);
    Ok((parse("tenant", &tenant)?, length))
}

pub(super) fn create_key(message: proto::CreateKeyRequest) -> Decoded<CreateKey> {
    let proto::CreateKeyRequest {
        parent,
        key_id,
        purpose,
        protection,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        labels,
        request_id,
        rotation_period,
        recipient_usage_period,
        acknowledge_no_backup,
    } = message;
    let tenant: TenantName = parse("parent", &parent)?;
    Ok(CreateKey {
        name: KeyName::new(tenant, &key_id).map_err(|error| field("key_id", error))?,
        purpose: self::purpose(purpose)?,
        protection: self::protection(protection)?,
        owner,
        sensitivity: self::sensitivity(sensitivity)?,
        usage,
        cryptoperiod: period(cryptoperiod)?,
        recipient_usage_period: recipient_usage(recipient_usage_period)?,
        labels: labels.into_iter().collect(),
        rotation_period: rotation(rotation_period)?,
        acknowledge_no_backup,
        request_id: self::request_id(&request_id)?,
    })
}

pub(super) fn describe_key(message: proto::DescribeKeyRequest) -> Decoded<KeyOrAlias> {
    let proto::DescribeKeyRequest { name } = message;
    parse("name", &name)
}

pub(super) fn list_keys(message: proto::ListKeysRequest) -> Decoded<ListKeys> {
    let proto::ListKeysRequest { parent, page_size, page_token, filter, order_by } = message;
    let tenant = parse("parent", &parent)?;
    Ok(ListKeys { tenant, page_size, page_token, filter, order_by })
}

pub(super) fn list_key_versions(
    message: proto::ListKeyVersionsRequest,
) -> Decoded<ListKeyVersions> {
    let proto::ListKeyVersionsRequest { parent, page_size, page_token } = message;
    Ok(ListKeyVersions { key: parse("parent", &parent)?, page_size, page_token })
}

pub(super) fn update_key(message: proto::UpdateKeyRequest) -> Decoded<UpdateKey> {
    let proto::UpdateKeyRequest {
        name,
        revision,
        update_mask,
        owner,
        sensitivity,
        usage,
        labels,
        cryptoperiod,
        request_id,
        rotation_period,
        recipient_usage_period,
        allow_recent_use,
    } = message;
    let mut update = UpdateKey {
        name: parse("name", &name)?,
        revision: Revision::new(revision),
        owner: None,
        sensitivity: None,
        usage: None,
        cryptoperiod: None,
        recipient_usage_period: None,
        labels: None,
        rotation_period: None,
        allow_recent_use,
        request_id: self::request_id(&request_id)?,
    };
    let paths = update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        return Err(field("update_mask", "must name what to change"));
    }
    let (mut owner, mut usage, mut labels) = (Some(owner), Some(usage), Some(labels));
    for path in paths {
        match path.as_str() {
            "owner" if update.owner.is_none() => update.owner = owner.take(),
            "sensitivity" => update.sensitivity = Some(self::sensitivity(sensitivity)?),
            "usage" if update.usage.is_none() => update.usage = usage.take(),
            "labels" if update.labels.is_none() => {
                update.labels =
                    labels.take().map(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>());
            }
            "rotation_period" => {
                let period = rotation(rotation_period)?;
                update.rotation_period = Some(period.map_or(SetRotation::Off, SetRotation::Every));
            }
            "cryptoperiod" => update.cryptoperiod = Some(period(cryptoperiod)?),
            "recipient_usage_period" => {
                let period = recipient_usage(recipient_usage_period)?;
                update.recipient_usage_period = Some(period.ok_or_else(|| {
                    field("recipient_usage_period", "must be given to be changed")
                })?);
            }
            "owner" | "usage" | "labels" => {}
            _ => return Err(field("update_mask", "names a field that cannot be changed")),
        }
    }
    Ok(update)
}

pub(super) fn rotate_key(message: proto::RotateKeyRequest) -> Decoded<RotateKey> {
    let proto::RotateKeyRequest { name, reason, request_id } = message;
    Ok(RotateKey {
        name: parse("name", &name)?,
        reason,
        request_id: self::request_id(&request_id)?,
    })
}

pub(super) fn describe_key_version(
    message: proto::DescribeKeyVersionRequest,
) -> Decoded<kms_core::name::VersionName> {
    let proto::DescribeKeyVersionRequest { name } = message;
    parse("name", &name)
}

pub(super) fn get_version_usage(
    message: proto::GetVersionUsageRequest,
) -> Decoded<kms_core::name::VersionName> {
    let proto::GetVersionUsageRequest { name } = message;
    parse("name", &name)
}

pub(super) fn register_consumer(
    message: proto::RegisterConsumerRequest,
) -> Decoded<RegisterConsumer> {
    let proto::RegisterConsumerRequest { parent, consumer_id, description, request_id } = message;
    let name = ConsumerName::new(parse("parent", &parent)?, &consumer_id)
        .map_err(|error| field("consumer_id", error))?;
    Ok(RegisterConsumer { name, description, request_id: self::request_id(&request_id)? })
}

pub(super) fn remove_consumer(message: proto::RemoveConsumerRequest) -> Decoded<RemoveConsumer> {
    let proto::RemoveConsumerRequest { name, reason, request_id } = message;
    let request_id = self::request_id(&request_id)?;
    Ok(RemoveConsumer { name: parse("name", &name)?, reason, request_id })
}

pub(super) fn list_consumers(message: proto::ListConsumersRequest) -> Decoded<KeyName> {
    let proto::ListConsumersRequest { parent } = message;
    parse("parent", &parent)
}

pub(super) fn stage(message: proto::StageKeyVersionRequest) -> Decoded<StageKeyVersion> {
    let proto::StageKeyVersionRequest { name, activate_time, reason, request_id } = message;
    let activate_time = activate_time.map(|given| time("activate_time", given)).transpose()?;
    let request_id = self::request_id(&request_id)?;
    Ok(StageKeyVersion { name: parse("name", &name)?, activate_time, reason, request_id })
}

pub(super) fn activate(message: proto::ActivateKeyVersionRequest) -> Decoded<ChangeVersionState> {
    let proto::ActivateKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn discard(message: proto::DiscardKeyVersionRequest) -> Decoded<ChangeVersionState> {
    let proto::DiscardKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn disable_key(message: proto::DisableKeyRequest) -> Decoded<ChangeKeyState> {
    let proto::DisableKeyRequest { name, reason, request_id } = message;
    let request_id = self::request_id(&request_id)?;
    Ok(ChangeKeyState { name: parse("name", &name)?, reason, request_id })
}

pub(super) fn enable_key(message: proto::EnableKeyRequest) -> Decoded<ChangeKeyState> {
    let proto::EnableKeyRequest { name, reason, request_id } = message;
    let request_id = self::request_id(&request_id)?;
    Ok(ChangeKeyState { name: parse("name", &name)?, reason, request_id })
}

pub(super) fn suspend(message: proto::SuspendKeyVersionRequest) -> Decoded<ChangeVersionState> {
    let proto::SuspendKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn resume(message: proto::ResumeKeyVersionRequest) -> Decoded<ChangeVersionState> {
    let proto::ResumeKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn deactivate(
    message: proto::DeactivateKeyVersionRequest,
) -> Decoded<ChangeVersionState> {
    let proto::DeactivateKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn compromise(
    message: proto::CompromiseKeyVersionRequest,
) -> Decoded<ChangeVersionState> {
    let proto::CompromiseKeyVersionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn schedule_key(
    message: proto::ScheduleKeyDestructionRequest,
) -> Decoded<ScheduleKeyDestruction> {
    let proto::ScheduleKeyDestructionRequest {
        name,
        window,
        reason,
        request_id,
        allow_recent_use,
        allow_consumers,
    } = message;
    Ok(ScheduleKeyDestruction {
        name: parse("name", &name)?,
        window: destruction_window(window)?,
        allow_recent_use,
        allow_consumers,
        reason,
        request_id: parse("request_id", &request_id)?,
    })
}

pub(super) fn cancel_key(message: proto::CancelKeyDestructionRequest) -> Decoded<ChangeKeyState> {
    let proto::CancelKeyDestructionRequest { name, reason, request_id } = message;
    let request_id = parse("request_id", &request_id)?;
    Ok(ChangeKeyState { name: parse("name", &name)?, reason, request_id })
}

fn destruction_window(window: Option<prost_types::Duration>) -> Decoded<Duration> {
    window.map_or(Ok(DEFAULT_DESTRUCTION_WINDOW), |given| whole_seconds("window", given))
}

pub(super) fn schedule(
    message: proto::ScheduleKeyVersionDestructionRequest,
) -> Decoded<ScheduleDestruction> {
    let proto::ScheduleKeyVersionDestructionRequest {
        name,
        window,
        reason,
        request_id,
        allow_recent_use,
        allow_consumers,
    } = message;
    let window = destruction_window(window)?;
    let ChangeVersionState { name, reason, request_id } = change(&name, reason, &request_id)?;
    Ok(ScheduleDestruction { name, window, allow_recent_use, allow_consumers, reason, request_id })
}

pub(super) fn cancel(
    message: proto::CancelKeyVersionDestructionRequest,
) -> Decoded<ChangeVersionState> {
    let proto::CancelKeyVersionDestructionRequest { name, reason, request_id } = message;
    change(&name, reason, &request_id)
}

pub(super) fn list_key_history(message: proto::ListKeyHistoryRequest) -> Decoded<ListKeyHistory> {
    let proto::ListKeyHistoryRequest { parent, page_size, page_token } = message;
    Ok(ListKeyHistory { key: parse("parent", &parent)?, page_size, page_token })
}

fn change(name: &str, reason: String, request_id: &str) -> Decoded<ChangeVersionState> {
    let name = parse("name", name)?;
    Ok(ChangeVersionState { name, reason, request_id: self::request_id(request_id)? })
}

pub(super) fn field(name: &'static str, problem: impl Display) -> ServiceError {
    ServiceError::field(name, problem.to_string())
}

pub(super) fn parse<T: FromStr<Err: Display>>(name: &'static str, text: &str) -> Decoded<T> {
    text.parse().map_err(|error: T::Err| field(name, error))
}

fn pairs(context: HashMap<String, String>) -> Decoded<EncryptionContext> {
    EncryptionContext::from_caller(context).map_err(|error| field("context", error))
}

pub(super) fn request_id(text: &str) -> Decoded<RequestId> {
    parse("request_id", text)
}

pub(super) fn purpose(number: i32) -> Decoded<Purpose> {
    match proto::Purpose::try_from(number) {
        Ok(proto::Purpose::Wrap) => Ok(Purpose::Wrap),
        Ok(proto::Purpose::Unspecified) => Err(field("purpose", "must be given")),
        Err(_) => Err(field("purpose", "is not known")),
    }
}

pub(super) fn protection(number: i32) -> Decoded<Protection> {
    match proto::Protection::try_from(number) {
        Ok(proto::Protection::Unspecified | proto::Protection::HsmWrapped) => {
            Ok(Protection::HsmWrapped)
        }
        Ok(proto::Protection::HsmResident) => Ok(Protection::HsmResident),
        Err(_) => Err(field("protection", "is not known")),
    }
}

pub(super) fn sensitivity(number: i32) -> Decoded<Sensitivity> {
    match proto::Sensitivity::try_from(number) {
        Ok(proto::Sensitivity::Low) => Ok(Sensitivity::Low),
        Ok(proto::Sensitivity::Medium) => Ok(Sensitivity::Medium),
        Ok(proto::Sensitivity::High) => Ok(Sensitivity::High),
        Ok(proto::Sensitivity::Unspecified) => Err(field("sensitivity", "must be given")),
        Err(_) => Err(field("sensitivity", "is not known")),
    }
}

pub(super) fn period(duration: Option<prost_types::Duration>) -> Decoded<Duration> {
    const KEY: &str = "cryptoperiod";
    whole_seconds(KEY, duration.ok_or_else(|| field(KEY, "must be given"))?)
}

pub(super) fn rotation(duration: Option<prost_types::Duration>) -> Decoded<Option<Duration>> {
    duration.map(|given| whole_seconds("rotation_period", given)).transpose()
}

pub(super) fn recipient_usage(
    duration: Option<prost_types::Duration>,
) -> Decoded<Option<Duration>> {
    duration.map(|given| whole_seconds("recipient_usage_period", given)).transpose()
}

pub(super) fn whole_seconds(
    name: &'static str,
    duration: prost_types::Duration,
) -> Decoded<Duration> {
    let prost_types::Duration { seconds, nanos } = duration;
    let seconds = u64::try_from(seconds).map_err(|_| field(name, "must not be negative"))?;
    if nanos != 0 {
        return Err(field(name, "must be whole seconds"));
    }
    Ok(Duration::from_secs(seconds))
}

/// Rows hold milliseconds: what is finer would be another time than was asked for.
pub(super) fn time(name: &'static str, time: prost_types::Timestamp) -> Decoded<Timestamp> {
    const MILLISECOND: i32 = 1_000_000;
    let prost_types::Timestamp { seconds, nanos } = time;
    if !(0..1_000_000_000).contains(&nanos) || nanos % MILLISECOND != 0 {
        return Err(field(name, "must be a time in whole milliseconds"));
    }
    let unix_ms = seconds
        .checked_mul(1000)
        .and_then(|ms| ms.checked_add(i64::from(nanos / MILLISECOND)))
        .ok_or_else(|| field(name, "is too far away"))?;
    Ok(Timestamp::from_unix_ms(unix_ms))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

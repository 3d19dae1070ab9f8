//! From domain types to messages. Every type is destructured whole, so that a new field cannot be forgotten.

use bytes::Bytes;
use kms_core::clock::Timestamp;
use kms_core::key::{KeyState, Origin, Protection, Purpose, Sensitivity};
use kms_core::name::VersionName;
use kms_core::secret::Plaintext;
use kms_core::state::VersionState;
use kms_core::usage::{Tally, Uses};
use kms_proto::v1 as proto;

use crate::service::{
    CiphertextDescription, Compromised, ConsumerDescription, DataKey, HistoryEntry, KeyDescription,
    Page, Retirement, Rewrapped, Rotated, Staged, Unwrapped, VersionDescription, VersionUsage,
    Wrapped,
};

pub(super) fn wrapped(result: Wrapped) -> proto::WrapResponse {
    let Wrapped { ciphertext, key_version } = result;
    proto::WrapResponse { ciphertext: ciphertext.into(), key_version: (*key_version).to_owned() }
}

pub(super) fn unwrapped(result: Unwrapped) -> proto::UnwrapResponse {
    let Unwrapped { plaintext, key_version } = result;
    proto::UnwrapResponse { plaintext: secret(plaintext), key_version: (*key_version).to_owned() }
}

pub(super) fn rewrapped(result: Rewrapped) -> proto::RewrapResponse {
    let Rewrapped { ciphertext, key_version, previous_key_version, changed } = result;
    proto::RewrapResponse {
        ciphertext: ciphertext.into(),
        key_version: (*key_version).to_owned(),
        previous_key_version: (*previous_key_version).to_owned(),
        changed,
    }
}

pub(super) fn data_key(result: DataKey) -> proto::GenerateDataKeyResponse {
    let DataKey { plaintext, ciphertext, key_version } = result;
    proto::GenerateDataKeyResponse {
        plaintext: plaintext.map(secret).unwrap_or_default(),
        ciphertext: ciphertext.into(),
        key_version: (*key_version).to_owned(),
    }
}

pub(super) fn random(result: Plaintext) -> proto::GenerateRandomResponse {
    proto::GenerateRandomResponse { random: secret(result) }
}

/// Lends the bytes to the message; they are wiped when the last reader lets go.
fn secret(plaintext: Plaintext) -> Bytes {
    Bytes::from_owner(plaintext.into_zeroizing())
}

pub(super) fn ciphertext_description(
    result: CiphertextDescription,
) -> proto::DescribeCiphertextResponse {
    let CiphertextDescription {
        format,
        suite,
        key_uid,
        version,
        key_version,
        plaintext_length_bytes,
        current,
    } = result;
    proto::DescribeCiphertextResponse {
        format: format.into(),
        suite: suite.code().into(),
        key_uid: key_uid.to_string(),
        version: version.get(),
        key_version: key_version.map(|name| name.to_string()).unwrap_or_default(),
        plaintext_length_bytes: u32::try_from(plaintext_length_bytes).unwrap_or(u32::MAX),
        current,
    }
}

pub(super) fn key(result: KeyDescription) -> proto::Key {
    let KeyDescription {
        name,
        uid,
        purpose,
        protection,
        state,
        owner,
        sensitivity,
        usage,
        cryptoperiod,
        recipient_usage_period,
        labels,
        create_time,
        update_time,
        revision,
        primary_version,
        version_count,
        consumer_count,
        rotation,
        destruction,
    } = result;
    let purpose = match purpose {
        Purpose::Wrap => proto::Purpose::Wrap,
    };
    let protection = match protection {
        Protection::HsmWrapped => proto::Protection::HsmWrapped,
        Protection::HsmResident => proto::Protection::HsmResident,
    };
    let state = match state {
        KeyState::Enabled => proto::KeyState::Enabled,
        KeyState::Disabled => proto::KeyState::Disabled,
        KeyState::DestroyScheduled => proto::KeyState::DestroyScheduled,
        KeyState::Destroyed => proto::KeyState::Destroyed,
    };
    let sensitivity = match sensitivity {
        Sensitivity::Low => proto::Sensitivity::Low,
        Sensitivity::Medium => proto::Sensitivity::Medium,
        Sensitivity::High => proto::Sensitivity::High,
    };
    proto::Key {
        name: name.to_string(),
        uid: uid.to_string(),
        purpose: purpose.into(),
        protection: protection.into(),
        state: state.into(),
        owner,
        sensitivity: sensitivity.into(),
        usage,
        cryptoperiod: Some(duration(cryptoperiod)),
        recipient_usage_period: Some(duration(recipient_usage_period)),
        labels: labels.into_iter().collect(),
        create_time: Some(time(create_time)),
        update_time: Some(time(update_time)),
        revision: revision.get(),
        primary_version: primary_version.map_or(0, kms_core::id::KeyVersion::get),
        version_count,
        consumer_count,
        rotation_period: rotation.map(|plan| duration(plan.period)),
        next_rotation_time: rotation.map(|plan| time(plan.due)),
        destroy_time: destruction.map(|planned| time(planned.time)),
        destroy_despite_consumers: destruction.is_some_and(|planned| planned.despite_consumers),
        destroy_despite_recent_use: destruction.is_some_and(|planned| planned.despite_recent_use),
        destruction_begun: destruction.is_some_and(|planned| planned.begun),
    }
}

pub(super) fn version(result: VersionDescription) -> proto::KeyVersion {
    let VersionDescription {
        key,
        version,
        state,
        primary,
        origin,
        create_time,
        activate_time,
        state_time,
        state_reason,
        state_actor,
        invocation_count,
        revision,
        root_generation,
        destroy_time,
        destroy_despite_consumers,
        destroy_despite_recent_use,
    } = result;
    let local = origin == Origin::Generated;
    let origin = match origin {
        Origin::Generated => proto::Origin::Generated,
        Origin::Imported => proto::Origin::Imported,
    };
    proto::KeyVersion {
        name: VersionName::new(key, version).to_string(),
        version: version.get(),
        state: state_number(state).into(),
        primary,
        create_time: Some(time(create_time)),
        state_time: Some(time(state_time)),
        state_reason,
        state_actor,
        invocation_count,
        revision: revision.get(),
        root_generation: root_generation.get(),
        destroy_time: destroy_time.map(time),
        activate_time: activate_time.map(time),
        origin: origin.into(),
        local,
        destroy_despite_consumers,
        destroy_despite_recent_use,
    }
}

pub(super) fn consumer(result: ConsumerDescription) -> proto::Consumer {
    let ConsumerDescription { name, description, create_time, actor } = result;
    proto::Consumer {
        name: name.to_string(),
        description,
        create_time: Some(time(create_time)),
        actor,
    }
}

pub(super) fn consumers(result: Vec<ConsumerDescription>) -> proto::ListConsumersResponse {
    proto::ListConsumersResponse { consumers: result.into_iter().map(consumer).collect() }
}

pub(super) fn staged(result: Staged) -> proto::StageKeyVersionResponse {
    let Staged { key, version } = result;
    let (key, version) = (Some(self::key(key)), Some(self::version(version)));
    proto::StageKeyVersionResponse { key, version }
}

pub(super) fn activated(result: Rotated) -> proto::ActivateKeyVersionResponse {
    let Rotated { key, version } = result;
    let (key, version) = (Some(self::key(key)), Some(self::version(version)));
    proto::ActivateKeyVersionResponse { key, version }
}

pub(super) fn rotated(result: Rotated) -> proto::RotateKeyResponse {
    let Rotated { key, version } = result;
    proto::RotateKeyResponse { key: Some(self::key(key)), version: Some(self::version(version)) }
}

pub(super) fn compromised(result: Compromised) -> proto::CompromiseKeyVersionResponse {
    let Compromised { key, version, replacement } = result;
    proto::CompromiseKeyVersionResponse {
        key: Some(self::key(key)),
        version: Some(self::version(version)),
        replacement: replacement.map(self::version),
    }
}

pub(super) fn usage(result: VersionUsage) -> proto::VersionUsage {
    let VersionUsage { name, state, uses, retirement, evidence, blind_spots } = result;
    let Uses { protect, process, rewrap, refused } = uses;
    let retirement = match retirement {
        Retirement::Safe => proto::Retirement::Safe,
        Retirement::Quiet => proto::Retirement::Quiet,
        Retirement::InUse => proto::Retirement::InUse,
    };
    proto::VersionUsage {
        name: name.to_string(),
        state: state_number(state).into(),
        protect: Some(tally(protect)),
        process: Some(tally(process)),
        rewrap: Some(tally(rewrap)),
        refused: Some(tally(refused)),
        retirement: retirement.into(),
        evidence,
        blind_spots,
    }
}

fn tally(tally: Tally) -> proto::UseTally {
    let Tally { count, span } = tally;
    proto::UseTally {
        count,
        first_time: span.map(|(first, _)| time(first)),
        last_time: span.map(|(_, last)| time(last)),
    }
}

pub(super) fn history(page: Page<HistoryEntry>) -> proto::ListKeyHistoryResponse {
    let Page { items, next_page_token } = page;
    let entries = items.into_iter().map(history_entry).collect();
    proto::ListKeyHistoryResponse { entries, next_page_token }
}

fn history_entry(entry: HistoryEntry) -> proto::KeyHistoryEntry {
    let HistoryEntry { version, from, to, detail, old_revision, revision, time, actor, reason } =
        entry;
    let state = |state: Option<VersionState>| {
        state.map_or(proto::VersionState::Unspecified, state_number).into()
    };
    proto::KeyHistoryEntry {
        time: Some(self::time(time)),
        version: version.map_or(0, kms_core::id::KeyVersion::get),
        old_state: state(from),
        new_state: state(to),
        detail,
        actor,
        reason,
        old_revision: old_revision.get(),
        new_revision: revision.get(),
    }
}

pub(super) fn keys(page: Page<KeyDescription>) -> proto::ListKeysResponse {
    let Page { items, next_page_token } = page;
    proto::ListKeysResponse { keys: items.into_iter().map(key).collect(), next_page_token }
}

pub(super) fn versions(page: Page<VersionDescription>) -> proto::ListKeyVersionsResponse {
    let Page { items, next_page_token } = page;
    let versions = items.into_iter().map(version).collect();
    proto::ListKeyVersionsResponse { versions, next_page_token }
}

const fn state_number(state: VersionState) -> proto::VersionState {
    match state {
        VersionState::PreActivation => proto::VersionState::PreActivation,
        VersionState::Active => proto::VersionState::Active,
        VersionState::Suspended => proto::VersionState::Suspended,
        VersionState::Deactivated => proto::VersionState::Deactivated,
        VersionState::Compromised => proto::VersionState::Compromised,
        VersionState::DestroyScheduled => proto::VersionState::DestroyScheduled,
        VersionState::Destroyed => proto::VersionState::Destroyed,
    }
}

fn duration(period: std::time::Duration) -> prost_types::Duration {
    let seconds = i64::try_from(period.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: 0 }
}

pub(super) fn time(time: Timestamp) -> prost_types::Timestamp {
    let unix_ms = time.as_unix_ms();
    let nanos = i32::try_from(unix_ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds: unix_ms.div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_milliseconds_before_and_after_1970() {
        let after = time(Timestamp::from_unix_ms(1_500));
        assert_eq!((after.seconds, after.nanos), (1, 500_000_000));
        let before = time(Timestamp::from_unix_ms(-1));
        assert_eq!((before.seconds, before.nanos), (-1, 999_000_000));
    }

    #[test]
    fn states_have_the_names_of_the_contract() {
        for state in VersionState::ALL {
            assert_eq!(state_number(state).as_str_name(), state.as_str());
        }
    }

    #[test]
    fn a_secret_arrives_unchanged() {
        assert_eq!(&secret(Plaintext::new(vec![1, 2, 3]))[..], [1, 2, 3]);
    }
}

//! DescribeKey and DescribeKeyVersion: rows as callers see them, read fresh and verified.

use kms_core::clock::Timestamp;
use kms_core::id::{KeyUid, KeyVersion};
use kms_core::key::{CounterRow, KeyRow, KeyState, Sealed, VersionRow};
use kms_core::name::{KeyName, VersionName};
use kms_core::state::VersionState;

use super::kms::{Inner, Kms};
use super::trail::Trail;
use super::{KeyDescription, RequestContext, ServiceError, VersionDescription};
use crate::authz::{self, Target};
use crate::store::{KeyRef, VersionChoice};

impl Kms {
    /// Describes a key.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn describe_key(
        &self,
        request: &RequestContext,
        name: &KeyName,
    ) -> Result<KeyDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(name);
        let result = inner.describe_key(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }

    /// Describes a version.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `KEY_NOT_FOUND`, `VERSION_NOT_FOUND`, `KEY_INTEGRITY`.
    pub async fn describe_key_version(
        &self,
        request: &RequestContext,
        name: &VersionName,
    ) -> Result<VersionDescription, ServiceError> {
        let inner = &*self.inner;
        let mut trail = Trail::key(name.key());
        trail.version = Some(name.version());
        let result = inner.describe_version(request, name, &mut trail).await;
        inner.record(request, trail, result).await
    }
}

impl Inner {
    pub(super) async fn describe_key(
        &self,
        request: &RequestContext,
        name: &KeyName,
        trail: &mut Trail,
    ) -> Result<KeyDescription, ServiceError> {
        self.permit::<authz::DescribeKey>(request, Target::key(name), trail)?;
        let fresh = self.fresh(name, VersionChoice::Primary).await?;
        trail.key_uid = Some(fresh.key.row.uid);
        Ok(describe_key(&fresh.key.row, &fresh.version.row, self.clock.now()))
    }

    async fn describe_version(
        &self,
        request: &RequestContext,
        name: &VersionName,
        trail: &mut Trail,
    ) -> Result<VersionDescription, ServiceError> {
        self.permit::<authz::DescribeKeyVersion>(request, Target::key(name.key()), trail)?;
        let fresh = self.fresh(name.key(), VersionChoice::Number(name.version())).await?;
        trail.key_uid = Some(fresh.key.row.uid);
        self.describe_versions(&fresh.key.row, &[fresh.version])
            .await?
            .pop()
            .ok_or(ServiceError::Bug { reason: "a version was not described" })
    }

    /// Reads a key and a version from the store, past the cache, and verifies both.
    pub(super) async fn fresh(
        &self,
        name: &KeyName,
        choice: VersionChoice,
    ) -> Result<Fresh, ServiceError> {
        let stored = self.store.key(KeyRef::Name(name.clone()), choice).await;
        let Some(stored) = self.keyring.stored(stored)? else {
            return Err(ServiceError::KeyNotFound { name: name.clone() });
        };
        let key = stored.key;
        let versions: Vec<_> = stored.version.into_iter().collect();
        self.keyring.verify_rows(std::slice::from_ref(&key), &versions, &[]).await?;
        let wanted = match choice {
            VersionChoice::Primary => key.row.primary,
            VersionChoice::Number(number) => number,
        };
        let Some(version) = versions.into_iter().next() else {
            if wanted > key.row.latest {
                let name = VersionName::new(name.clone(), wanted);
                return Err(ServiceError::VersionNotFound { name });
            }
            let detail = format!("key {} version {wanted} has vanished", key.row.uid);
            return Err(self.keyring.integrity(detail).into());
        };
        let fits = key.row.name == *name
            && version.row.key_uid == key.row.uid
            && version.row.version == wanted;
        if !fits {
            let detail = format!("`{name}` version {wanted} reads as another");
            return Err(self.keyring.integrity(detail).into());
        }
        Ok(Fresh { key, version })
    }

    /// Describes versions of a key that were verified, with their counters.
    pub(super) async fn describe_versions(
        &self,
        key: &KeyRow,
        versions: &[Sealed<VersionRow>],
    ) -> Result<Vec<VersionDescription>, ServiceError> {
        let mut counters = Vec::with_capacity(versions.len());
        for version in versions {
            counters.push(self.stored_counter(key.uid, version.row.version).await?);
        }
        self.keyring.verify_rows(&[], &[], &counters).await?;
        let now = self.clock.now();
        let pairs = versions.iter().zip(&counters);
        Ok(pairs
            .map(|(row, counter)| describe_version(key, row, counter.row.leased, now))
            .collect())
    }
}

impl Inner {
    /// Reads the counter of a version that is there. Not verified yet.
    pub(super) async fn stored_counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<Sealed<CounterRow>, ServiceError> {
        let counter = self.store.counter(key_uid, version).await;
        self.keyring.stored(counter)?.ok_or_else(|| {
            let detail = format!("key {key_uid} version {version} has no counter");
            self.keyring.integrity(detail).into()
        })
    }

    /// Reads the counter of a version, verified.
    pub(super) async fn verified_counter(
        &self,
        key_uid: KeyUid,
        version: KeyVersion,
    ) -> Result<CounterRow, ServiceError> {
        let counter = self.stored_counter(key_uid, version).await?;
        self.keyring.verify_rows(&[], &[], std::slice::from_ref(&counter)).await?;
        Ok(counter.row)
    }
}

/// A key and one of its versions, verified.
#[derive(Clone, Debug)]
pub(super) struct Fresh {
    pub(super) key: Sealed<KeyRow>,
    pub(super) version: Sealed<VersionRow>,
}

/// Describes a key, given the row of its primary.
pub(super) fn describe_key(key: &KeyRow, primary: &VersionRow, now: Timestamp) -> KeyDescription {
    let protects = key.state == KeyState::Enabled && primary.state_at(now) == VersionState::Active;
    KeyDescription {
        name: key.name.clone(),
        uid: key.uid,
        purpose: key.purpose,
        protection: key.protection,
        state: key.state,
        owner: key.owner.clone(),
        sensitivity: key.sensitivity,
        usage: key.usage.clone(),
        cryptoperiod: key.cryptoperiod,
        recipient_usage_period: key.recipient_usage_period,
        labels: key.labels.clone(),
        create_time: key.create_time,
        update_time: key.update_time,
        revision: key.revision,
        primary_version: protects.then_some(key.primary),
        version_count: key.latest.get(),
        consumer_count: key.consumers,
        rotation: key.rotation,
        destruction: key.destruction,
    }
}

/// Describes a version.
pub(super) fn describe_version(
    key: &KeyRow,
    version: &Sealed<VersionRow>,
    invocation_count: u64,
    now: Timestamp,
) -> VersionDescription {
    let Sealed { row, generation, mac: _ } = version;
    let state = row.state_at(now);
    VersionDescription {
        key: key.name.clone(),
        version: row.version,
        state,
        primary: key.state == KeyState::Enabled
            && row.version == key.primary
            && state == VersionState::Active,
        origin: row.origin,
        create_time: row.create_time,
        activate_time: row.activate_time,
        state_time: if state == row.state {
            row.state_time
        } else {
            row.deactivate_time.unwrap_or(now)
        },
        state_reason: row.state_reason.clone(),
        state_actor: row.state_actor.clone(),
        invocation_count,
        revision: row.revision,
        root_generation: *generation,
        destroy_time: row.destruction.map(|planned| planned.time),
        destroy_despite_consumers: row.destruction.is_some_and(|planned| planned.despite_consumers),
        destroy_despite_recent_use: row
            .destruction
            .is_some_and(|planned| planned.despite_recent_use),
    }
}

//! StageKeyVersion: makes the version that is to be the next primary, and leaves it in PRE_ACTIVATION.
//!
//! A key has one staged version at most. It becomes the primary by ActivateKeyVersion, at its date, or with the next
//! rotation, whichever comes first.

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::import_job::ImportJobRow;
use kms_core::key::{CounterRow, KeyRow, KeyState, Sealed, VersionRow};
use kms_core::lifecycle::MAX_ACTIVATION_DELAY;
use kms_core::state::VersionState;

use super::change::{Change, Failure, RowChanges, moved};
use super::describe_key::{describe_key, describe_version};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::rotate_key::succession_of;
use super::trail::Trail;
use super::{RequestContext, ServiceError, StageKeyVersion, Staged};
use crate::authz::{self, Target};
use crate::store::{self, IntentKind, VersionChoice};

impl Kms {
    /// Makes a version in PRE_ACTIVATION. It goes on when the caller goes away.
    ///
    /// # Errors
    /// As for [`Kms::rotate_key`], and `VERSION_STAGED` when the key has one.
    pub async fn stage_key_version(
        &self,
        request: &RequestContext,
        stage: StageKeyVersion,
    ) -> Result<Staged, ServiceError> {
        let told = match stage.activate_time {
            Some(time) => format!("{} [activated at {time}]", stage.reason),
            None => stage.reason.clone(),
        };
        self.mutate(request, Stage(stage, told)).await
    }
}

/// What is asked for, and the reason as the audit record has it: with the date.
struct Stage(StageKeyVersion, String);

impl Mutation for Stage {
    type Output = Staged;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.0.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.0.request_id)
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
        let target = Target::key(&self.0.name);
        inner.permit::<authz::StageKeyVersion>(request, target, trail)?;
        if self.0.activate_time.is_some() {
            // The server activates it at its date, on this word.
            inner.permit::<authz::ActivateKeyVersion>(request, target, trail)?;
        }
        Ok(())
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let StageKeyVersion { name, activate_time, reason, request_id: _ } = &self.0;
        fields::check_reason(reason, 1)?;
        let out = CanonicalWriter::new(b"fields").text(&name.to_string()).text(reason);
        Ok(match activate_time {
            Some(time) => out.signed(time.as_unix_ms()),
            None => out.bytes(&[]),
        })
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        // Not among the fields: a repeat gets its result when the date has passed.
        check_activate_time(self.0.activate_time, inner.clock.now())?;
        let turn = inner.turn(&self.0.name, VersionChoice::Primary).await?;
        let key = &turn.fresh.key;
        trail.key_uid = Some(key.row.uid);
        if key.row.state == KeyState::Disabled {
            return Err(ServiceError::KeyDisabled);
        }
        if let Some(staged) = inner.staged(key).await? {
            return Err(ServiceError::VersionStaged { version: staged.row.version });
        }
        let mut subject = succession_of(IntentKind::StageKeyVersion, &key.row, None)?;
        // The primary stays what it is, and loaded.
        subject.stale = vec![subject.version];
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<Staged, Failure> {
        let made = change.generate(&self.0.reason).await?;
        change.stage(&turn, made, self.0.activate_time, None).await
    }
}

impl Change<'_> {
    /// Writes a version that was made, in PRE_ACTIVATION; `import_job` is used up by it.
    pub(super) async fn stage(
        &mut self,
        turn: &Turn,
        (version, counter): (VersionRow, CounterRow),
        activate_time: Option<Timestamp>,
        import_job: Option<Sealed<ImportJobRow>>,
    ) -> Result<Staged, Failure> {
        let change = self;
        let old = &turn.fresh.key;
        let version = VersionRow { state: VersionState::PreActivation, activate_time, ..version };
        let now = version.create_time;
        let key = KeyRow {
            latest: version.version,
            revision: old.row.revision.next(),
            update_time: now,
            ..old.row.clone()
        };
        let history = vec![moved(None, &version)];
        let version = change.seal(version).await?;
        let result = Staged {
            version: describe_version(&key, &version, counter.leased, now),
            key: describe_key(&key, &turn.fresh.version.row, now),
        };
        let key = change.seal(key).await?;
        let counter = change.seal(counter).await?;
        let mut removed = vec![old.mac];
        removed.extend(import_job.iter().map(|job| job.mac));
        let rows = RowChanges { added: &[key.mac, version.mac], removed: &removed, history };
        let closing = change.closing(old.row.name.tenant(), rows, &result).await?;
        let expected_key = old.row.revision;
        let staging = store::Staging { expected_key, key, version, counter, import_job };
        let committed = change.inner.store.stage(staging, closing).await;
        change.settle(committed).await?;
        Ok(result)
    }
}

/// A date that has passed is a mistake, and so is one that nobody will live to see.
pub(super) fn check_activate_time(
    planned: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let Some(planned) = planned else { return Ok(()) };
    if planned > now && planned <= now.after(MAX_ACTIVATION_DELAY) {
        return Ok(());
    }
    Err(ServiceError::field("activate_time", "must be in the future, and within 10 years"))
}

impl Inner {
    /// Reads the staged version of a key. The caller holds the tenant's lock.
    ///
    /// Invariant: it is the latest, as a key has one at most and every rollover takes it.
    pub(super) async fn staged(
        &self,
        key: &Sealed<KeyRow>,
    ) -> Result<Option<Sealed<VersionRow>>, ServiceError> {
        if key.row.latest == key.row.primary {
            return Ok(None);
        }
        let latest = self.fresh(&key.row.name, VersionChoice::Number(key.row.latest)).await?;
        if latest.version.row.state != VersionState::PreActivation {
            return Ok(None);
        }
        self.check_never_used(&latest.version).await?;
        Ok(Some(latest.version))
    }

    /// Refuses a staged row that was put back: what happened to its version since stands in the history of the key, whose
    /// entries are members of the manifest and cannot be changed.
    ///
    /// # Errors
    /// `KEY_INTEGRITY`, with the alert.
    pub(super) async fn check_never_used(
        &self,
        staged: &Sealed<VersionRow>,
    ) -> Result<(), ServiceError> {
        let VersionRow { key_uid, version, revision, .. } = staged.row;
        let last = self.store.last_revision(key_uid, version).await;
        if self.keyring.stored(last)? == Some(revision) {
            return Ok(());
        }
        let detail = format!("the staged row of key {key_uid} version {version} was put back");
        Err(self.keyring.integrity(detail).into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn activation_dates_are_taken_at_their_bounds_and_refused_one_past() {
        let now = Timestamp::from_unix_ms(1_700_000_000_000);
        let millisecond = Duration::from_millis(1);
        let check = |planned| check_activate_time(planned, now);
        assert!(check(None).is_ok());
        assert!(check(Some(now)).is_err());
        assert!(check(Some(now.after(millisecond))).is_ok());
        assert!(check(Some(now.after(MAX_ACTIVATION_DELAY))).is_ok());
        assert!(check(Some(now.after(MAX_ACTIVATION_DELAY + millisecond))).is_err());
    }
}

//! CompromiseKeyVersion: the material of a version is known to others. It never protects again, and processes only with a
//! permission of its own; a primary is replaced by a new version in the same transaction, without any overlap.

use kms_core::canonical::CanonicalWriter;
use kms_core::id::RequestId;
use kms_core::journal::Event;
use kms_core::key::{Sealed, VersionRow};
use kms_core::lifecycle::Transition;
use kms_core::state::VersionState;

use super::change::{Change, Failure, moved};
use super::describe_key::{Fresh, describe_key};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::rotate_key::{Succession, succession_of};
use super::trail::Trail;
use super::{ChangeVersionState, Compromised, RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Marks a version COMPROMISED, for ever. It goes on when the caller goes away.
    ///
    /// # Errors
    /// As for [`Kms::suspend_key_version`]; and when a primary cannot be replaced, as for [`Kms::rotate_key`]: then nothing
    /// was changed.
    pub async fn compromise_key_version(
        &self,
        request: &RequestContext,
        change: ChangeVersionState,
    ) -> Result<Compromised, ServiceError> {
        let compromised = self.mutate(request, Compromise(change)).await?;
        let name = kms_core::name::VersionName::new(
            compromised.version.key.clone(),
            compromised.version.version,
        );
        tracing::warn!(alert = "key_compromised", key_version = %name, "marked COMPROMISED");
        Ok(compromised)
    }
}

struct Compromise(ChangeVersionState);

impl Compromise {
    fn leads(row: &VersionRow, state: VersionState) -> Result<VersionState, ServiceError> {
        let step = Transition::Compromise;
        let illegal = ServiceError::IllegalTransition { from: state, to: step.aims_at() };
        step.leads(state, row.destruction).ok_or(illegal)
    }
}

impl Mutation for Compromise {
    type Output = Compromised;
    /// With the staged version, when it is to take the place of a primary.
    type Basis = (Turn, Option<Sealed<VersionRow>>);

    fn trail(&self) -> Trail {
        let mut trail = Trail::key(self.0.name.key());
        trail.version = Some(self.0.name.version());
        trail
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.0.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.0.reason)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(self.0.name.key());
        inner.permit::<authz::CompromiseKeyVersion>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        let ChangeVersionState { name, reason, request_id: _ } = &self.0;
        fields::check_reason(reason, 1)?;
        Ok(CanonicalWriter::new(b"fields").text(&name.to_string()).text(reason))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let number = self.0.name.version();
        let turn = inner.turn(self.0.name.key(), VersionChoice::Number(number)).await?;
        let Fresh { key, version } = &turn.fresh;
        trail.key_uid = Some(key.row.uid);
        Self::leads(&version.row, version.row.state_at(inner.clock.now()))?;
        trail.from_version = Some(number);
        let kind = IntentKind::CompromiseKeyVersion;
        if number != key.row.primary {
            return Ok((Subject::of_version(kind, &key.row, number), (turn, None)));
        }
        let staged = inner.staged(key).await?;
        inner.prove(staged.as_ref()).await?;
        let subject = succession_of(kind, &key.row, staged.as_ref())?;
        Ok((subject, (turn, staged)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, staged): Self::Basis,
    ) -> Result<Compromised, Failure> {
        let Fresh { key, version: old } = &turn.fresh;
        let now = change.inner.clock.now();
        let from = old.row.state_at(now);
        let row = VersionRow {
            state: Self::leads(&old.row, from)?,
            state_time: now,
            state_reason: self.0.reason,
            state_actor: (&*change.request.principal.id).into(),
            // What never was in use has no time when it came into use.
            activate_time: (from != VersionState::PreActivation)
                .then_some(old.row.activate_time)
                .flatten(),
            revision: old.row.revision.next(),
            ..old.row.clone()
        };
        let subject = Change::journal_subject(&key.row, row.version);
        change.journal(Event::VersionCompromised(subject)).await?;
        if row.version != key.row.primary {
            // The key stays as it is, and so does its primary.
            let primary =
                change.inner.fresh(&key.row.name, VersionChoice::Primary).await?.version.row;
            let key = describe_key(&key.row, &primary, now);
            return change
                .replace_version_as(&turn.fresh, from, row, |version| Compromised {
                    key,
                    version,
                    replacement: None,
                })
                .await;
        }
        let history = vec![moved(Some((from, old.row.revision)), &row)];
        let succession = Succession { previous: row, staged, history, reason: "compromise" };
        change
            .succeed(&turn.fresh, succession, |rotated, version| Compromised {
                key: rotated.key,
                version,
                replacement: Some(rotated.version),
            })
            .await
    }
}

//! ScheduleKeyDestruction and CancelKeyDestruction: the end of a whole key, planned while it is disabled, and given up.
//!
//! From its scheduling on nobody may use the key, and whoever tries is told of, and counted. What is due is destroyed by
//! `destroy_keys_due`; once that has begun there is no way back.

use std::time::Duration;

use kms_core::canonical::CanonicalWriter;
use kms_core::clock::Timestamp;
use kms_core::id::RequestId;
use kms_core::key::{KeyRow, KeyState};
use kms_core::lifecycle::KeyDestruction;
use kms_core::name::KeyName;

use super::change::{Change, Failure};
use super::fields;
use super::kms::{Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::trail::Trail;
use super::{
    ChangeKeyState, KeyDescription, QUIET_PERIOD, RequestContext, ScheduleKeyDestruction,
    ServiceError,
};
use crate::authz::{self, Target};
use crate::store::{IntentKind, VersionChoice};

impl Kms {
    /// Plans the destruction of a DISABLED key with all its versions.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_NOT_DISABLED`, `KEY_DESTROY_SCHEDULED`, `KEY_DESTROYED`;
    /// `RECENTLY_USED` and `CONSUMERS_REGISTERED` unless that is allowed by name; `REQUEST_ID_REUSED`,
    /// `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn schedule_key_destruction(
        &self,
        request: &RequestContext,
        schedule: ScheduleKeyDestruction,
    ) -> Result<KeyDescription, ServiceError> {
        let ScheduleKeyDestruction {
            name,
            window,
            allow_recent_use,
            allow_consumers,
            reason,
            request_id,
        } = schedule;
        let overrides = Overrides { recent_use: allow_recent_use, consumers: allow_consumers };
        let step = Step::Schedule { window, overrides };
        self.mutate(request, Plan::new(step, ChangeKeyState { name, reason, request_id })).await
    }

    /// Gives the planned destruction of a key up: it is DISABLED again.
    ///
    /// # Errors
    /// `FIELD_VIOLATION`, `ACCESS_DENIED`, `KEY_NOT_FOUND`, `KEY_NOT_SCHEDULED`, `KEY_DESTROYED` once it has begun,
    /// `REQUEST_ID_REUSED`, `OPERATION_IN_PROGRESS`, and what the layers below cannot do.
    pub async fn cancel_key_destruction(
        &self,
        request: &RequestContext,
        change: ChangeKeyState,
    ) -> Result<KeyDescription, ServiceError> {
        self.mutate(request, Plan::new(Step::Cancel, change)).await
    }
}

/// The gates that are passed by; each takes a permission of its own.
#[derive(Clone, Copy)]
struct Overrides {
    recent_use: bool,
    consumers: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Schedule { window: Duration, overrides: Overrides },
    Cancel,
}

/// What becomes of a key, and why.
struct Plan {
    step: Step,
    name: KeyName,
    reason: String,
    /// The reason as the audit record has it, with the overrides that were asked for.
    told: String,
    request_id: RequestId,
}

impl Plan {
    fn new(step: Step, change: ChangeKeyState) -> Self {
        let ChangeKeyState { name, reason, request_id } = change;
        let overrides = match step {
            Step::Schedule { overrides: Overrides { recent_use, consumers }, window: _ } => {
                match (recent_use, consumers) {
                    (false, false) => "",
                    (true, false) => " [allows recent use]",
                    (false, true) => " [allows consumers]",
                    (true, true) => " [allows recent use and consumers]",
                }
            }
            Step::Cancel => "",
        };
        let told = format!("{reason}{overrides}");
        Self { step, name, reason, told, request_id }
    }
}

impl Mutation for Plan {
    type Output = KeyDescription;
    type Basis = Turn;

    fn trail(&self) -> Trail {
        Trail::key(&self.name)
    }

    fn request_id(&self) -> Option<RequestId> {
        Some(self.request_id)
    }

    fn reason(&self) -> Option<&str> {
        Some(&self.told)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        let target = Target::key(&self.name);
        match self.step {
            Step::Schedule { overrides: Overrides { recent_use, consumers }, window: _ } => {
                inner.permit::<authz::ScheduleKeyDestruction>(request, target, trail)?;
                if recent_use {
                    inner.permit::<authz::DestroyRecentlyUsed>(request, target, trail)?;
                }
                if consumers {
                    inner.permit::<authz::DestroyWithConsumers>(request, target, trail)?;
                }
                Ok(())
            }
            Step::Cancel => {
                inner.permit::<authz::CancelKeyDestruction>(request, target, trail).map(drop)
            }
        }
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        fields::check_reason(&self.reason, 1)?;
        let out = CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(&self.reason);
        match self.step {
            Step::Schedule { window, overrides: Overrides { recent_use, consumers } } => {
                fields::check_destruction_window(window)?;
                let out = out.number(window.as_secs()).number(recent_use.into());
                Ok(out.number(consumers.into()))
            }
            Step::Cancel => Ok(out),
        }
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Turn), ServiceError> {
        let turn = inner.turn_whatever(&self.name, VersionChoice::Primary).await?;
        let row = &turn.fresh.key.row;
        trail.key_uid = Some(row.uid);
        let kind = match self.step {
            Step::Schedule { overrides, window: _ } => {
                inner.check_may_end(row, overrides).await?;
                IntentKind::ScheduleKeyDestruction
            }
            Step::Cancel => {
                check_may_return(row)?;
                IntentKind::CancelKeyDestruction
            }
        };
        let subject = Subject::of_key(kind, row);
        Ok((subject, turn))
    }

    async fn apply(self, change: &mut Change<'_>, turn: Turn) -> Result<KeyDescription, Failure> {
        let old = &turn.fresh.key.row;
        let (state, destruction) = match self.step {
            Step::Schedule { window, overrides: Overrides { recent_use, consumers } } => {
                let wanted = recent_use && change.inner.wanted_key_of_late(old).await?.is_some();
                let destruction = KeyDestruction {
                    time: change.inner.clock.now().after(window),
                    // Who knew of none did not decide about those who come later.
                    despite_consumers: consumers && old.consumers > 0,
                    despite_recent_use: wanted,
                    begun: false,
                };
                (KeyState::DestroyScheduled, Some(destruction))
            }
            Step::Cancel => (KeyState::Disabled, None),
        };
        let key = KeyRow { state, destruction, ..old.clone() };
        let detail = told_change(old, &key);
        change.replace_key(&turn.fresh, key, detail, self.reason).await
    }
}

/// Tells what a change of a key's state and destruction is, as a JSON object.
pub(super) fn told_change(old: &KeyRow, new: &KeyRow) -> String {
    let mut fields = serde_json::Map::new();
    if old.state != new.state {
        let states = serde_json::json!([old.state.as_str(), new.state.as_str()]);
        fields.insert("state".to_owned(), states);
    }
    let time = |row: &KeyRow| row.destruction.map(|planned| planned.time.to_string());
    if time(old) != time(new) {
        fields.insert("destroy_time".to_owned(), serde_json::json!([time(old), time(new)]));
    }
    let despite = |row: &KeyRow| {
        let planned = row.destruction?;
        let overridden =
            [(planned.despite_recent_use, "recent use"), (planned.despite_consumers, "consumers")];
        let named = overridden.into_iter().filter(|(is_overridden, _)| *is_overridden);
        let named: Vec<_> = named.map(|(_, what)| what).collect();
        (!named.is_empty()).then_some(named)
    };
    if despite(old) != despite(new) {
        let change = serde_json::json!([despite(old), despite(new)]);
        fields.insert("destroy_despite".to_owned(), change);
    }
    let begun = |row: &KeyRow| row.destruction.map(|planned| planned.begun);
    if let (Some(before), Some(after)) = (begun(old), begun(new))
        && before != after
    {
        fields.insert("destruction_begun".to_owned(), serde_json::json!([before, after]));
    }
    serde_json::Value::Object(fields).to_string()
}

/// Refuses to cancel what is not planned, or has begun.
const fn check_may_return(row: &KeyRow) -> Result<(), ServiceError> {
    match (row.state, row.destruction) {
        (KeyState::Enabled | KeyState::Disabled, _) => Err(ServiceError::KeyNotScheduled),
        (KeyState::DestroyScheduled, Some(KeyDestruction { begun: false, .. })) => Ok(()),
        (KeyState::Destroyed, _) | (KeyState::DestroyScheduled, Some(_)) => {
            Err(ServiceError::KeyDestroyed)
        }
        (KeyState::DestroyScheduled, None) => {
            Err(ServiceError::Bug { reason: "a scheduled destruction without its plan" })
        }
    }
}

impl Inner {
    /// Refuses to plan the end of a key that is in use, as far as anybody can know.
    async fn check_may_end(&self, row: &KeyRow, overrides: Overrides) -> Result<(), ServiceError> {
        match row.state {
            KeyState::Disabled => {}
            KeyState::Enabled => return Err(ServiceError::KeyNotDisabled),
            KeyState::DestroyScheduled => return Err(ServiceError::KeyDestroyScheduled),
            KeyState::Destroyed => return Err(ServiceError::KeyDestroyed),
        }
        if row.consumers > 0 && !overrides.consumers {
            return Err(ServiceError::ConsumersRegistered { count: row.consumers });
        }
        if overrides.recent_use {
            return Ok(());
        }
        match self.wanted_key_of_late(row).await? {
            Some(last) => Err(ServiceError::RecentlyUsed { last }),
            None => Ok(()),
        }
    }

    /// Returns when somebody used, or wanted, any version of a key last, if that was within [`QUIET_PERIOD`].
    async fn wanted_key_of_late(&self, row: &KeyRow) -> Result<Option<Timestamp>, ServiceError> {
        let last = self.key_last_wanted(row).await?;
        Ok(last.filter(|last| last.after(QUIET_PERIOD) > self.clock.now()))
    }
}

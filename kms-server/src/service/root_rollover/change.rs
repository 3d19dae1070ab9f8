//! Beginning and end of a root rollover: the next root set is made and pinned, and an old one retired.
//!
//! For dev mode, and offline: elsewhere ceremonies make root sets, and approvals pin and retire them.

use kms_core::audit::Phase;
use kms_core::id::RootGeneration;
use kms_core::key::{RowMac, Sealed};
use kms_core::root::{RetiredRoot, RootPin};

use super::super::fields;
use super::super::kms::{Inner, Kms};
use super::super::trail::{OK, PENDING, Trail};
use super::super::{RequestContext, ServiceError};
use crate::store::StoreError;

/// Why a root set is neither made nor retired.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootChangeError {
    /// Rows are sealed under an older root than the newest, or under the one that was to be retired.
    #[error(
        "{left} rows are still under an older root: start the server, and wait until it has sealed them anew"
    )]
    Unfinished {
        /// How many.
        left: u64,
    },
    /// It is not pinned, or retired already.
    #[error("root generation {0} is not open: it was never pinned, or is retired")]
    NotOpen(RootGeneration),
    /// There is an older one.
    #[error("root generation {0} is older and open: retire it first")]
    NotOldest(RootGeneration),
    /// It seals what is written.
    #[error("root generation {0} is the newest: stage the next one first")]
    Newest(RootGeneration),
    /// There is no higher number.
    #[error("there is no generation after {0}")]
    Last(RootGeneration),
    /// What the layers below cannot do.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl Kms {
    /// Makes the next root set and pins it; from the next start on it seals what is written, and what there is.
    ///
    /// # Errors
    /// [`RootChangeError::Unfinished`] before the last rollover is complete; and what the layers below cannot do.
    pub async fn stage_root(&self) -> Result<RootGeneration, RootChangeError> {
        let inner = &self.inner;
        let newest = inner.keyring.config().generation;
        inner.nothing_under(newest).await?;
        let next = newest.get().checked_add(1).and_then(RootGeneration::new);
        let next = next.ok_or(RootChangeError::Last(newest))?;
        let request = inner.internal_request("internal/StageRoot")?;
        inner.told(&request, &format!("root generation {next}"), PENDING).await?;
        let pinned = inner.make_root(&request, next).await;
        let result = pinned.as_ref().map_or_else(ServiceError::reason, |_| OK);
        inner.told(&request, &format!("root generation {next}"), result).await?;
        Ok(pinned.map(|pin| pin.generation)?)
    }

    /// Retires a root set: it is never opened again, and its objects may be destroyed.
    ///
    /// # Errors
    /// [`RootChangeError::Unfinished`] when a row is sealed under it or an older one, [`RootChangeError::NotOpen`],
    /// [`RootChangeError::NotOldest`], [`RootChangeError::Newest`]; and what the layers below cannot do.
    pub async fn retire_root(
        &self,
        generation: RootGeneration,
        reason: &str,
    ) -> Result<(), RootChangeError> {
        let inner = &self.inner;
        fields::check_reason(reason, 1)?;
        let config = inner.keyring.config();
        if generation == config.generation {
            return Err(RootChangeError::Newest(generation));
        }
        if generation < config.oldest || generation > config.generation {
            return Err(RootChangeError::NotOpen(generation));
        }
        // Invariant: those that are open follow one another (`roots_are_retired_from_the_oldest_on`).
        if generation != config.oldest {
            return Err(RootChangeError::NotOldest(config.oldest));
        }
        let next = generation.get().checked_add(1).and_then(RootGeneration::new);
        inner.nothing_under(next.ok_or(RootChangeError::Last(generation))?).await?;
        let request = inner.internal_request("internal/RetireRoot")?;
        let what = format!("root generation {generation}: {reason}");
        inner.told(&request, &what, PENDING).await?;
        let retired = inner.write_retired(&request, generation, reason).await;
        let result = match &retired {
            Ok(()) => OK,
            Err(RootChangeError::Service(error)) => error.reason(),
            Err(_) => "ROOT_IN_USE",
        };
        inner.told(&request, &what, result).await?;
        retired
    }
}

impl Inner {
    async fn nothing_under(&self, current: RootGeneration) -> Result<(), RootChangeError> {
        let left = self.store.old_counts(current).await.map_err(ServiceError::from)?.total();
        if left > 0 { Err(RootChangeError::Unfinished { left }) } else { Ok(()) }
    }

    async fn make_root(
        &self,
        request: &RequestContext,
        generation: RootGeneration,
    ) -> Result<RootPin, ServiceError> {
        let pin = self.hsm.create_root(generation, request.deadline).await?;
        self.hsm.open_roots(vec![pin.clone()], request.deadline).await?;
        let macs = self.hsm.mac(generation, vec![pin.mac_input()], request.deadline).await?;
        let mac: RowMac =
            macs.first().copied().ok_or(ServiceError::Bug { reason: "the hsm gave no MAC" })?;
        // Until here nothing refers to the new objects: an interrupted start leaves orphans, which are reported.
        self.store.add_root_pin(pin.clone(), mac).await?;
        Ok(pin)
    }

    async fn write_retired(
        &self,
        request: &RequestContext,
        generation: RootGeneration,
        reason: &str,
    ) -> Result<(), RootChangeError> {
        let row = RetiredRoot {
            retired: generation,
            time: self.clock.now(),
            actor: (&*request.principal.id).into(),
            reason: reason.to_owned(),
        };
        let newest = self.keyring.config().generation;
        let input = row.mac_input(newest);
        let mac = self.keyring.mac(input, newest, request.deadline).await;
        let mac = mac.map_err(ServiceError::from)?;
        let retired = self.store.retire_root(Sealed { row, mac, generation: newest }).await;
        retired.map_err(|error| match error {
            // The count is made once more where it is written.
            StoreError::RevisionMismatch | StoreError::NotFound => {
                RootChangeError::NotOpen(generation)
            }
            other => RootChangeError::Service(other.into()),
        })
    }

    async fn told(
        &self,
        request: &RequestContext,
        what: &str,
        result: &'static str,
    ) -> Result<(), ServiceError> {
        let mut trail = Trail::unknown();
        trail.reason = Some(what.to_owned());
        self.record_phase(request, &trail, Phase::Complete, result).await
    }
}

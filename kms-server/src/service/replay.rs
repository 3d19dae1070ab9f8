//! Replaying the state journal on a store that was restored: what it tells was acknowledged once, and must not be undone by an older
//! database. States only move forward: what is there already is passed, and a second replay changes none. Counters are raised by
//! each replay, as nobody knows what was used between two powers of two.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use kms_core::audit::Phase;
use kms_core::canonical::CanonicalWriter;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision};
use kms_core::journal::{Entry, Event, at_least};
use kms_core::key::{CounterRow, KeyRow, KeyState, Material, Sealed, VersionRow, WrappedKey};
use kms_core::name::{TenantName, VersionName};
use kms_core::state::VersionState;

use super::change::{Change, Failure, RowChanges};
use super::destroy_due::steps;
use super::destroy_keys_due::end_replayed;
use super::kms::{INTERNAL_DEADLINE, Inner, Kms};
use super::mutation::{Mutation, Subject, Turn};
use super::rotate_key::{Succession, succession_of};
use super::trail::{OK, Trail};
use super::{RequestContext, ServiceError};
use crate::authz::{self, Target};
use crate::store::{IntentKind, KeyRef, ListPosition, VersionChoice};

/// What the log calls a restore.
pub const RESTORE_OPERATION: &str = "internal/RestoreStore";
const OPERATION: &str = "internal/ReplayJournal";
const REASON: &str = "state journal, at a restore";
/// Rows that are read at once.
const PAGE: u32 = 256;

/// What a version must not be less than.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Compromised,
    Destroyed,
}

/// What the journal tells of the time after a backup.
#[derive(Debug, Default)]
pub struct Tale {
    versions: BTreeMap<(KeyUid, KeyVersion), Fate>,
    keys: BTreeSet<KeyUid>,
    counts: BTreeMap<(KeyUid, KeyVersion), u64>,
    abandoned: HashSet<IntentId>,
    told: Vec<(Option<IntentId>, Event)>,
}

impl Tale {
    /// Takes note of an entry; those up to `covered` are in the backup, or were given up before it.
    pub fn note(&mut self, entry: &Entry, covered: u64) {
        if entry.number <= covered {
            return;
        }
        match (&entry.event, entry.intent) {
            (Event::Abandoned, Some(intent)) => drop(self.abandoned.insert(intent)),
            (event, intent) => self.told.push((intent, event.clone())),
        }
    }

    /// Leaves out what was given up: the last word of an intent counts.
    #[must_use]
    pub fn told(mut self) -> Self {
        for (intent, event) in std::mem::take(&mut self.told) {
            if intent.is_some_and(|intent| self.abandoned.contains(&intent)) {
                continue;
            }
            let mut fate = |key_uid, version, fate| {
                let known = self.versions.entry((key_uid, version)).or_insert(fate);
                *known = fate.max(*known);
            };
            match event {
                Event::VersionDestroyed(of) => fate(of.key_uid, of.version, Fate::Destroyed),
                Event::VersionCompromised(of) => fate(of.key_uid, of.version, Fate::Compromised),
                Event::KeyDestroyed { key_uid, .. } => drop(self.keys.insert(key_uid)),
                Event::CountReached { subject, count } => {
                    let known = self.counts.entry((subject.key_uid, subject.version)).or_default();
                    *known = count.max(*known);
                }
                Event::Abandoned
                | Event::GapAccepted { .. }
                | Event::GapCovered { .. }
                | Event::RootAdvanced => {}
            }
        }
        self
    }
}

/// What a replay has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Replayed {
    /// Versions that are DESTROYED now and were not.
    pub destroyed: u64,
    /// Versions that are COMPROMISED now and were not.
    pub compromised: u64,
    /// Keys that are DESTROYED now and were not.
    pub keys_destroyed: u64,
    /// Counters that were raised above what can have been used.
    pub counters_raised: u64,
    /// What the journal tells of keys and versions that were made after the backup: they are lost.
    pub not_in_backup: u64,
}

impl Kms {
    /// Replays what the journal tells, and raises all counters above what can have been used.
    ///
    /// # Errors
    /// When it cannot be done to its end; what was done is done, and the next replay passes it.
    pub async fn replay(&self, tale: &Tale) -> Result<Replayed, ServiceError> {
        let inner = &self.inner;
        let mut done = Replayed::default();
        for ((key_uid, number), fate) in &tale.versions {
            let choice = VersionChoice::Number(*number);
            let stored = inner.store.key(KeyRef::Uid(*key_uid), choice).await;
            let Some(stored) = inner.keyring.stored(stored)? else {
                done.not_in_backup += 1;
                continue;
            };
            if stored.version.is_none() {
                done.not_in_backup += 1;
                continue;
            }
            let name = VersionName::new(stored.key.row.name, *number);
            let with_key = tale.keys.contains(key_uid);
            if inner.replay_version(&name, *fate, with_key).await? {
                match fate {
                    Fate::Destroyed => done.destroyed += 1,
                    Fate::Compromised => done.compromised += 1,
                }
            }
        }
        for key_uid in &tale.keys {
            let stored = inner.store.key(KeyRef::Uid(*key_uid), VersionChoice::Primary).await;
            match inner.keyring.stored(stored)? {
                None => done.not_in_backup += 1,
                Some(stored) if stored.key.row.state == KeyState::Destroyed => {}
                Some(stored) => {
                    done.destroyed += inner.replay_key(&stored.key.row).await?;
                    done.keys_destroyed += 1;
                }
            }
        }
        done.counters_raised = inner.raise_counters(tale).await?;
        Ok(done)
    }

    /// Counts versions and import jobs whose token object is not there.
    ///
    /// # Errors
    /// When store or token cannot be read.
    pub async fn lost_residents(&self) -> Result<u64, ServiceError> {
        let inner = &self.inner;
        let deadline = inner.internal_request(OPERATION)?.deadline;
        let there =
            inner.hsm.list_token_keys(deadline).await.map_err(|error| inner.device(error))?;
        let there: HashSet<_> = there.residents.into_iter().chain(there.import_keys).collect();
        let named = inner.store.resident_ids().await;
        let named = inner.keyring.stored(named)?.rows;
        Ok(named.iter().filter(|id| !there.contains(id)).count() as u64)
    }

    /// Says in the log that the store was restored, from what, and what that has lost.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn record_restore(&self, reason: String) -> Result<(), ServiceError> {
        let request = self.inner.internal_request(RESTORE_OPERATION)?;
        let mut trail = Trail::unknown();
        trail.reason = Some(reason);
        self.inner.record_phase(&request, &trail, Phase::Complete, OK).await
    }
}

impl Inner {
    /// Returns whether there was anything to do.
    async fn replay_version(
        self: &Arc<Self>,
        name: &VersionName,
        fate: Fate,
        with_key: bool,
    ) -> Result<bool, ServiceError> {
        let request = self.internal_request(OPERATION)?;
        let mut trail = Trail::key(name.key());
        let replay = Replay { name: name.clone(), fate, with_key };
        match self.mutate(&request, replay, &mut trail).await {
            Ok(()) => Ok(true),
            Err(ServiceError::IllegalTransition { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Destroys a whole key; returns how many versions that took.
    async fn replay_key(self: &Arc<Self>, key: &KeyRow) -> Result<u64, ServiceError> {
        let (mut after, mut destroyed) = (None, 0);
        loop {
            let versions = self.store.list_versions(key.uid, after, PAGE).await;
            let versions = self.keyring.stored(versions)?;
            let Some(last) = versions.last() else { break };
            after = Some(last.row.version);
            for version in versions {
                let name = VersionName::new(key.name.clone(), version.row.version);
                destroyed += u64::from(self.replay_version(&name, Fate::Destroyed, true).await?);
            }
        }
        let request = self.internal_request(OPERATION)?;
        let mut trail = Trail::key(&key.name);
        self.mutate(&request, end_replayed(key.name.clone()), &mut trail).await?;
        Ok(destroyed)
    }

    /// Raises the counters of all versions that may protect, now or later.
    async fn raise_counters(&self, tale: &Tale) -> Result<u64, ServiceError> {
        let (mut raised, mut after) = (0, None);
        loop {
            let manifests = self.keyring.list_manifests(after, PAGE).await?;
            let Some(last) = manifests.last() else { return Ok(raised) };
            after = Some(last.tenant.clone());
            for manifest in manifests {
                raised += self.raise_counters_of(&manifest.tenant, tale).await?;
            }
        }
    }

    async fn raise_counters_of(
        &self,
        tenant: &TenantName,
        tale: &Tale,
    ) -> Result<u64, ServiceError> {
        let (mut raised, mut after) = (0, None);
        loop {
            let keys = self.store.list_keys(tenant.clone(), after, PAGE).await;
            let keys = self.keyring.stored(keys)?;
            let Some(last) = keys.last() else { return Ok(raised) };
            after = Some(ListPosition { create_time: last.row.create_time, uid: last.row.uid });
            let mut changes = Vec::new();
            for key in &keys {
                self.add_raised(&key.row, tale, &mut changes).await?;
                if changes.len() >= PAGE as usize {
                    raised += self.write_counters(std::mem::take(&mut changes)).await?;
                }
            }
            raised += self.write_counters(changes).await?;
        }
    }

    async fn add_raised(
        &self,
        key: &KeyRow,
        tale: &Tale,
        changes: &mut Vec<CounterRow>,
    ) -> Result<(), ServiceError> {
        let mut after = None;
        loop {
            let versions = self.store.list_versions(key.uid, after, PAGE).await;
            let versions = self.keyring.stored(versions)?;
            let Some(last) = versions.last() else { return Ok(()) };
            after = Some(last.row.version);
            self.keyring.verify_rows(&[], &versions, &[]).await?;
            for version in versions {
                if !matches!(
                    version.row.state,
                    VersionState::PreActivation | VersionState::Active | VersionState::Suspended
                ) {
                    continue;
                }
                let id = (key.uid, version.row.version);
                let counter = self.store.counter(id.0, id.1).await;
                let gone =
                    || self.keyring.integrity(format!("the counter of key {} is gone", id.0));
                let counter = self.keyring.stored(counter)?.ok_or_else(gone)?;
                self.keyring.verify_rows(&[], &[], std::slice::from_ref(&counter)).await?;
                let told = tale.counts.get(&id).copied().unwrap_or(0);
                let leased = at_least(told.max(counter.row.leased));
                // As it was made after the journal was read, a version has nothing to be raised for; it costs nothing either.
                changes.push(CounterRow { leased, ..counter.row });
            }
        }
    }

    /// Writes counters; each is at the revision that was read.
    async fn write_counters(&self, rows: Vec<CounterRow>) -> Result<u64, ServiceError> {
        if rows.is_empty() {
            return Ok(0);
        }
        let generation = self.keyring.config().generation;
        let deadline = self.clock.monotonic() + INTERNAL_DEADLINE;
        let rows: Vec<(Revision, CounterRow)> = rows
            .into_iter()
            .map(|row| (row.revision, CounterRow { revision: row.revision.next(), ..row }))
            .collect();
        let inputs = rows.iter().map(|(_, row)| row.mac_input(generation)).collect();
        let macs = self.keyring.macs(inputs, generation, deadline).await?;
        let changes = rows.into_iter().zip(macs);
        let changes: Vec<_> = changes
            .map(|((expected, row), mac)| (expected, Sealed { row, mac, generation }))
            .collect();
        let mut raised = 0;
        let written = self.store.update_counters(changes).await;
        for result in self.keyring.stored(written)? {
            result?;
            raised += 1;
        }
        Ok(raised)
    }
}

/// What the journal tells of one version.
struct Replay {
    name: VersionName,
    fate: Fate,
    /// Whether the whole key is destroyed: then it needs no other primary.
    with_key: bool,
}

impl Replay {
    /// Returns the states on the way, in order.
    fn path(
        &self,
        row: &VersionRow,
        state: VersionState,
    ) -> Result<Vec<VersionState>, ServiceError> {
        use VersionState as S;
        let aims_at = match self.fate {
            Fate::Destroyed => S::Destroyed,
            Fate::Compromised => S::Compromised,
        };
        let path = match (self.fate, state) {
            (_, S::Destroyed) | (Fate::Compromised, S::Compromised) => Vec::new(),
            (Fate::Destroyed, state) => state.to_destroyed().to_vec(),
            // Its destruction was cancelled first.
            (Fate::Compromised, S::DestroyScheduled) => {
                let back = row.destruction.map_or(S::Deactivated, |planned| planned.returns_to);
                if back == S::Compromised { vec![back] } else { vec![back, S::Compromised] }
            }
            (Fate::Compromised, _) => vec![S::Compromised],
        };
        let illegal = ServiceError::IllegalTransition { from: state, to: aims_at };
        if path.is_empty() { Err(illegal) } else { Ok(path) }
    }
}

impl Mutation for Replay {
    type Output = ();
    type Basis = (Turn, Option<Sealed<VersionRow>>);

    fn trail(&self) -> Trail {
        Trail::key(self.name.key())
    }

    fn request_id(&self) -> Option<RequestId> {
        None
    }

    fn reason(&self) -> Option<&str> {
        Some(REASON)
    }

    fn permit(
        &self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> Result<(), ServiceError> {
        // Whoever did it first was permitted to.
        let target = Target::key(self.name.key());
        inner.permit::<authz::ScheduleKeyVersionDestruction>(request, target, trail).map(drop)
    }

    fn fields(&self) -> Result<CanonicalWriter, ServiceError> {
        Ok(CanonicalWriter::new(b"fields").text(&self.name.to_string()).text(REASON))
    }

    async fn basis(
        &self,
        inner: &Inner,
        trail: &mut Trail,
    ) -> Result<(Subject, Self::Basis), ServiceError> {
        let number = self.name.version();
        let turn = inner.turn_whatever(self.name.key(), VersionChoice::Number(number)).await?;
        let key = &turn.fresh.key;
        trail.key_uid = Some(key.row.uid);
        self.path(&turn.fresh.version.row, turn.fresh.version.row.state)?;
        let kind = match self.fate {
            Fate::Destroyed => IntentKind::DestroyKeyVersion,
            Fate::Compromised => IntentKind::CompromiseKeyVersion,
        };
        if number != key.row.primary || self.with_key {
            return Ok((Subject::of_version(kind, &key.row, number), (turn, None)));
        }
        trail.from_version = Some(number);
        let staged = inner.staged(key).await?;
        let subject = succession_of(kind, &key.row, staged.as_ref())?;
        Ok((subject, (turn, staged)))
    }

    async fn apply(
        self,
        change: &mut Change<'_>,
        (turn, staged): Self::Basis,
    ) -> Result<(), Failure> {
        let (key, old) = (&turn.fresh.key, &turn.fresh.version);
        let path = self.path(&old.row, old.row.state)?;
        let is_used = old.row.state != VersionState::PreActivation;
        let (material, state) = match (self.fate, &old.row.material) {
            (Fate::Destroyed, Material::Wrapped(_)) => {
                (Material::Wrapped(WrappedKey(Vec::new())), VersionState::Destroyed)
            }
            (Fate::Destroyed, resident @ Material::Resident(_)) => {
                (resident.clone(), VersionState::Destroyed)
            }
            (Fate::Compromised, material) => (material.clone(), VersionState::Compromised),
        };
        let row = VersionRow {
            state,
            material,
            state_time: change.inner.clock.now(),
            state_reason: REASON.to_owned(),
            state_actor: (&*change.request.principal.id).into(),
            activate_time: old.row.activate_time.filter(|_| is_used),
            destruction: None,
            revision: path.iter().fold(old.row.revision, |revision, _| revision.next()),
            ..old.row.clone()
        };
        let history = steps(&old.row, &path, &row);
        if let (Fate::Destroyed, Material::Resident(id)) = (self.fate, &old.row.material) {
            let destroyed = change.inner.hsm.destroy_resident(*id, change.request.deadline).await;
            destroyed.map_err(|error| change.inner.device(error))?;
        }
        if row.version == key.row.primary && !self.with_key {
            let succession = Succession { previous: row, staged, history, reason: REASON };
            return change.succeed(&turn.fresh, succession, |_, _| ()).await;
        }
        let row = change.seal_under(old.generation, row).await?;
        let rows = RowChanges { added: &[row.mac], removed: &[old.mac], history };
        let closing = change.closing(key.row.name.tenant(), rows, &()).await?;
        let committed = change.inner.store.update_version(old.row.revision, row, closing).await;
        change.settle(committed).await
    }
}

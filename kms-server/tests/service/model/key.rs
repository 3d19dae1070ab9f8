//! The model: what a key and its versions are, and what each step makes of them. No store, no HSM, no clock.

use std::time::Duration;

use kms_core::key::{KeyState, Sensitivity};
use kms_core::state::VersionState;
use kms_server::keyring::KeyringConfig;
use kms_server::service::{QUIET_PERIOD, SCREAM_PERIOD};

/// Time since the beginning.
pub(super) type At = Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) time: At,
    pub(super) returns_to: VersionState,
    pub(super) despite_use: bool,
    pub(super) despite_consumers: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    /// As written down.
    state: VersionState,
    /// When an ACTIVE one becomes DEACTIVATED by itself.
    deactivate: Option<At>,
    /// When a staged one becomes the primary.
    activate: Option<At>,
    planned: Option<Planned>,
    /// When somebody used it, or was refused while it was out of use on purpose.
    wanted: Option<At>,
}

impl Version {
    fn new(state: VersionState, activate: Option<At>) -> Self {
        Self { state, deactivate: None, activate, planned: None, wanted: None }
    }

    pub(super) fn state(&self, now: At) -> VersionState {
        match self.deactivate {
            Some(end) if self.state == VersionState::Active && end <= now => {
                VersionState::Deactivated
            }
            _ => self.state,
        }
    }

    fn wanted_within(&self, now: At, period: Duration) -> bool {
        self.wanted.is_some_and(|last| last + period > now)
    }
}

/// The key. Version n is `versions[n - 1]`.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) state: KeyState,
    pub(super) versions: Vec<Version>,
    /// Index of the primary.
    pub(super) primary: usize,
    pub(super) consumer: bool,
    pub(super) planned: Option<Planned>,
    sensitivity: Sensitivity,
    overlap: Duration,
    pub(super) now: At,
    /// What is to be told of: see `MUST_HAPPEN`.
    pub(super) happened: Vec<&'static str>,
}

/// The outcome of a step: nothing, or the reason of its refusal.
pub(super) type Outcome = Result<(), &'static str>;
const ILLEGAL: Outcome = Err("ILLEGAL_TRANSITION");

impl Key {
    pub(super) fn new(sensitivity: Sensitivity) -> Self {
        Self {
            state: KeyState::Enabled,
            versions: vec![Version::new(VersionState::Active, None)],
            primary: 0,
            consumer: false,
            planned: None,
            sensitivity,
            overlap: KeyringConfig::default().overlap,
            now: Duration::ZERO,
            happened: Vec::new(),
        }
    }

    fn staged(&self) -> Option<usize> {
        self.versions.iter().position(|version| version.state == VersionState::PreActivation)
    }

    /// A change of a key that is not on its way to its end.
    fn stays(&self) -> Outcome {
        match self.state {
            KeyState::Enabled | KeyState::Disabled => Ok(()),
            KeyState::DestroyScheduled => Err("KEY_DESTROY_SCHEDULED"),
            KeyState::Destroyed => Err("KEY_DESTROYED"),
        }
    }

    fn is_enabled(&self) -> Outcome {
        self.stays()?;
        if self.state == KeyState::Disabled { Err("KEY_DISABLED") } else { Ok(()) }
    }

    /// Puts the staged version, or a new one, in the primary's place.
    fn succeed(&mut self) {
        let old = &mut self.versions[self.primary];
        if matches!(old.state, VersionState::Active | VersionState::Suspended) {
            let end = self.now + self.overlap;
            old.deactivate = Some(old.deactivate.map_or(end, |time| time.min(end)));
        }
        self.primary = self.staged().unwrap_or_else(|| {
            self.versions.push(Version::new(VersionState::Active, None));
            self.versions.len() - 1
        });
        self.versions[self.primary].state = VersionState::Active;
    }

    pub(super) fn rotate(&mut self) -> Outcome {
        self.is_enabled()?;
        if self.staged().is_some() {
            self.happened.push("a staged version became the primary by a rotation");
        }
        self.succeed();
        Ok(())
    }

    pub(super) fn stage(&mut self, after: Option<Duration>) -> Outcome {
        self.is_enabled()?;
        if self.staged().is_some() {
            return Err("VERSION_STAGED");
        }
        let activate = after.map(|after| self.now + after);
        self.versions.push(Version::new(VersionState::PreActivation, activate));
        Ok(())
    }

    pub(super) fn activate(&mut self, index: usize) -> Outcome {
        self.is_enabled()?;
        if self.versions[index].state != VersionState::PreActivation {
            return ILLEGAL;
        }
        self.succeed();
        Ok(())
    }

    pub(super) fn discard(&mut self, index: usize) -> Outcome {
        // A mistake about the version shows before the key's state does.
        if self.versions[index].state != VersionState::PreActivation {
            return ILLEGAL;
        }
        self.stays()?;
        self.versions[index].state = VersionState::Destroyed;
        Ok(())
    }

    pub(super) fn enable(&mut self, enabled: bool) -> Outcome {
        self.stays()?;
        match (enabled, self.state) {
            (true, KeyState::Enabled) => return Err("KEY_ENABLED"),
            (false, KeyState::Disabled) => return Err("KEY_DISABLED"),
            _ => {}
        }
        self.state = if enabled { KeyState::Enabled } else { KeyState::Disabled };
        Ok(())
    }

    pub(super) fn schedule_key(
        &mut self,
        window: Duration,
        recent: bool,
        consumers: bool,
    ) -> Outcome {
        self.stays()?;
        if self.state == KeyState::Enabled {
            return Err("KEY_NOT_DISABLED");
        }
        if self.consumer && !consumers {
            return Err("CONSUMERS_REGISTERED");
        }
        let wanted = self.is_wanted(QUIET_PERIOD);
        if wanted && !recent {
            return Err("RECENTLY_USED");
        }
        self.state = KeyState::DestroyScheduled;
        self.planned = Some(Planned {
            time: self.now + window,
            returns_to: VersionState::Destroyed,
            despite_use: wanted,
            despite_consumers: self.consumer,
        });
        Ok(())
    }

    fn is_wanted(&self, period: Duration) -> bool {
        self.versions.iter().any(|version| version.wanted_within(self.now, period))
    }

    pub(super) fn cancel_key(&mut self) -> Outcome {
        match self.state {
            KeyState::Enabled | KeyState::Disabled => Err("KEY_NOT_SCHEDULED"),
            KeyState::Destroyed => Err("KEY_DESTROYED"),
            KeyState::DestroyScheduled => {
                (self.state, self.planned) = (KeyState::Disabled, None);
                Ok(())
            }
        }
    }

    /// Suspends, resumes or deactivates.
    pub(super) fn go(&mut self, index: usize, to: VersionState) -> Outcome {
        use VersionState as S;
        self.stays()?;
        let from = self.versions[index].state(self.now);
        let legal = matches!(
            (from, to),
            (S::Active, S::Suspended | S::Deactivated) | (S::Suspended, S::Active | S::Deactivated)
        );
        if !legal {
            return ILLEGAL;
        }
        if to == S::Deactivated && index == self.primary {
            return Err("PRIMARY_VERSION");
        }
        self.versions[index].state = to;
        Ok(())
    }

    pub(super) fn compromise(&mut self, index: usize) -> Outcome {
        use VersionState as S;
        self.stays()?;
        let from = self.versions[index].state(self.now);
        if !matches!(from, S::PreActivation | S::Active | S::Suspended | S::Deactivated) {
            return ILLEGAL;
        }
        self.versions[index].state = S::Compromised;
        if index == self.primary {
            self.happened.push("the key was compromised and replaced");
            self.succeed();
        }
        Ok(())
    }

    pub(super) fn schedule(
        &mut self,
        index: usize,
        window: Duration,
        recent: bool,
        consumers: bool,
    ) -> Outcome {
        self.stays()?;
        let (now, held) = (self.now, self.consumer);
        let version = &mut self.versions[index];
        let from = version.state(now);
        if !matches!(from, VersionState::Deactivated | VersionState::Compromised) {
            return ILLEGAL;
        }
        let wanted = version.wanted_within(now, QUIET_PERIOD);
        if wanted && !recent {
            return Err("RECENTLY_USED");
        }
        if held && !consumers {
            return Err("CONSUMERS_REGISTERED");
        }
        version.state = VersionState::DestroyScheduled;
        version.planned = Some(Planned {
            time: now + window,
            returns_to: from,
            despite_use: wanted,
            despite_consumers: held,
        });
        Ok(())
    }

    pub(super) fn cancel(&mut self, index: usize) -> Outcome {
        self.stays()?;
        let version = &mut self.versions[index];
        let Some(planned) = version.planned.take() else { return ILLEGAL };
        version.state = planned.returns_to;
        Ok(())
    }

    pub(super) fn register(&mut self) -> Outcome {
        if self.state == KeyState::Destroyed {
            return Err("KEY_DESTROYED");
        }
        if std::mem::replace(&mut self.consumer, true) { Err("CONSUMER_EXISTS") } else { Ok(()) }
    }

    pub(super) fn remove(&mut self) -> Outcome {
        if self.state == KeyState::Destroyed {
            return Err("KEY_DESTROYED");
        }
        if std::mem::take(&mut self.consumer) { Ok(()) } else { Err("CONSUMER_NOT_FOUND") }
    }

    /// Whether a key may be used, of which a version is wanted.
    fn in_use(&mut self, index: usize) -> Outcome {
        if self.state == KeyState::Destroyed {
            return Err("KEY_DESTROYED");
        }
        let usable = self.is_enabled();
        if usable.is_err() {
            self.versions[index].wanted = Some(self.now);
        }
        usable
    }

    pub(super) fn wrap(&mut self) -> Outcome {
        self.in_use(self.primary)?;
        let now = self.now;
        let primary = &mut self.versions[self.primary];
        if primary.state(now) != VersionState::Active {
            return Err("KEY_NOT_ACTIVE");
        }
        primary.wanted = Some(now);
        Ok(())
    }

    /// Whether a version is a source of what is unwrapped or rewrapped.
    fn opens(&mut self, index: usize) -> Outcome {
        use VersionState as S;
        self.in_use(index)?;
        let now = self.now;
        let version = &mut self.versions[index];
        match version.state(now) {
            S::Active | S::Deactivated | S::Compromised => Ok(()),
            S::DestroyScheduled => {
                version.wanted = Some(now);
                Err("KEY_NOT_ACTIVE")
            }
            S::PreActivation | S::Suspended | S::Destroyed => Err("KEY_NOT_ACTIVE"),
        }
    }

    pub(super) fn unwrap(&mut self, index: usize) -> Outcome {
        self.opens(index)?;
        self.versions[index].wanted = Some(self.now);
        if self.versions[index].state == VersionState::Compromised {
            self.happened.push("a compromised version was unwrapped");
        }
        if index != self.primary {
            self.happened.push("an old version was unwrapped");
        }
        Ok(())
    }

    pub(super) fn rewrap(&mut self, index: usize) -> Outcome {
        self.opens(index)?;
        if index == self.primary && self.versions[index].state(self.now) == VersionState::Active {
            return Ok(());
        }
        // Whatever comes of it, somebody wanted to open what the version protects.
        self.versions[index].wanted = Some(self.now);
        self.wrap()?;
        self.happened.push("a version was rewrapped");
        Ok(())
    }

    /// Does what is due.
    pub(super) fn reconcile(&mut self) {
        self.destroy_versions();
        self.destroy_key();
        if self.state != KeyState::Enabled {
            return;
        }
        let due = |version: &Version| version.activate.is_some_and(|time| time <= self.now);
        if self.staged().is_some_and(|index| due(&self.versions[index])) {
            self.happened.push("a staged version became the primary at its date");
            self.succeed();
        }
    }

    fn destroy_versions(&mut self) {
        // They wait for their key's end, or for its being given up.
        if self.state == KeyState::DestroyScheduled {
            return;
        }
        let (now, consumer, high) =
            (self.now, self.consumer, self.sensitivity == Sensitivity::High);
        for version in &mut self.versions {
            let Some(planned) = version.planned.filter(|planned| planned.time <= now) else {
                continue;
            };
            if consumer && !planned.despite_consumers {
                self.happened.push("a destruction of a version was held by a consumer");
            } else if high && !planned.despite_use && version.wanted_within(now, SCREAM_PERIOD) {
                self.happened.push("a destruction of a version was held by somebody who wants it");
            } else {
                (version.state, version.planned) = (VersionState::Destroyed, None);
                self.happened.push("a version was destroyed");
            }
        }
    }

    fn destroy_key(&mut self) {
        let Some(planned) = self.planned.filter(|planned| planned.time <= self.now) else { return };
        if self.consumer && !planned.despite_consumers {
            self.happened.push("a destruction of a key was held by a consumer");
            return;
        }
        let high = self.sensitivity == Sensitivity::High;
        if high && !planned.despite_use && self.is_wanted(SCREAM_PERIOD) {
            self.happened.push("a destruction of a key was held by somebody who wants it");
            return;
        }
        for version in &mut self.versions {
            (version.state, version.planned) = (VersionState::Destroyed, None);
        }
        (self.state, self.planned) = (KeyState::Destroyed, None);
        self.happened.push("a key was destroyed");
    }
}
